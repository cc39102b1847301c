"""Perplexity, divergence and comparisons, each under a named protocol."""
