from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from scripted_nvml import FakeGpu, FakeNvml

from vllama.bench.gpus import Gpus
from vllama.bench.telemetry import Recorder, Trace, figures_of, means, plain

SECOND = 10**9


def trace_of(**series: list[float | None]) -> Trace:
    """Readings one second apart."""
    count = len(next(iter(series.values())))
    return Trace([i * SECOND for i in range(count)], series)


@pytest.fixture
def here() -> Iterator[str]:
    """The URL of a server of this process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def wait_for_readings(recorder: Recorder, count: int) -> tuple[int, int]:
    """Return a window that holds at least so many readings."""
    begin = time.monotonic_ns()
    pause = threading.Event()
    for _ in range(2000):
        window = begin, time.monotonic_ns()
        if len(recorder.telemetry(window, 0).times) >= count:
            return window
        pause.wait(0.005)
    raise AssertionError("the recorder does not read")


def test_energy_is_mean_power_above_idle_times_seconds() -> None:
    trace = trace_of(gpu0_power_w=[300.0, 500.0, 400.0])
    figures = figures_of(trace, {"gpu0_power_w": 100.0}, seconds=2.0, tokens=1200)
    assert figures["gpu_power_w"] == 400.0
    assert figures["joules_with_idle"] == 800.0
    assert figures["joules"] == 600.0
    assert figures["tokens_per_joule"] == 2.0
    assert figures["tokens_per_joule_with_idle"] == 1.5


def test_the_energy_counter_goes_before_readings_of_power() -> None:
    trace = trace_of(gpu0_power_w=[300.0, 300.0, 300.0], gpu0_energy_j=[1000.0, 1500.0, 1800.0])
    assert figures_of(trace, {}, seconds=2.0, tokens=1)["joules_with_idle"] == 800.0


def test_several_gpus_add_up_in_power_and_average_in_utilisation() -> None:
    trace = trace_of(
        gpu0_power_w=[100.0, 100.0],
        gpu1_power_w=[200.0, 200.0],
        gpu0_utilization_percent=[50.0, 50.0],
        gpu1_utilization_percent=[100.0, 100.0],
    )
    figures = figures_of(trace, {"gpu0_power_w": 50.0, "gpu1_power_w": 50.0}, seconds=1.0, tokens=100)
    assert figures["gpu_power_w"] == 300.0
    assert figures["joules"] == 200.0
    assert figures["gpu_utilization_percent"] == 75.0


def test_without_an_idle_measurement_no_energy_above_idle_is_claimed() -> None:
    figures = figures_of(trace_of(gpu0_power_w=[300.0, 300.0]), {}, seconds=1.0, tokens=100)
    assert "joules_with_idle" in figures
    assert "joules" not in figures


def test_cpu_is_the_growth_of_the_counter_less_the_idle_one() -> None:
    figures = figures_of(trace_of(server_cpu_s=[10.0, 11.0, 13.0]), {"server_cpu_cores": 0.5}, seconds=2.0, tokens=1)
    assert figures["server_cpu_cores"] == 1.5
    assert figures["server_cpu_cores_above_idle"] == 1.0


def test_the_kept_trace_has_cores_in_place_of_cpu_time_and_no_counters_of_energy() -> None:
    kept = plain(trace_of(server_cpu_s=[10.0, 11.0, 13.0], gpu0_energy_j=[1.0, 2.0, 3.0]))
    assert kept.series == {"server_cpu_cores": [None, 1.0, 2.0]}


def test_memory_is_the_highest_reading() -> None:
    figures = figures_of(trace_of(server_rss_bytes=[5.0, 9.0, 7.0]), {"server_rss_bytes": 4.0}, seconds=2.0, tokens=1)
    assert figures["server_rss_bytes"] == 9.0
    assert figures["server_rss_bytes_above_idle"] == 5.0


def test_throttling_is_the_share_of_readings_by_reason_and_idleness_is_none() -> None:
    figures = figures_of(trace_of(gpu0_throttle_reasons=[1, 4, 4 | 32, 0]), {}, seconds=3.0, tokens=1)
    assert figures["gpu0_throttled_share: power cap"] == 0.5
    assert figures["gpu0_throttled_share: software thermal slowdown"] == 0.25
    assert len([name for name in figures if "throttled" in name]) == 2


def test_a_reading_that_failed_is_left_out_of_the_mean() -> None:
    assert means(trace_of(gpu0_power_w=[None, 100.0, 300.0]))["gpu0_power_w"] == 200.0


def test_a_series_that_begins_late_has_no_values_before() -> None:
    trace = Trace()
    trace.add(1, {"a": 1.0})
    trace.add(2, {"a": 2.0, "b": 5.0})
    trace.add(3, {"b": 6.0})
    assert trace.series == {"a": [1.0, 2.0, None], "b": [None, 5.0, 6.0]}
    assert trace.cut((2, 2)).series == {"a": [2.0], "b": [5.0]}


def test_it_reads_gpus_and_the_servers_processes_at_ten_hertz_or_more(here: str) -> None:
    nvml = FakeNvml([FakeGpu(throttle=4)])
    with Recorder(here, gpus=Gpus(nvml), period=0.02) as recorder:
        recorder.take_idle(wait_for_readings(recorder, 5))
        telemetry = recorder.telemetry(wait_for_readings(recorder, 10), 1000)
    assert telemetry.notes == ()
    assert telemetry.figures["readings_per_second"] >= 10
    assert telemetry.figures["gpu_power_w"] == 300.0
    assert telemetry.figures["joules"] == 0.0  # it idles at the same power
    assert telemetry.figures["server_rss_bytes"] > 10e6
    assert telemetry.idle["gpu0_power_w"] == 300.0
    assert {len(column) for column in telemetry.series.values()} == {len(telemetry.times)}
    assert set(telemetry.series) == {
        *("gpu0_utilization_percent", "gpu0_memory_bytes", "gpu0_power_w", "gpu0_sm_clock_mhz"),
        *("gpu0_memory_clock_mhz", "gpu0_temperature_c", "gpu0_throttle_reasons"),
        *("server_cpu_cores", "server_rss_bytes", "server_processes", "machine_cpu_cores"),
    }


def test_only_the_gpus_on_which_the_server_computes_are_counted(here: str) -> None:
    gpus = Gpus(FakeNvml([FakeGpu(), FakeGpu(running={os.getpid(): 1})]))
    with Recorder(here, gpus=gpus, period=0.005) as recorder:
        telemetry = recorder.telemetry(wait_for_readings(recorder, 3), 1)
    assert telemetry.notes == ()
    assert {name[:4] for name in telemetry.series if name.startswith("gpu")} == {"gpu1"}
    assert telemetry.figures["gpu_power_w"] == 300.0


def test_where_the_driver_tells_no_processes_all_gpus_are_counted_and_it_says_so(here: str) -> None:
    with Recorder(here, gpus=Gpus(FakeNvml([FakeGpu(), FakeGpu()])), period=0.005) as recorder:
        telemetry = recorder.telemetry(wait_for_readings(recorder, 3), 1)
    assert telemetry.figures["gpu_power_w"] == 600.0
    assert telemetry.notes == ("the driver does not tell which GPUs the server uses: all 2 are counted",)


def test_what_a_gpu_does_not_tell_is_missing_and_nothing_else(here: str) -> None:
    gpus = Gpus(FakeNvml([FakeGpu(power_mw=None, utilization=None)]))
    with Recorder(here, gpus=gpus, period=0.005) as recorder:
        telemetry = recorder.telemetry(wait_for_readings(recorder, 3), 1)
    assert "gpu_power_w" not in telemetry.figures
    assert telemetry.figures["gpu0_memory_bytes"] == 20 << 30


@pytest.mark.parametrize(
    ("nvml", "note"),
    [
        (FakeNvml(broken="Driver Not Loaded"), "no GPU: NVML: Driver Not Loaded; figures of the processors only"),
        (FakeNvml(), "no GPU: the driver knows of none; figures of the processors only"),
    ],
)
def test_without_a_gpu_there_are_figures_of_the_processors_and_it_says_so(here: str, nvml: FakeNvml, note: str) -> None:
    with Recorder(here, gpus=Gpus(nvml), period=0.005) as recorder:
        telemetry = recorder.telemetry(wait_for_readings(recorder, 3), 1)
    assert telemetry.notes[0] == note  # a busy machine adds that it was read less often
    assert "server_cpu_cores" in telemetry.figures


def test_of_another_machine_nothing_is_read_and_it_says_so() -> None:
    recorder = Recorder("http://192.0.2.1:11434", gpus=Gpus(FakeNvml([FakeGpu()])))
    with recorder:
        telemetry = recorder.telemetry((0, time.monotonic_ns()), 1)
    assert telemetry.series == {}
    assert telemetry.notes[0] == "http://192.0.2.1:11434 is another machine: no figures of its GPUs and processors"


def test_a_server_that_cannot_be_seen_is_said_to_be_so() -> None:
    with socket.socket() as held:  # bound, but not listening: as a port of another network namespace looks
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        recorder = Recorder(f"http://127.0.0.1:{port}", gpus=Gpus(FakeNvml([FakeGpu()])))
    assert f"who listens on port {port}" in recorder.notes[0]


def test_a_window_too_short_for_two_readings_has_no_figures(here: str) -> None:
    with Recorder(here, gpus=Gpus(FakeNvml([FakeGpu()]))) as recorder:
        telemetry = recorder.telemetry((0, 1), 1)
    assert telemetry.figures == {}
    assert telemetry.notes == ("the window was too short to read the machine twice",)


def test_gpus_are_described_for_the_manifest() -> None:
    gpus = Gpus(FakeNvml([FakeGpu(name=b"NVIDIA H100")]))
    assert (gpus.driver, gpus.cuda) == ("580.1", "13.1")
    [gpu] = gpus.describe()
    assert (gpu.name, gpu.memory, gpu.power_limit) == ("NVIDIA H100", 80 << 30, 700.0)
