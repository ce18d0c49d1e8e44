"""Products with packed weights on this machine's processor, by functions that are compiled for it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from vllama.installed.cpu_products import multiplies_packed_weights

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

with warnings.catch_warnings(action="ignore"):  # what vLLM's imports warn of is not ours
    from vllama.worker import cpu_products
    from vllama.worker.cpu_products import CpuProduct, compiled
    from vllama.worker.packed_kernels import PackedMatrix

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

FORMS = [(4, 32, False), (4, 32, True), (8, 32, False), (8, 32, True), (8, 64, False)]
"""Bits, group, and whether there are minimums: all of vllama.store.gguf.repacking.FORMS."""


def matrix(outputs: int, inputs: int, form: tuple[int, int, bool]) -> PackedMatrix:
    bits, group, has_minimum = form
    numbers = torch.Generator().manual_seed(outputs)
    words = torch.randint(-(2**31), 2**31, (outputs, inputs * bits // 32), generator=numbers, dtype=torch.int64)
    scales, minimums = torch.randn(2, outputs, inputs // group, generator=numbers).half()
    return PackedMatrix(words.to(torch.int32), scales, minimums if has_minimum else None, bits)


def test_all_forms_of_repacked_weights_are_tested() -> None:
    pytest.importorskip("gguf")
    from vllama.store.gguf.repacking import FORMS as REPACKED

    assert {(form.bits, form.group, form.has_minimum) for form in REPACKED.values()} == set(FORMS)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("outputs", [4, 5, 66, 131, 640])
def test_a_product_is_that_of_the_unpacked_weights(form: tuple[int, int, bool], outputs: int) -> None:
    packed = matrix(outputs, 192, form)
    product = CpuProduct(packed)
    weights = packed.values(torch.float64)
    for count in (0, 1, 2, 3, 4, 7, 8, 33):
        inputs = torch.randn(count, 192, generator=torch.Generator().manual_seed(count))
        expected = inputs.double() @ weights.t()
        found = product(inputs)
        assert found.dtype is torch.float32
        assert found.shape == (count, outputs)
        assert count == 0 or (found - expected).abs().max() < 1e-6 * expected.abs().max()


def test_inputs_may_have_several_dimensions_and_lie_apart() -> None:
    packed = matrix(8, 64, FORMS[1])
    inputs = torch.randn(3, 2, 128)[..., :64]
    expected = inputs @ packed.values(torch.float32).t()
    assert (CpuProduct(packed)(inputs) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_product_that_is_not_possible_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a matrix of 3 rows is too small"):
        CpuProduct(matrix(3, 64, FORMS[0]))
    monkeypatch.setattr(cpu_products, "_FEATURES", {"avx2", "no-such-feature"})
    with pytest.raises(ValueError, match="the processor lacks no-such-feature"):
        compiled.__wrapped__(4, 32, has_minimum=False)
    monkeypatch.setattr(cpu_products, "_LEAST_LLVM", (999,))
    with pytest.raises(ValueError, match=r"LLVM .* is older than \(999,\)"):
        compiled.__wrapped__(4, 32, has_minimum=False)


def test_the_scheduler_knows_whether_products_are_possible() -> None:
    try:
        compiled(4, 32, has_minimum=False)
        possible = True
    except ValueError:
        possible = False
    assert multiplies_packed_weights() is possible


def test_a_form_is_compiled_once() -> None:
    one, other = (CpuProduct(matrix(outputs, 64, FORMS[0])) for outputs in (8, 16))
    calls: list[Any] = [one._call, other._call]
    assert calls[0] is calls[1]
