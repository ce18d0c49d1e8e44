"""Runs inside vLLM's API server: the Ollama dialect straight on the EngineClient. The only place that imports vllm."""
