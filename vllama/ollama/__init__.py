"""Ollama's wire: request and reply records, options, NDJSON. No web framework, no engine."""
