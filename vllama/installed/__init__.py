"""Facts about the installed vLLM, read from its files without importing it."""
