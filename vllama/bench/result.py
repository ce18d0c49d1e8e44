"""The result of a bench: what was asked, what was seen of every request, and what follows from it.

All times are ns of one clock, the host's monotonic one, which all processes of the load generator share. What a
figure of `Metrics` means, and its unit, is in docs/benchmarking.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import orjson

from vllama.bench.dataclass_json import BadResult, read

SCHEMA = 1
"""The version of the JSON that `dump` writes; `load` takes no other."""

Api: TypeAlias = Literal["ollama", "ollama-generate", "openai", "openai-completions"]
Mode: TypeAlias = Literal["sequential", "concurrent", "streaming", "coldstart", "switch", "overhead"]
Outcome: TypeAlias = Literal["ok", "error", "dropped", "timeout", "cancelled"]
Arrivals: TypeAlias = Literal["constant", "poisson"]
Kind: TypeAlias = Literal["serialises", "batches", "saturated", "client-bound", "unclear"]
Verdict: TypeAlias = Literal["better", "worse", "no difference", "regression"]


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Properties that a server reports about itself and its model. None or "": not reported.

    `context` is in tokens; `quantization` as declared ("Q4_0", "BF16").
    """

    server: str = ""
    context: int | None = None
    quantization: str = ""
    digest: str = ""
    family: str = ""
    parameters: str = ""


@dataclass(frozen=True, slots=True)
class System:
    """One side: a server and a model, under the name that runs and reports know it by."""

    name: str
    url: str
    api: Api
    model: str
    facts: ServerFacts = ServerFacts()


