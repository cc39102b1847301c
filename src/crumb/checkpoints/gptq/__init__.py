"""GPTQ directories, read and written."""
