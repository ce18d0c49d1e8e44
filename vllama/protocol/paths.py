"""Paths that only the gateway requests: of sleep over a worker's HTTP socket, PROMPT over its channel."""

from __future__ import annotations

SLEEP, WAKE = "/vllama/sleep", "/vllama/wake"
PREPARE_SLEEP, FORGET_COPY = "/vllama/sleep/prepare", "/vllama/sleep/forget"
PROMPT = "/vllama/prompt"
