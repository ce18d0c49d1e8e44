"""The figures of a final record, from the engine's own timestamps (contract §1.2).

All times are of one monotonic clock, which the processes of a machine share, so they may be
subtracted: the gateway's receipt of the request, the engine's queue, first and last token.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from vllama.ollama.replies import Timings


@dataclass(slots=True)
class Stopwatch:
    """The front end's view of a request, for what the engine does not say.

    All in monotonic ns; `--disable-log-stats` turns the engine's own timestamps off.
    """

    received: int
    submitted: int = 0
    first_output: int = 0

    def submit(self) -> None:
        """Record that the request goes to the engine."""
        self.submitted = time.monotonic_ns()

    def output(self) -> None:
        """Record the first output; later calls change nothing."""
        if not self.first_output:
            self.first_output = time.monotonic_ns()

    def timings(self, metrics: Any, prompt_tokens: int, eval_tokens: int, cached: int | None = None) -> Timings:
        """Return the timings at the end of the request; `cached` prompt tokens were not computed, None if unknown.

        `load_duration` ends when the engine has the request; the wait in the engine's queue is in none
        of the parts, so the parts and the queueing add up to `total_duration`.
        """
        end = time.monotonic_ns()
        queued, started, first, last = self.submitted, self.submitted, self.first_output or end, end
        if metrics is not None and metrics.first_token_ts:
            queued, started = _ns(metrics.queued_ts), _ns(metrics.scheduled_ts)
            first, last = _ns(metrics.first_token_ts), _ns(metrics.last_token_ts)
        return Timings(
            total_duration=end - self.received,
            load_duration=max(queued - self.received, 0),
            prompt_eval_count=prompt_tokens,
            prompt_eval_duration=max(first - started, 0),
            eval_count=eval_tokens,
            eval_duration=max(last - first, 0),
            prompt_eval_cached_count=cached,
        )


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
