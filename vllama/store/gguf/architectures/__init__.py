"""Architectures of GGUF files: for each, its config.json and the names of its tensors in a snapshot."""
