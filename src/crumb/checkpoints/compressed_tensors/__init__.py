"""compressed-tensors directories, read and written."""
