"""Crumb's own directories: read, made piece by piece, put together."""
