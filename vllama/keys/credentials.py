"""The API key with which the commands and the bench ask a server that needs one."""

from __future__ import annotations

import os


def credentials() -> dict[str, str]:
    """Return the headers with the key that OLLAMA_API_KEY has; none without it."""
    key = os.environ.get("OLLAMA_API_KEY", "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}
