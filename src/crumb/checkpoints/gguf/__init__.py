"""GGUF files, both ways: the container, its architectures and tokenizer, a reader and a writer."""
