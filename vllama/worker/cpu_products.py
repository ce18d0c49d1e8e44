"""Products with packed weights on x86 CPUs, by functions that LLVM compiles for this processor when a model is loaded.

vLLM has no kernel for weights of 8 bits on CPUs, and its kernel for 4 bits needs AVX-512. Unpacked weights are up to
seven times the bytes, all of which are read for each token. llvmlite, which vLLM installs with numba, is the compiler:
the machine needs no other. The threads are those of torch, whose OpenMP runtime is called. The values of the weights
are those of `vllama.worker.packed_kernels.unpacked` in 32 bits.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vllama.worker.cpu_product_source import LEAST_OUTPUTS, source
from vllama.worker.packed_kernels import PackedMatrix

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_LLVM = (20,)
_FEATURES = {"avx2", "fma", "f16c"}

_MOST_INPUTS = 32
"""Number of inputs above which unpacking parts of the matrix for torch's own product is faster."""

_UNPACKED_AT_ONCE = 1 << 22
"""Weights that are unpacked at a time for many inputs."""


class CpuProduct(nn.Module):  # type: ignore[misc]
    """Multiplies rows of 32-bit floats by a packed matrix. Raises ValueError if that cannot be compiled here."""

    offsets = None
    """Nothing is left to add: minimums are a part of the product."""

    def __init__(self, matrix: PackedMatrix) -> None:
        super().__init__()
        bits, group, has_minimum = matrix.form
        self.outputs, self.inputs, self.groups = matrix.words.shape[0], matrix.inputs, matrix.inputs // group
        if self.outputs < LEAST_OUTPUTS:
            raise ValueError(f"a matrix of {self.outputs} rows is too small")
        self._call = compiled(bits, group, has_minimum=has_minimum)
        self.words, self.scales = (nn.Parameter(tensor.contiguous(), False) for tensor in matrix[:2])
        self.minimums = None if matrix.minimums is None else nn.Parameter(matrix.minimums.contiguous(), False)
        self._matrix = PackedMatrix(self.words, self.scales, self.minimums, bits)
        self._places = [0 if tensor is None else tensor.data_ptr() for tensor in self._matrix[:3]]
        self._number = next(_NUMBERS)
        _PRODUCTS[self._number] = self

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the product for rows of inputs."""
        return self.multiply(inputs.reshape(-1, self.inputs)).reshape(*inputs.shape[:-1], self.outputs)

    def multiply(self, rows: Tensor) -> Tensor:
        """Return the product for a matrix of inputs, also in a model that torch compiles."""
        if torch.compiler.is_compiling():
            found: Tensor = torch.ops.vllama.cpu_product(rows, self._number, self.outputs)
            return found
        return self.computed(rows)

    def computed(self, rows: Tensor) -> Tensor:
        """Return the product for a matrix of inputs, computed at once."""
        count = rows.shape[0]
        if not 0 < count <= _MOST_INPUTS:
            return self._unpacking(rows)
        rows = rows.contiguous()
        result = torch.empty(count, self.outputs, dtype=torch.float32)
        sums = torch.empty(count * self.groups, dtype=torch.float32)
        places = rows.data_ptr(), sums.data_ptr(), result.data_ptr(), *self._places
        self._call(*places, self.inputs, self.outputs, count, count * self.groups, torch.get_num_threads())
        return result

    def _unpacking(self, rows: Tensor) -> Tensor:
        step = max(_UNPACKED_AT_ONCE // self.inputs, 1)
        parts = []
        for start in range(0, self.outputs, step):
            part = self._matrix.part(slice(start, start + step))
            parts.append(nn.functional.linear(rows, part.values(rows.dtype)))
        return torch.cat(parts, dim=-1)


_PRODUCTS: weakref.WeakValueDictionary[int, CpuProduct] = weakref.WeakValueDictionary()
"""All products of this process, which a compiled model names by number."""

_NUMBERS = itertools.count()


def _product_by_number(rows: Tensor, number: int, outputs: int) -> Tensor:
    del outputs
    return _PRODUCTS[number].computed(rows)


def _shape_of_product(rows: Tensor, number: int, outputs: int) -> Tensor:
    del number
    return rows.new_empty(rows.shape[0], outputs)


# torch compiles a model around this operator, of whose result it knows the shape alone.
_LIBRARY = torch.library.Library("vllama", "FRAGMENT")
_LIBRARY.define("cpu_product(Tensor rows, int number, SymInt outputs) -> Tensor")
_LIBRARY.impl("cpu_product", _product_by_number, "CPU")
torch.library.register_fake("vllama::cpu_product", _shape_of_product, lib=_LIBRARY)


@cache
def compiled(bits: int, group: int, *, has_minimum: bool) -> Callable[..., None]:
    """Compile the product for a form of matrices. Raises ValueError if that is impossible here."""
    try:
        import llvmlite.binding as llvm
    except ImportError as error:
        raise ValueError(f"llvmlite cannot be imported: {error}") from None
    if llvm.llvm_version_info < _LEAST_LLVM:
        raise ValueError(f"LLVM {llvm.llvm_version_info} is older than {_LEAST_LLVM}")
    features = llvm.get_host_cpu_features()
    if missing := sorted(feature for feature in _FEATURES if not features.get(feature)):
        raise ValueError(f"the processor lacks {', '.join(missing)}")
    openmp = _openmp()
    for name in ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num"):
        llvm.add_symbol(name, ctypes.cast(getattr(openmp, name), ctypes.c_void_p).value)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=3
    )
    module = llvm.parse_assembly(source(bits, group, has_minimum=has_minimum))
    module.verify()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 6, *[ctypes.c_int64] * 4, ctypes.c_int)
    function: Any = prototype(engine.get_function_address("product"))
    function.engine = engine  # whose memory has the code
    return function  # type: ignore[no-any-return]


def _openmp() -> ctypes.CDLL:
    """Return the library in which torch finds its OpenMP runtime: a second runtime's threads would share the cores.

    The dynamic linker looks among the libraries that were preloaded, then among torch's own. Raises ValueError if
    torch was built without OpenMP.
    """
    own = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    for name in (None, str(own)):
        library = ctypes.CDLL(name)
        if hasattr(library, "GOMP_parallel"):
            return library
    raise ValueError("torch has no OpenMP runtime")
