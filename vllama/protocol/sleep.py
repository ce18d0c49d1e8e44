"""What gateway and worker agree on about sleep."""

from __future__ import annotations

WORKER_EXTENSION = "vllama.worker.sleep_backend.SleepExtension"
"""The class that the gateway has vLLM mix into its worker (`--worker-extension-cls`)."""
