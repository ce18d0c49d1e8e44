"""GGUF files: what they hold, and what they become for vLLM. `conversion.py` and `adapter.py` are the doors."""
