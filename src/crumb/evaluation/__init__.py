"""Perplexity, divergence, gates: models and token windows to figures."""
