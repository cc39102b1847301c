"""Hugging Face directories and the hub they come from."""
