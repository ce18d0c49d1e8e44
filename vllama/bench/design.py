"""The design of an experiment: which systems are measured, under which loads, and with which requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from vllama.bench.prompts import PromptSource
from vllama.bench.quality import Task
from vllama.bench.result import Arrivals, LoadLevel, Slo, System


@dataclass(frozen=True, slots=True)
class ExperimentDesign:
    """The systems, loads and requests of one experiment.

    The first system is the one in question, the second the baseline that it is compared with, a third the control:
    the baseline's model on the first one's server. Every run ends after `iterations` requests or `seconds`.
    `prompt_tokens` is the length of the whole prompt as the first server counts it, its template included.
    `tokenizers` count tokens as the models of these names do, as far as that is at hand.
    """

    systems: tuple[System, ...]
    levels: tuple[LoadLevel, ...]
    prompts: PromptSource
    output_tokens: int = 50
    prompt_tokens: int | None = None
    iterations: int | None = None
    seconds: float | None = None
    repetitions: int = 1
    arrivals: Arrivals = "constant"
    warmup: int = 1
    timeout: float = 300.0
    processes: int | None = None
    slo: Slo = field(default_factory=Slo)
    task: Task | None = None
    allow_different: bool = False
    seed: int = 0
    tokenizers: Mapping[str, Callable[[str], int]] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    options: dict[str, Any] | None = None


ProgressListener: TypeAlias = Callable[[str, float], object]
"""Called with the current step and the completed share of all runs, 0 to 1."""
