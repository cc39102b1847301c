"""The bytes that kernels read. One layout serves every instruction set: tile.py."""
