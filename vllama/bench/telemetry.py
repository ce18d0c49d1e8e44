"""Read the load of the machine during runs: GPUs by NVML and the server's processes by /proc, on the samples' clock.

A Recorder reads in a thread of its own, 20 times a second, while the bench runs. `take_idle` keeps what the machine
uses with the model loaded and no requests; `telemetry` cuts one run's window out of the trace and works out
its figures, less the idle ones. The figures and their units are in docs/benchmarking.md.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from vllama.bench.gpus import THROTTLE_REASONS, Gpus
from vllama.bench.result import Telemetry
from vllama.machine.processes import ProcessTree, is_local, listener, machine_cpu

PERIOD = 0.05
"""Seconds between two readings. NVML's own figures change 5 to 10 times a second."""

_SCAN_EVERY = 20
"""Readings between two looks for new processes of the server."""

_LEAST_RATE = 10.0
_SECOND = 1e9

_Values = Sequence[float | None]
Window = tuple[int, int]
"""From and to, in ns of the monotonic clock."""


@dataclass(slots=True)
class Trace:
    """Readings: one time (ns, monotonic) and one value of each series for every reading, None where there was none.

    Of GPUs the names begin with `gpu0_`, …; `server_cpu_s` and `machine_cpu_s` are CPU seconds so far, `gpuN_energy_j`
    joules so far.
    """

    times: list[int] = field(default_factory=list)
    series: dict[str, list[float | None]] = field(default_factory=dict)

    def add(self, at: int, values: Mapping[str, float | None]) -> None:
        """Append a reading."""
        for name in values.keys() - self.series.keys():
            self.series[name] = [None] * len(self.times)
        self.times.append(at)
        for name, column in self.series.items():
            column.append(values.get(name))

    def cut(self, window: Window) -> Trace:
        """Return the readings within the window."""
        low, high = bisect.bisect_left(self.times, window[0]), bisect.bisect_right(self.times, window[1])
        return Trace(self.times[low:high], {name: column[low:high] for name, column in self.series.items()})


class Recorder:
    """Reads the machine from `with` on; one for each server. `notes` say what cannot be read, and why."""

    def __init__(self, url: str, *, gpus: Gpus | None = None, period: float = PERIOD) -> None:
        self.notes: list[str] = []
        self._trace = Trace()
        self._idle: dict[str, float] = {}
        self._period = period
        self._tree = self._find_tree(url)
        self._gpus = (Gpus() if gpus is None else gpus) if is_local(urlsplit(url).hostname or "") else None
        self._used: set[int] = set()
        if self._gpus is None:
            self.notes.append(f"{url} is another machine: no figures of its GPUs and processors")
        elif self._gpus.note:
            self.notes.append(f"{self._gpus.note}; figures of the processors only")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._record, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def pids(self) -> frozenset[int]:
        """The server's processes."""
        return self._tree.pids if self._tree else frozenset()

    def take_idle(self, window: Window) -> None:
        """Let this window, in which nothing was asked of the server, be what is subtracted from now on."""
        self._idle = means(self._trace.cut(window))

    def telemetry(self, window: Window, tokens: int) -> Telemetry:
        """Return what was read in a window in which the server gave out so many tokens."""
        trace = self._trace.cut(window)
        measured = self._measured(trace)
        kept = plain(measured).series
        figures = figures_of(measured, self._idle, (window[1] - window[0]) / _SECOND, tokens)
        return Telemetry(
            times=tuple(trace.times),
            series={name: tuple(column) for name, column in kept.items()},
            idle={name: value for name, value in self._idle.items() if name in kept},
            figures=figures,
            notes=(*self.notes, *self._notes(trace, figures)),
        )

    def _find_tree(self, url: str) -> ProcessTree | None:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if not is_local(parts.hostname or ""):
            return None
        root = listener(port)
        if root is None:
            self.notes.append(
                f"no figures of the server's processes: who listens on port {port} belongs to another user or container"
            )
            return None
        return ProcessTree(root)

    def _measured(self, trace: Trace) -> Trace:
        """Leave out the GPUs on which the server does not compute, where the driver tells."""
        if not self._used or self._gpus is None:
            return trace
        others = tuple(f"gpu{i}_" for i in range(len(self._gpus)) if i not in self._used)
        return Trace(trace.times, {k: v for k, v in trace.series.items() if not k.startswith(others)})

    def _notes(self, trace: Trace, figures: Mapping[str, float]) -> list[str]:
        notes = []
        if self._gpus is not None and len(self._gpus) > 1 and not self._used:
            notes.append(f"the driver does not tell which GPUs the server uses: all {len(self._gpus)} are counted")
        if len(trace.times) < 2:
            notes.append("the window was too short to read the machine twice")
        elif (rate := figures["readings_per_second"]) < _LEAST_RATE:
            notes.append(f"the machine was too busy to be read more than {rate:.1f} times a second")
        return notes

    def _record(self) -> None:
        due = time.monotonic()
        count = 0
        while not self._end.is_set():
            self._read(scan=count % _SCAN_EVERY == 0)
            count += 1
            due = max(due + self._period, time.monotonic())  # what was missed is not made up for
            self._end.wait(due - time.monotonic())

    def _read(self, *, scan: bool) -> None:
        values: dict[str, float | None] = {}
        if self._gpus is not None:
            values = {"machine_cpu_s": machine_cpu(), **self._gpus.read()}
        if self._tree is not None:
            if scan:
                self._tree.scan()
            usage = self._tree.read()
            values |= {"server_cpu_s": usage.cpu, "server_rss_bytes": usage.rss, "server_processes": usage.processes}
        if scan and self._gpus is not None and self._tree is not None:
            self._used |= self._gpus.used_by(self._tree.pids)
        self._trace.add(time.monotonic_ns(), values)


