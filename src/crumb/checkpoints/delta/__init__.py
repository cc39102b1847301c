"""Deltas: what quantization decided, published without the weights it was decided for."""
