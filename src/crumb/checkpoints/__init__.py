"""What a file is: Hugging Face safetensors and crumb directories, local or from the hub."""