@dataclass(frozen=True, slots=True)
class Workload:
    """What every request asks for.

    `source` is "synthetic" or the name of a file or directory; `prompt_tokens` the length asked for (synthetic only);
    `output_tokens` the limit of a reply. `fresh_prefix`: every prompt begins with words of its own, so that no prefix
    cache helps. `task` is the name of the schema or task file of the quality gate.
    """

    source: str
    prompt_tokens: int | None
    output_tokens: int
    fresh_prefix: bool = True
    seed: int = 0
    task: str = ""


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits of a good request, in ms. None: no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """The durations that a server gives with its reply (Ollama's dialect, contract §2), in ns."""

    total: int
    load: int
    prompt_eval: int
    eval: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One request and its reply.

    `start` is when it was due (open loop) or sent (closed loop), `sent` when it was sent, `first` when its first text
    came (None: none came, or the reply was not streamed), `end` when its last byte came or it failed. `chunks` are the
    arrivals of the records with text, as offsets from `start`. `tokens_in` and `tokens_out` are the server's counts,
    `counted_out` the tokenizer's count of the reply's text (None: not counted). `valid` says whether the reply parses
    and keeps the schema, `fields` the same of each field (quality gate only).
    """

    start: int
    sent: int
    first: int | None
    end: int
    outcome: Outcome
    error: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    counted_out: int | None = None
    chunks: tuple[int, ...] = ()
    server: ServerTimes | None = None
    valid: bool | None = None
    fields: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Readings of the machine during a run.

    `times` are ns of the samples' clock; `series` has one value for each of them (None: not readable then) by name and
    unit ("gpu0_power_w"). `idle` are means of the same series before the first run, `figures` what follows
    ("joules", "tokens_per_joule"), `notes` what a reader has to know ("no GPU: host figures only").
    """

    times: tuple[int, ...] = ()
    series: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Distribution:
    """The distribution of a figure over requests or gaps; percentiles interpolate between the two nearest ranks."""

    n: int
    mean: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures computed from the samples of one or several runs. Formulas and units: docs/benchmarking.md.

    Counts are requests: `ok`, and apart from them `errors`, `dropped`, `timeouts` and `cancelled`. A distribution is
    None where no request has the figure. `inflation` is None where there is no run with C = 1.
    """

    ok: int
    errors: int
    dropped: int
    timeouts: int
    cancelled: int
    seconds: float
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    in_flight: float
    tokens_in: Distribution | None = None
    tokens_out: Distribution | None = None
    ttft_ms: Distribution | None = None
    tpot_ms: Distribution | None = None
    itl_ms: Distribution | None = None
    e2e_ms: Distribution | None = None
    lag_ms: Distribution | None = None
    goodput_per_second: float | None = None
    good_share: float | None = None
    inflation: float | None = None
    parse_rate: float | None = None
    field_rates: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """The requests that were not answered, those that we cancelled left out."""
        return self.errors + self.dropped + self.timeouts


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """A mode under one load: `concurrency` clients, or `rate` requests/s."""

    mode: Mode
    concurrency: int | None = None
    rate: float | None = None

    @property
    def label(self) -> str:
        """The level in words: `streaming, C = 8` or `streaming, 5 requests/s`."""
        load = f"{self.rate:g} requests/s" if self.rate is not None else f"C = {self.concurrency}"
        return f"{self.mode}, {load}"


@dataclass(frozen=True, slots=True)
class Run:
    """One system under one load, once. `system` is a System's name, `repetition` counts from 0.

    A closed loop has a `concurrency`, an open one a `rate` (requests/s). `window` is (first request sent or due, last
    reply ended). `client_cpu` is the share of one core that the busiest process of the load generator used in
    the window, 1.0 = all of it; `client_processes` how many there were. `server_cpu` is the CPU time in ns of
    named server processes (overhead mode).
    """

    system: str
    mode: Mode
    repetition: int
    window: tuple[int, int]
    samples: tuple[Sample, ...]
    metrics: Metrics
    concurrency: int | None = None
    rate: float | None = None
    arrivals: Arrivals | None = None
    model: str = ""
    client_cpu: float = 0.0
    client_processes: int = 1
    server_cpu: dict[str, int] = field(default_factory=dict)
    telemetry: Telemetry | None = None

    @property
    def level(self) -> LoadLevel:
        """The mode and load of the run. Runs of different systems or repetitions at one level may be compared."""
        return LoadLevel(self.mode, self.concurrency, self.rate)


@dataclass(frozen=True, slots=True)
class Summary:
    """All repetitions of one system at one level together."""

    system: str
    mode: Mode
    metrics: Metrics
    concurrency: int | None = None
    rate: float | None = None
    model: str = ""
    client_cpu: float = 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """A property in which the sides differ, with its values by system name.

    `what` is "prompt tokens", "context", …
    """

    what: str
    values: dict[str, str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """`system` over `baseline` in one metric at one level.

    `ratio` is system / baseline, `low` to `high` its bootstrap interval at `confidence`. No difference is claimed when
    the interval holds 1. A better figure with a worse parse rate is a "regression".
    """

    metric: str
    system: str
    baseline: str
    mode: Mode
    concurrency: int | None
    rate: float | None
    ratio: float
    low: float
    high: float
    confidence: float
    verdict: Verdict
    sentence: str


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Why `system` differs from `baseline`: the same model on another server, times another model on that server.

    `server` = control / baseline, `model` = system / control, `total` = system / baseline = server × model.
    """

    metric: str
    system: str
    control: str
    baseline: str
    mode: Mode
    concurrency: int | None
    server: float
    model: float
    total: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A finding of the sweep about a system, in words. `at` is the concurrency at which it holds."""

    system: str
    kind: Kind
    at: int | None
    sentence: str


@dataclass(frozen=True, slots=True)
class ExperimentResult:
    """All of a bench. `environment` is the manifest: hardware, driver, versions, flags, commit.

    `options` are the options of the command by name, as they were in force; a rerun starts from them. `created` is
    RFC 3339 in UTC. `interrupted`: Ctrl-C ended it, and what is here was measured before.
    """

    command: tuple[str, ...]
    created: str
    systems: tuple[System, ...]
    workload: Workload
    runs: tuple[Run, ...]
    summaries: tuple[Summary, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    slo: Slo = Slo()
    differences: tuple[Difference, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    decompositions: tuple[Decomposition, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()
    warnings: tuple[str, ...] = ()
    interrupted: bool = False
    schema: int = SCHEMA


def dump(result: ExperimentResult) -> bytes:
    """Return the result as JSON."""
    return orjson.dumps(result, option=orjson.OPT_APPEND_NEWLINE)


def load(text: bytes) -> ExperimentResult:
    """Return the result in this JSON. Raises BadResult, which says what is wrong where."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        message = f"not JSON: {error}"
        raise BadResult(message) from error
    if not isinstance(value, dict) or "schema" not in value:
        raise BadResult("not the result of a bench: it has no `schema`")
    if value["schema"] != SCHEMA:
        message = f"written in version {value['schema']} of the format; this vllama reads version {SCHEMA}"
        raise BadResult(message)
    return read(ExperimentResult, value, "result")
