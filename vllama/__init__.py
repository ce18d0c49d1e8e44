"""Ollama's API on vLLM's engine."""

__version__ = "0.1.0"

OLLAMA_VERSION = "0.35.0"
"""The Ollama release whose API is spoken; reported by `/api/version` (contract §6.9)."""
