"""The product of vectors and a packed matrix in LLVM's language, for `vllama.worker.cpu_products`.

`product(x, sums, y, words, scales, minimums, inputs, outputs, tokens, count, threads)` computes y = x · Wᵀ: x is
[tokens, inputs] and y [tokens, outputs], 32-bit floats; the matrix has `outputs` rows of packed integers, with 16-bit
scales and minimums for each group of inputs (vllama/store/gguf/repacking.py). `sums` is room for `count` floats, the
groups of all tokens. The threads of the OpenMP runtime share the rows. An integer is unpacked once for up to four
tokens.
"""

from __future__ import annotations

from vllama.worker.packed_kernels import CENTRES, ZEROS

_LANES = 8
_VECTOR = f"<{_LANES} x float>"

_BLOCKS = {1: 4, 2: 4, 4: 2}
"""Numbers of tokens that a function takes, and of rows at once: as many sums as there are registers for."""

LEAST_OUTPUTS = max(_BLOCKS.values())
"""Rows that a matrix must have."""

_TILE = 64
"""Rows that stay in a core's cache while all tokens are multiplied by them."""

_MATRIX = "ptr %words, ptr %scales, ptr %minimums, i64 %inputs, i64 %outputs"


def source(bits: int, group: int, *, has_minimum: bool) -> str:
    """Return the functions for matrices of this form: 4 or 8 bits, and the number of inputs that share a scale."""
    rows = [_Rows(bits, group, tokens, has_minimum=has_minimum).text() for tokens in _BLOCKS]
    return "\n".join([_DECLARATIONS, *rows, _sums(group), _team(group), _product(adds_groups=has_minimum)])