def means(trace: Trace) -> dict[str, float]:
    """Return what the machine did on average, as in Telemetry.idle; of counters their growth per second."""
    found = {name: mean for name, column in plain(trace).series.items() if (mean := _mean(column)) is not None}
    for name, column in trace.series.items():
        if (rate_name := _rate_name(name)) and (rate := _rate(trace.times, column)) is not None:
            found[rate_name] = rate
    return found


def plain(trace: Trace) -> Trace:
    """Return the trace as a result keeps it: of CPU time the cores busy since the reading before, of energy nothing."""
    series: dict[str, list[float | None]] = {}
    for name, column in trace.series.items():
        if name in _CPU_TIMES:
            series[_CPU_TIMES[name]] = _slopes(trace.times, column)
        elif not name.endswith(_ENERGY):
            series[name] = column
    return Trace(trace.times, series)


_CPU_TIMES = {"server_cpu_s": "server_cpu_cores", "machine_cpu_s": "machine_cpu_cores"}
_ENERGY = "_energy_j"


def _rate_name(counter: str) -> str | None:
    """Return the series that is this counter's growth per second."""
    if counter.endswith(_ENERGY):
        return counter.removesuffix(_ENERGY) + "_power_w"
    return _CPU_TIMES.get(counter)


def figures_of(trace: Trace, idle: Mapping[str, float], seconds: float, tokens: int) -> dict[str, float]:
    """Return what follows from the trace of a window; a figure that cannot be known is missing.

    `joules` are those above idle, `joules_with_idle` all of them; `tokens_per_joule` goes with the former. Power is
    the energy counter's growth where the GPU has one, else the mean of the power readings.
    """
    if len(trace.times) < 2:
        return {}
    mean = means(trace)
    figures = {"readings_per_second": (len(trace.times) - 1) / ((trace.times[-1] - trace.times[0]) / _SECOND)}
    for name in ("server_cpu_cores", "machine_cpu_cores"):
        if name in mean:
            figures[name] = mean[name]
            figures[f"{name}_above_idle"] = max(mean[name] - idle.get(name, 0.0), 0.0)
    gpus = sorted({name.partition("_")[0] for name in trace.series if name.startswith("gpu")})
    if loads := [mean[f"{gpu}_utilization_percent"] for gpu in gpus if f"{gpu}_utilization_percent" in mean]:
        figures["gpu_utilization_percent"] = sum(loads) / len(loads)
    for name in ("server_rss_bytes", *(f"{gpu}_memory_bytes" for gpu in gpus)):
        figures |= _peak(trace, idle, name)
    for gpu in gpus:
        figures |= _throttling(trace, gpu)
    return figures | _energy(mean, idle, seconds, tokens)


def _throttling(trace: Trace, gpu: str) -> dict[str, float]:
    """Return the share of readings in which the GPU was slowed down, by reason."""
    reasons = [int(bits) for bits in trace.series.get(f"{gpu}_throttle_reasons", ()) if bits is not None]
    shares = {reason: sum(1 for bits in reasons if bits & bit) for bit, reason in THROTTLE_REASONS.items()}
    return {f"{gpu}_throttled_share: {reason}": count / len(reasons) for reason, count in shares.items() if count}


def _energy(mean: Mapping[str, float], idle: Mapping[str, float], seconds: float, tokens: int) -> dict[str, float]:
    powers = {name: watts for name, watts in mean.items() if name.startswith("gpu") and name.endswith("_power_w")}
    if not powers:
        return {}
    figures = {"gpu_power_w": sum(powers.values())}
    figures["joules_with_idle"] = figures["gpu_power_w"] * seconds
    if figures["joules_with_idle"]:
        figures["tokens_per_joule_with_idle"] = tokens / figures["joules_with_idle"]
    if powers.keys() <= idle.keys():
        figures["joules"] = sum(max(watts - idle[name], 0.0) for name, watts in powers.items()) * seconds
        if figures["joules"]:
            figures["tokens_per_joule"] = tokens / figures["joules"]
    return figures


def _peak(trace: Trace, idle: Mapping[str, float], name: str) -> dict[str, float]:
    values = [value for value in trace.series.get(name, ()) if value is not None]
    if not values:
        return {}
    return {name: max(values), f"{name}_above_idle": max(max(values) - idle.get(name, 0.0), 0.0)}


def _mean(column: _Values) -> float | None:
    values = [value for value in column if value is not None]
    return sum(values) / len(values) if values else None


def _rate(times: Sequence[int], column: _Values) -> float | None:
    """Return a counter's growth per second from its first to its last reading."""
    known = [(at, value) for at, value in zip(times, column, strict=True) if value is not None]
    if len(known) < 2 or known[-1][0] == known[0][0]:
        return None
    return (known[-1][1] - known[0][1]) / ((known[-1][0] - known[0][0]) / _SECOND)


def _slopes(times: Sequence[int], column: _Values) -> list[float | None]:
    steps = range(1, len(times))
    return [None, *(_rate(times[i - 1 : i + 1], column[i - 1 : i + 1]) for i in steps)][: len(times)]
