"""What the gateway may ask of a worker that it has started, by the paths on the worker's own socket."""

from __future__ import annotations

SLEEP, WAKE = "/vllama/sleep", "/vllama/wake"
