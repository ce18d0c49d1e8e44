"""Ollama's API and habits on vLLM's engine."""

__version__ = "0.1.0"

OLLAMA_VERSION = "0.24.0"
"""The Ollama release whose recorded behaviour is reproduced; reported by `/api/version` (contract §6.9)."""