class _Body:
    """Instructions of a function; `let` and what builds on it return the name of a result."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def let(self, instruction: str, name: str = "") -> str:
        name = name or f"%v{len(self.lines)}"
        self.lines.append(f"  {name} = {instruction}")
        return name

    def do(self, instruction: str) -> None:
        self.lines.append(f"  {instruction}")

    def at(self, kind: str, pointer: str, index: str | int) -> str:
        return self.let(f"getelementptr {kind}, ptr {pointer}, i64 {index}")

    def load(self, kind: str, pointer: str, index: str | int) -> str:
        element = kind.rpartition(" ")[2].rstrip(">")
        return self.let(f"load {kind}, ptr {self.at(element, pointer, index)}, align 1")

    def fma(self, kind: str, *factors: str, name: str = "") -> str:
        stated = ", ".join(f"{kind} {factor}" for factor in factors)
        return self.let(f"call {kind} @llvm.fma.{'v8f32' if kind == _VECTOR else 'f32'}({stated})", name)


class _Rows(_Body):
    """The function that multiplies `tokens` inputs by the rows of a matrix from %first to before %last.

    It takes as many rows at once as there are registers for their sums. The last block of rows begins early enough to
    be complete.
    """

    def __init__(self, bits: int, group: int, tokens: int, *, has_minimum: bool) -> None:
        super().__init__()
        self._bits, self._group, self._has_minimum = bits, group, has_minimum
        self._tokens, self._rows = range(tokens), range(_BLOCKS[tokens])
        self._group_bytes = group * bits // 8

    def text(self) -> str:
        """Return the function: a loop over blocks of rows, and in it one over groups."""
        arguments = f"ptr %x, ptr %sums, ptr %y, {_MATRIX}, i64 %first, i64 %last"
        self.lines += [
            f"define internal void @rows_{len(self._tokens)}({arguments}) {{",
            "start:",
            f"  %groups = udiv i64 %inputs, {self._group}",
            f"  %row_bytes = mul i64 %groups, {self._group_bytes}",
            f"  %latest = sub i64 %last, {len(self._rows)}",
            "  br label %rows",
            "rows:",
            "  %next = phi i64 [%first, %start], [%after, %stored]",
            "  %more = icmp slt i64 %next, %last",
            "  br i1 %more, label %block, label %end",
            "block:",
            "  %row = call i64 @llvm.smin.i64(i64 %next, i64 %latest)",
        ]
        numbers = [self.let(f"add i64 %row, {row}") for row in self._rows]
        words = [self.at("i8", "%words", self.let(f"mul i64 {number}, %row_bytes")) for number in numbers]
        starts = [self.let(f"mul i64 {number}, %groups") for number in numbers]
        scales = [self.at("half", "%scales", start) for start in starts]
        minimums = [self.at("half", "%minimums", start) for start in starts]
        self.lines += ["  br label %group", "group:", "  %g = phi i64 [0, %block], [%next_g, %group]"]
        self._begin_sums()
        inputs = self._inputs()
        first_byte = self.let(f"mul i64 %g, {self._group_bytes}")
        for row in self._rows:
            scale = self._number(scales[row])
            self._add_products(row, scale, self._weights(self.at("i8", words[row], first_byte)), inputs)
            if self._has_minimum:
                self._add_minimums(row, scale, self._number(minimums[row]))
        self.lines += [
            "  %next_g = add i64 %g, 1",
            "  %more_g = icmp ult i64 %next_g, %groups",
            "  br i1 %more_g, label %group, label %stored",
            "stored:",
        ]
        self._store(numbers)
        self.lines += [f"  %after = add i64 %next, {len(self._rows)}", "  br label %rows", "end:", "  ret void", "}"]
        return "\n".join(self.lines)

    def _begin_sums(self) -> None:
        for row in self._rows:
            for token in self._tokens:
                self.let(f"phi {_VECTOR} [zeroinitializer, %block], [%sum{row}_{token}, %group]", f"%old{row}_{token}")
                if self._has_minimum:
                    self.let(f"phi float [0.0, %block], [%rest{row}_{token}, %group]", f"%past{row}_{token}")

    def _inputs(self) -> list[list[str]]:
        """Load a group of each token's inputs."""
        first, found = self.let(f"mul i64 %g, {self._group}"), []
        for token in self._tokens:
            skipped = self.let(f"mul i64 %inputs, {token}")
            place = self.at("float", "%x", self.let(f"add i64 {skipped}, {first}"))
            found.append([self.load(_VECTOR, place, lane) for lane in range(0, self._group, _LANES)])
        return found

    def _number(self, place: str) -> str:
        """Return a group's 16-bit float."""
        return self.let(f"fpext half {self.load('half', place, '%g')} to float")

    def _weights(self, place: str) -> list[str]:
        """Unpack a group's integers, less their zero, to vectors of floats in the order of the inputs."""
        codes = self._bytes(place) if self._bits == 8 else self._nibbles(place)
        wide = [self.let(f"sext <{_LANES} x i8> {code} to <{_LANES} x i32>") for code in codes]
        return [self.let(f"sitofp <{_LANES} x i32> {vector} to {_VECTOR}") for vector in wide]

    def _bytes(self, place: str) -> list[str]:
        loaded = [self.load(f"<{_LANES} x i8>", place, start) for start in range(0, self._group_bytes, _LANES)]
        return [self.let(f"xor <{_LANES} x i8> {codes}, splat (i8 -{ZEROS[8]})") for codes in loaded]

    def _nibbles(self, place: str) -> list[str]:
        found = []
        for start in range(0, self._group_bytes, 16):
            pairs = self.load("<16 x i8>", place, start)
            low = self.let(f"and <16 x i8> {pairs}, splat (i8 15)")
            high = self.let(f"lshr <16 x i8> {pairs}, splat (i8 4)")
            low, high = (self.let(f"sub <16 x i8> {half}, splat (i8 {ZEROS[4]})") for half in (low, high))
            for part in range(0, 16, 4):
                order = ", ".join(f"i32 {byte}, i32 {16 + byte}" for byte in range(part, part + 4))
                found.append(self.let(f"shufflevector <16 x i8> {low}, <16 x i8> {high}, <8 x i32> <{order}>"))
        return found

    def _add_products(self, row: int, scale: str, weights: list[str], inputs: list[list[str]]) -> None:
        """Add a group's products: scaled after they were added for one token, before that for several."""
        steps = self.let(f"insertelement {_VECTOR} poison, float {scale}, i64 0")
        steps = self.let(f"shufflevector {_VECTOR} {steps}, {_VECTOR} poison, <{_LANES} x i32> zeroinitializer")
        if len(self._tokens) == 1:
            total = self.let(f"fmul {_VECTOR} {weights[0]}, {inputs[0][0]}")
            for weight, values in zip(weights[1:], inputs[0][1:], strict=True):
                total = self.fma(_VECTOR, weight, values, total)
            self.fma(_VECTOR, steps, total, f"%old{row}_0", name=f"%sum{row}_0")
            return
        weights = [self.let(f"fmul {_VECTOR} {weight}, {steps}") for weight in weights]
        for token in self._tokens:
            total = f"%old{row}_{token}"
            for weight, values in zip(weights[:-1], inputs[token][:-1], strict=True):
                total = self.fma(_VECTOR, weight, values, total)
            self.fma(_VECTOR, weights[-1], inputs[token][-1], total, name=f"%sum{row}_{token}")

    def _add_minimums(self, row: int, scale: str, minimum: str) -> None:
        """Add what is the same for all inputs of a group, times their sum."""
        offset = self.fma("float", scale, f"{CENTRES[self._bits]}.0", minimum)
        for token in self._tokens:
            place = self.let(f"add i64 {self.let(f'mul i64 %groups, {token}')}, %g")
            total = self.load("float", "%sums", place)
            self.fma("float", offset, total, f"%past{row}_{token}", name=f"%rest{row}_{token}")

    def _store(self, numbers: list[str]) -> None:
        for row in self._rows:
            for token in self._tokens:
                rest = f"%rest{row}_{token}" if self._has_minimum else "0.0"
                vector = f"{_VECTOR} %sum{row}_{token}"
                total = self.let(f"call reassoc float @llvm.vector.reduce.fadd.v8f32(float {rest}, {vector})")
                place = self.let(f"add i64 {self.let(f'mul i64 %outputs, {token}')}, {numbers[row]}")
                self.do(f"store float {total}, ptr {self.at('float', '%y', place)}, align 4")


