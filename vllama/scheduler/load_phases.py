"""Progress of a load, read from vLLM's log.

The patterns are those of vLLM 0.26 and 0.32: their sources say them, and recorded logs are the tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from vllama.scheduler.log_text import clean_lines

_LONGEST_LINE = 200


class Phase(StrEnum):
    """The phase of a load. The engine decides which occur and in which order; `IMPORTING` is the first."""

    WAITING = "waiting"
    IMPORTING = "importing"
    STARTING = "starting"
    WEIGHTS = "weights"
    COMPILING = "compiling"
    GRAPHS = "graphs"
    WARMING_UP = "warming up"


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """The progress of a load: `percent` of the phase, None if unknown; `line` is the log's last line."""

    phase: Phase
    percent: int | None = None
    line: str = ""


# The last line that matches one of these shows the phase; each line is matched in this order.
_MARKS: tuple[tuple[Phase, re.Pattern[str]], ...] = (
    (Phase.GRAPHS, re.compile(r"Capturing .*graph|Profiling CUDA graph memory|Capturing model for speculator")),
    (Phase.STARTING, re.compile(r"Resolved architecture:|Initializing a V1 LLM engine")),
    (Phase.WEIGHTS, re.compile(r"Starting to load model |Loading .*shards:|Loading weights")),
    (
        Phase.COMPILING,
        re.compile(
            r"Model loading took|for vLLM's torch\.compile|Dynamo bytecode transform|Compiling a graph"
            r"|Directly load |torch\.compile (took|and initial profiling)|model for the compilation"
        ),
    ),
    (
        Phase.WARMING_UP,
        re.compile(
            r"Warming up|KV cache (memory|size)|[Aa]utotun|DeepGEMM warmup|Graph capturing finished"
            r"|init engine \(|Supported tasks|Starting vLLM server"
        ),
    ),
)
_EAGER = "Enforce eager set"
_PERCENT = re.compile(r"(\d{1,3})% Completed|: +(\d{1,3})%\|")
_PREFIX = re.compile(r"^(\([^()]*pid=\d+\) )?([A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] )?")


def progress_of(log: str) -> LoadProgress:
    """Return the progress of a load from the beginning of its log."""
    found = LoadProgress(Phase.IMPORTING)
    is_eager = False
    last = ""
    for line in clean_lines(log):
        last = line
        is_eager = is_eager or _EAGER in line
        phase = next((phase for phase, mark in _MARKS if mark.search(line)), None)
        if phase is Phase.COMPILING and is_eager:
            phase = Phase.WARMING_UP
        if phase is not None:
            percent = _PERCENT.search(line)
            found = LoadProgress(phase, int(percent[1] or percent[2]) if percent else None)
    return LoadProgress(found.phase, found.percent, _PREFIX.sub("", last)[:_LONGEST_LINE])
