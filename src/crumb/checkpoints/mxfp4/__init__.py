"""Experts of 4-bit floats, as gpt-oss is released."""
