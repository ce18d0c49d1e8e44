"""Ollama's wire format: request and reply records, options, NDJSON. No web framework, no engine."""
