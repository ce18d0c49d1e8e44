"""The limits of keys: requests per minute and tokens per day."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from vllama.errors import RateLimited
from vllama.keys.key import Key
from vllama.keys.usage import UsageRecord

_SECOND = 1_000_000_000
_MINUTE = 60 * _SECOND


class Limits:
    """The requests of the last minute of each key that has a limit. `clock` returns monotonic ns."""

    def __init__(self, usage: UsageRecord, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._usage = usage
        self._clock = clock
        self._recent: dict[str, deque[int]] = {}

    def take(self, key: Key) -> None:
        """Count a request. Raises RateLimited, and does not count it, if the key has reached a limit."""
        if key.tokens_per_day and self._usage.tokens_today(key.name) >= key.tokens_per_day:
            raise RateLimited(
                f"this key's limit of {key.tokens_per_day} tokens per day is reached",
                self._usage.seconds_until_tomorrow(),
            )
        if key.requests_per_minute:
            self._take_request(key)

    def _take_request(self, key: Key) -> None:
        now, most = self._clock(), key.requests_per_minute
        recent = self._recent.setdefault(key.name, deque())
        while recent and recent[0] <= now - _MINUTE:
            recent.popleft()
        if len(recent) >= most:
            wait = recent[len(recent) - most] + _MINUTE - now
            raise RateLimited(f"this key's limit of {most} requests per minute is reached", -(-wait // _SECOND))
        recent.append(now)
