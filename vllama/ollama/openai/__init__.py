"""The OpenAI and Anthropic APIs as Ollama speaks them: from a client's body to what vLLM's own routes take (§5)."""