def _sums(group: int) -> str:
    """Return the function that adds the inputs of each group; `%count` is the number of groups of all tokens."""
    body = _Body()
    vectors = [body.load(_VECTOR, "%place", lane) for lane in range(0, group, _LANES)]
    total = vectors[0]
    for vector in vectors[1:]:
        total = body.let(f"fadd {_VECTOR} {total}, {vector}")
    result = body.let(f"call reassoc float @llvm.vector.reduce.fadd.v8f32(float 0.0, {_VECTOR} {total})")
    return "\n".join(
        [
            "define internal void @add_groups(ptr %x, ptr %sums, i64 %count) {",
            "start:",
            "  br label %group",
            "group:",
            "  %g = phi i64 [0, %start], [%next, %group]",
            f"  %index = mul i64 %g, {group}",
            "  %place = getelementptr float, ptr %x, i64 %index",
            *body.lines,
            "  %target = getelementptr float, ptr %sums, i64 %g",
            f"  store float {result}, ptr %target, align 4",
            "  %next = add i64 %g, 1",
            "  %more = icmp ult i64 %next, %count",
            "  br i1 %more, label %group, label %end",
            "end:",
            "  ret void",
            "}",
        ]
    )


_JOB = "{ptr, ptr, ptr, ptr, ptr, ptr, i64, i64, i64}"
_FIELDS = ("x", "sums", "y", "words", "scales", "minimums", "inputs", "outputs", "tokens")


def _kind(field: str) -> str:
    return "i64" if field in {"inputs", "outputs", "tokens"} else "ptr"


