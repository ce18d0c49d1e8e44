"""Models that see: the vision tower of a GGUF file, and the snapshot that it becomes with the text model."""
