"""A GGUF file's tokenizer, from its metadata and back."""