def _team(group: int) -> str:
    """Return the function that each thread runs: its rows, tile by tile, and for each tile all tokens."""
    body = _Body()
    for index, field in enumerate(_FIELDS):
        place = body.let(f"getelementptr {_JOB}, ptr %job, i32 0, i32 {index}")
        body.let(f"load {_kind(field)}, ptr {place}", f"%{field}")
    calls = []
    for tokens in sorted(_BLOCKS, reverse=True):
        fewer = f"try_{tokens // 2}" if tokens > 1 else "next_tile"
        calls += [
            f"try_{tokens}:",
            f"  %is_{tokens} = icmp uge i64 %left, {tokens}",
            f"  br i1 %is_{tokens}, label %run_{tokens}, label %{fewer}",
            f"run_{tokens}:",
            f"  call void @rows_{tokens}(ptr %x_at, ptr %sums_at, ptr %y_at, {_MATRIX}, i64 %tile, i64 %tile_end)",
            f"  %done_{tokens} = add i64 %token, {tokens}",
            "  br label %tokens_loop",
        ]
    done = ", ".join(f"[%done_{tokens}, %run_{tokens}]" for tokens in _BLOCKS)
    places = []
    for field, width in (("x", "%inputs"), ("sums", "%groups"), ("y", "%outputs")):
        places += [
            f"  %{field}_skip = mul i64 %token, {width}",
            f"  %{field}_at = getelementptr float, ptr %{field}, i64 %{field}_skip",
        ]
    return "\n".join(
        [
            "define internal void @team(ptr %job) {",
            "start:",
            *body.lines,
            f"  %groups = udiv i64 %inputs, {group}",
            "  %threads32 = call i32 @omp_get_num_threads()",
            "  %number32 = call i32 @omp_get_thread_num()",
            "  %threads = zext i32 %threads32 to i64",
            "  %number = zext i32 %number32 to i64",
            f"  %blocks = udiv i64 %outputs, {LEAST_OUTPUTS}",
            "  %share_blocks = udiv i64 %blocks, %threads",
            "  %more_blocks = add i64 %share_blocks, 1",
            f"  %share = mul i64 %more_blocks, {LEAST_OUTPUTS}",
            "  %first = mul i64 %number, %share",
            "  %full = add i64 %first, %share",
            "  %last = call i64 @llvm.smin.i64(i64 %full, i64 %outputs)",
            "  br label %tiles",
            "tiles:",
            "  %tile = phi i64 [%first, %start], [%tile_end, %next_tile]",
            "  %more = icmp slt i64 %tile, %last",
            "  br i1 %more, label %tile_begins, label %end",
            "tile_begins:",
            f"  %tile_full = add i64 %tile, {_TILE}",
            "  %tile_end = call i64 @llvm.smin.i64(i64 %tile_full, i64 %last)",
            "  br label %tokens_loop",
            "tokens_loop:",
            f"  %token = phi i64 [0, %tile_begins], {done}",
            "  %left = sub i64 %tokens, %token",
            *places,
            f"  br label %try_{max(_BLOCKS)}",
            *calls,
            "next_tile:",
            "  br label %tiles",
            "end:",
            "  ret void",
            "}",
        ]
    )


def _product(*, adds_groups: bool) -> str:
    body = _Body()
    body.let(f"alloca {_JOB}", "%job")
    for index, field in enumerate(_FIELDS):
        place = body.let(f"getelementptr {_JOB}, ptr %job, i32 0, i32 {index}")
        body.do(f"store {_kind(field)} %{field}, ptr {place}")
    if adds_groups:
        body.do("call void @add_groups(ptr %x, ptr %sums, i64 %count)")
    arguments = ", ".join(f"{_kind(field)} %{field}" for field in _FIELDS)
    return "\n".join(
        [
            f"define void @product({arguments}, i64 %count, i32 %threads) {{",
            *body.lines,
            "  call void @GOMP_parallel(ptr @team, ptr %job, i32 %threads, i32 0)",
            "  ret void",
            "}",
        ]
    )


_DECLARATIONS = """
declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)
declare float @llvm.fma.f32(float, float, float)
declare float @llvm.vector.reduce.fadd.v8f32(float, <8 x float>)
declare i64 @llvm.smin.i64(i64, i64)
declare i32 @omp_get_num_threads()
declare i32 @omp_get_thread_num()
declare void @GOMP_parallel(ptr, ptr, i32, i32)
"""
