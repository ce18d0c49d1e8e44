"""Where a model goes and how much memory it gets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllama.scheduler.memory import (
    GIB,
    MIB,
    Claim,
    Device,
    Layout,
    Learned,
    Need,
    Placement,
    Stated,
    Unfit,
    environment,
    flags,
)
from vllama.scheduler.placing import changed, has_room, overhead, place, released, room
from vllama.store.kv_shape import KvShape

QWEN_7B = Need(
    name="qwen2.5:7b",
    weights=15_231_233_024,
    kv=KvShape(full=28 * 2 * 4 * 128, kv_heads=4),
    context=32768,
    heads=28,
    layout=Layout(layers=28, hidden=3584, intermediate=18944, vocabulary=152064),
)
SMALL = Need(
    name="qwen2.5:1.5b",
    weights=3_087_467_144,
    kv=KvShape(full=28 * 2 * 2 * 128, kv_heads=2),
    context=32768,
    heads=12,
    layout=Layout(layers=28, hidden=1536, intermediate=8960, vocabulary=151936),
)
LLAMA_70B = Need(
    name="llama3.1:70b",
    weights=141_107_412_992,
    kv=KvShape(full=80 * 2 * 8 * 128, kv_heads=8),
    context=131072,
    heads=64,
    layout=Layout(layers=80, hidden=8192, intermediate=28672, vocabulary=128256),
)


def gpu(size: int = 80, *, index: int = 0, free: float | None = None, name: str = "NVIDIA H100") -> Device:
    """A GPU of so many GiB."""
    return Device(index, name, size * GIB, int((size - 1 if free is None else free) * GIB), id=str(index))


def machine(size: int = 16, *, free: float) -> Device:
    """A machine without a GPU, with so many GiB of RAM."""
    return Device(0, "Xeon", size * GIB, int(free * GIB), kind="cpu", cores=2)


def placed(need: Need, *devices: Device, claims: tuple[Claim, ...] = ()) -> Placement:
    found = place(need, devices, claims)
    assert isinstance(found, Placement), found.message
    return found


def refused(need: Need, *devices: Device, claims: tuple[Claim, ...] = ()) -> Unfit:
    found = place(need, devices, claims)
    assert isinstance(found, Unfit)
    return found


def test_a_7b_model_on_a_large_gpu_gets_64_comfortable_requests() -> None:
    found = placed(QWEN_7B, gpu(141))
    assert found.requests(8192) == 64
    assert found.context == 32768
    assert found.claim == found.weights + found.overhead.total + found.kv < gpu(141).free


def test_three_7b_models_share_a_large_gpu() -> None:
    devices: tuple[Device, ...] = (gpu(141),)
    claims: tuple[Claim, ...] = ()
    for _ in range(3):
        found = placed(QWEN_7B, *devices, claims=claims)
        assert found.requests(32768) >= 1
        devices = changed(devices, (), found.claims(is_loaded=True))
        claims = (*claims, *found.claims(is_loaded=True))


def test_two_small_models_share_a_small_gpu() -> None:
    first = placed(SMALL, gpu(24, free=23.5, name="L4"))
    assert first.kv > 4 * GIB
    (device,) = changed(first.devices, (), first.claims(is_loaded=True))
    second = placed(SMALL, device, claims=first.claims(is_loaded=True))
    assert second.requests(32768) >= 1


def test_a_model_alone_with_its_gpu_takes_what_it_can_use() -> None:
    sharing = placed(SMALL, gpu(24, free=23.5))
    alone = placed(replace(SMALL, shares=False), gpu(24, free=23.5))
    assert alone.kv > 1.5 * sharing.kv
    assert alone.claim <= room(gpu(24, free=23.5))


def test_what_would_be_of_no_use_to_others_is_not_left_over() -> None:
    need = replace(QWEN_7B, weights=16 * GIB)
    found = placed(need, gpu(24, free=23.5))
    left = room(found.devices[0]) - found.claim
    assert left <= found.devices[0].total // 32


def test_a_part_is_left_for_what_models_hold_while_they_sleep() -> None:
    first = placed(replace(QWEN_7B, kv=KvShape(full=28 * 2 * 28 * 128, kv_heads=28)), gpu(40, free=39.5))
    assert room(first.devices[0]) - first.claim >= 40 * GIB // 32
    alone = placed(replace(first.need, shares=False), *first.devices)  # others are not awake then, but asleep
    assert room(first.devices[0]) - alone.claim > 40 * GIB // 32 - MIB
    never_asleep = placed(replace(first.need, shares=False, has_sleepers=False), *first.devices)
    assert room(first.devices[0]) - never_asleep.claim < MIB


def test_a_model_that_fits_only_without_the_others_is_told_so() -> None:
    resident = Claim(0, 70 * GIB, 70 * GIB)
    found = refused(QWEN_7B, gpu(80, free=9), claims=(resident,))
    assert found.fits_alone
    assert "without the models that are loaded now" in found.message
    assert isinstance(place(QWEN_7B, released([gpu(80, free=9)], [resident])), Placement)


def test_others_never_shorten_the_context_that_a_model_has_alone() -> None:
    need = replace(QWEN_7B, context=131072)  # 7.5 GB for one request
    beside = gpu(80, free=27)
    claims = (Claim(0, 52 * GIB, 52 * GIB),)
    found = place(need, [beside], claims)
    assert isinstance(found, Unfit)
    assert found.fits_alone
    assert found.context == 131072


def test_what_was_promised_and_not_taken_yet_is_not_given_away() -> None:
    assert room(gpu(80, free=79), [Claim(0, 50 * GIB, 0)]) == 29 * GIB - gpu(80).headroom
    assert room(gpu(80, free=29), [Claim(0, 50 * GIB, 50 * GIB)]) == 29 * GIB - gpu(80).headroom
    assert room(gpu(80, free=79), [Claim(1, 50 * GIB, 0)]) == 79 * GIB - gpu(80).headroom


@pytest.mark.parametrize("stated", [Stated(tensor_parallel=2), Stated(pipeline_parallel=2), Stated(data_parallel=2)])
def test_on_a_cpu_all_ranks_share_the_memory_of_the_machine(stated: Stated) -> None:
    found = placed(replace(QWEN_7B, stated=stated), machine(64, free=60))
    assert len(found.devices) == 2
    assert found.claim <= 30 * GIB
    assert not isinstance(place(replace(QWEN_7B, stated=stated), [machine(16, free=15)]), Placement)


def test_what_a_model_gives_back_when_it_sleeps_is_room_for_another() -> None:
    first = placed(replace(LLAMA_70B, weights=60 * GIB), gpu(80))
    (device,) = changed(first.devices, (), first.claims(is_loaded=True))
    assert refused(QWEN_7B, device, claims=first.claims(is_loaded=True)).fits_alone
    asleep = changed([device], first.claims(is_loaded=True), first.claims_asleep())
    assert placed(QWEN_7B, *asleep, claims=first.claims_asleep()).context == 32768


def test_a_model_goes_to_the_gpu_with_the_most_room() -> None:
    found = placed(SMALL, gpu(index=0, free=20), gpu(index=1, free=70), gpu(index=2, free=30))
    assert [device.index for device in found.devices] == [1]
    assert environment(found) == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_a_model_too_large_for_one_gpu_is_split_over_the_least_number_that_holds_it() -> None:
    eight = [gpu(index=index) for index in range(8)]
    assert placed(LLAMA_70B, *eight).tensor_parallel_size == 2
    need = replace(LLAMA_70B, weights=279 * GIB // 2)
    found = placed(need, *eight)
    assert found.tensor_parallel_size == 4  # two hold the weights, but no comfortable context beside them
    assert placed(need, *eight[:2]).context < 8192
    assert found.weights == pytest.approx(need.weights / 4, abs=4)
    assert environment(found)["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert flags(found)[-2:] == ["--tensor-parallel-size", "4"]


def test_of_several_gpus_the_one_with_the_least_room_decides() -> None:
    uneven = placed(LLAMA_70B, gpu(index=0, free=79), gpu(index=1, free=76))
    assert uneven.tensor_parallel_size == 2
    assert uneven.claim <= room(gpu(index=1, free=76))
    even = placed(LLAMA_70B, gpu(index=0, free=76), gpu(index=1, free=76))
    assert (uneven.claim, uneven.context) == (even.claim, even.context)


def test_gpus_of_different_kinds_do_not_share_a_model() -> None:
    devices = (*(gpu(80, index=index) for index in (0, 1)), *(gpu(80, index=index, name="A100") for index in (2, 3)))
    found = refused(replace(LLAMA_70B, weights=200 * GIB), *devices)
    assert found.gpus == 4


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(28, 4, 4), (28, 7, 7), (14, 2, 7), (12, 3, 3), (40, 8, 4)])
def test_the_tensor_parallel_size_divides_heads_and_kv_heads(heads: int, kv_heads: int, size: int) -> None:
    need = replace(LLAMA_70B, heads=heads, kv=KvShape(full=163840, kv_heads=kv_heads), weights=170 * GIB, context=8192)
    if heads == 14:
        assert refused(need, *(gpu(index=index) for index in range(8))).gpus == 14
    else:
        assert placed(need, *(gpu(index=index) for index in range(8))).tensor_parallel_size == size


def test_the_context_is_the_largest_that_fits_where_the_whole_does_not() -> None:
    need = replace(QWEN_7B, context=1_000_000)
    found = placed(need, gpu(24, free=23.5))
    assert 8192 <= found.context < 1_000_000
    assert found.context % 256 == 0
    assert need.kv_bytes(found.context) <= found.kv
    assert flags(found)[-2:] == ["--max-model-len", "-1"]


def test_a_stated_context_is_never_shortened() -> None:
    need = replace(QWEN_7B, context=1_000_000, is_context_stated=True)
    found = refused(need, gpu(24, free=23.5))
    assert f"with a context of {found.largest_context} tokens" in found.message
    fits = placed(replace(need, context=found.largest_context), gpu(24, free=23.5))
    assert flags(fits)[-2:] == ["--max-model-len", str(found.largest_context)]


def test_what_cannot_fit_is_refused_with_the_numbers_and_what_would_fit() -> None:
    found = refused(replace(LLAMA_70B, context=8192), gpu(80))
    assert not found.fits_alone
    assert (found.gpus, found.bits) == (2, 8)
    assert found.message == (
        "model requires more GPU memory (138.7 GiB) than is available (77.4 GiB): weights 131.4 GiB, overhead 6.6 GiB, "
        "KV cache 0.6 GiB for one request of 2048 tokens; it would fit on 2 GPUs of this kind or quantized to 8 bits"
    )


def test_the_flags_let_vllm_s_check_of_free_memory_pass_beside_others() -> None:
    device = gpu(141, free=60)
    found = placed(QWEN_7B, device, claims=(Claim(0, 80 * GIB, 80 * GIB),))
    given_flags = dict(zip(flags(found)[::2], flags(found)[1::2], strict=True))
    assert int(given_flags["--kv-cache-memory-bytes"]) == found.kv
    share = float(given_flags["--gpu-memory-utilization"])
    assert 0 < share * device.total <= device.free - found.overhead.total


@pytest.mark.parametrize(
    ("stated", "absent"),
    [
        (Stated(kv=2 * GIB), ["--kv-cache-memory-bytes"]),
        (Stated(utilization=0.5), ["--kv-cache-memory-bytes", "--gpu-memory-utilization"]),
        (Stated(context=True), ["--max-model-len"]),
        (Stated(tensor_parallel=2), ["--tensor-parallel-size"]),
    ],
)
def test_the_user_s_own_flags_win(stated: Stated, absent: list[str]) -> None:
    found = placed(replace(QWEN_7B, stated=stated), gpu(index=0), gpu(index=1))
    assert not set(absent) & set(flags(found))
    if stated.kv:
        assert found.kv == 2 * GIB
    if stated.utilization:
        assert found.claim == pytest.approx(40 * GIB, abs=2)
    if stated.tensor_parallel:
        assert len(found.devices) == 2


def test_a_stated_utilization_that_others_leave_no_room_for_does_not_fit() -> None:
    need = replace(QWEN_7B, stated=Stated(utilization=0.9))
    found = refused(need, gpu(80, free=50), claims=(Claim(0, 29 * GIB, 29 * GIB),))
    assert found.fits_alone
    assert found.needed == int(0.9 * 80 * GIB)
    assert "GiB as stated; it would fit without" in found.message


def test_pipeline_and_data_parallelism_take_their_devices() -> None:
    eight = [gpu(index=index) for index in range(8)]
    staged = placed(replace(LLAMA_70B, stated=Stated(tensor_parallel=2, pipeline_parallel=2)), *eight)
    assert (len(staged.devices), staged.tensor_parallel_size) == (4, 2)
    assert staged.weights == pytest.approx(LLAMA_70B.weights / 4, abs=4)
    copies = placed(replace(QWEN_7B, stated=Stated(data_parallel=3)), *eight)
    assert len(copies.devices) == len(copies.claims()) == 3
    assert copies.weights == QWEN_7B.weights


def test_what_was_learned_replaces_the_estimate() -> None:
    guessed = overhead(QWEN_7B, gpu(141))
    known = overhead(replace(QWEN_7B, learned={"NVIDIA H100": Learned(3 * GIB)}), gpu(141))
    other = overhead(replace(QWEN_7B, learned={"NVIDIA L4": Learned(3 * GIB)}), gpu(141))
    assert known.is_learned
    assert (known.fixed, known.transient) == (3 * GIB, guessed.transient)
    assert other == guessed


def test_asleep_it_claims_what_was_measured_or_else_its_context_and_graphs() -> None:
    context_and_graphs = GIB + 28 * 24 * MIB
    guessed = placed(QWEN_7B, gpu(141))
    assert guessed.claims_asleep() == (Claim(0, context_and_graphs, context_and_graphs),)
    known = placed(replace(QWEN_7B, learned={"NVIDIA H100": Learned(3 * GIB, GIB)}), gpu(141))
    assert known.claims_asleep() == (Claim(0, GIB, GIB),)


def test_two_models_that_fill_a_gpu_each_take_turns_on_it() -> None:
    need = replace(LLAMA_70B, weights=60 * GIB, learned={"NVIDIA H100": Learned(3 * GIB, GIB)})
    first = placed(need, gpu(80))
    asleep = first.claims_asleep()
    second = placed(need, gpu(80, free=78), claims=asleep)
    awake = tuple(replace(claim, held=GIB) for claim in first.claims())
    both_asleep = gpu(80, free=77)
    assert has_room(awake, [both_asleep], second.claims_asleep())
    assert not has_room(awake, [gpu(80, free=77 - second.claim / GIB)], second.claims())


def test_on_a_cpu_the_kv_cache_is_an_eighth_of_the_free_memory_and_four_gib_at_most() -> None:
    assert placed(SMALL, machine(free=14)).kv == 14 * GIB // 8
    assert placed(SMALL, machine(64, free=60)).kv == 4 * GIB
    tiny = replace(SMALL, kv=KvShape(full=512, kv_heads=4), context=8192)
    assert placed(tiny, machine(64, free=60)).kv == 64 * 8192 * 1024


def test_on_a_cpu_one_request_of_the_whole_context_has_room_though_it_be_more_than_an_eighth() -> None:
    need = replace(SMALL, kv=KvShape(full=28 * 2 * 12 * 128, kv_heads=12), weights=GIB)
    found = placed(need, machine(free=10))
    assert found.kv == need.kv_bytes(32768) > 10 * GIB // 8
    assert environment(found) == {}
    assert flags(found) == ["--kv-cache-memory-bytes", str(found.kv), "--max-model-len", "-1"]


def test_on_a_cpu_too_large_a_model_is_refused_in_ollama_s_words() -> None:
    found = refused(QWEN_7B, machine(free=12))
    assert found.message.startswith("model requires more system memory (")
    assert found.message.endswith("; it would fit quantized to 8 bits")


def test_a_model_of_less_context_than_the_floor_is_served_with_what_it_has() -> None:
    found = placed(replace(SMALL, context=256, pools=True), gpu(24))
    assert found.context == 256
    assert found.kv >= 64 * MIB


NEEDS = st.builds(
    lambda weights, kv_heads, group, layers, context, stated: replace(
        QWEN_7B,
        weights=weights,
        kv=KvShape(full=layers * 2 * kv_heads * 128, kv_heads=kv_heads),
        heads=kv_heads * group,
        context=context,
        is_context_stated=stated,
    ),
    st.integers(MIB, 400 * GIB),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 4, 7, 8]),
    st.integers(1, 120),
    st.integers(1, 2**20),
    st.booleans(),
)
DEVICES = st.lists(
    st.tuples(st.sampled_from([16, 24, 80, 141]), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8
)


@settings(deadline=None)
@given(NEEDS, DEVICES)
def test_no_plan_takes_more_than_there_is(need: Need, facts: list[tuple[int, float, float]]) -> None:
    devices, claims = [], []
    for index, (size, taken, growing) in enumerate(facts):
        held = int(taken * size * GIB)
        devices.append(Device(index, f"{size}", size * GIB, size * GIB - held, id=str(index)))
        claims.append(Claim(index, held + int(growing * GIB), held))
    found: Any = place(need, devices, claims)
    if isinstance(found, Unfit):
        assert found.message
        return
    for device in found.devices:
        assert found.claim <= room(device, claims)
    assert found.claim == found.weights + found.overhead.total + found.kv
    assert found.requests(found.context) >= 1
    assert found.context == need.context or (found.context >= need.floor and not need.is_context_stated)
    assert len({device.name for device in found.devices}) == 1
    assert need.heads % found.tensor_parallel_size == 0
