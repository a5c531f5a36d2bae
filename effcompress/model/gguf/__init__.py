"""Reading and writing gguf files."""
