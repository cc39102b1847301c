"""Directories that MLX quantized."""
