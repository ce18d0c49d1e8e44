"""Tensors of GGUF files on their way to a snapshot: read, moved by rows without decoding, and written in shards."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ollama_layout import gguf_bytes

from vllama.errors import StoreError
from vllama.store.copying import _SPARE

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")
load_file = pytest.importorskip("safetensors.numpy").load_file

from vllama.store.gguf import writing  # noqa: E402
from vllama.store.gguf.architectures.entries import TABLE  # noqa: E402
from vllama.store.gguf.architectures.rope import rope_parameters  # noqa: E402
from vllama.store.gguf.conversion import token_ids, write_model  # noqa: E402
from vllama.store.gguf.placing import Piece, place, rotary_rows  # noqa: E402
from vllama.store.gguf.quantization import kept_forms, quantized  # noqa: E402
from vllama.store.gguf.reading import GgufFile  # noqa: E402
from vllama.store.gguf.writing import OutputTensor, to_bfloat16, unpacked, write_weights  # noqa: E402

Write = Callable[..., GgufFile]
_TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0")
_KEYS = {
    "context_length": 64,
    "embedding_length": 64,
    "block_count": 1,
    "feed_forward_length": 64,
    "attention.head_count": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a GGUF file of these tensors, pairs of values and types, and open it."""

    def write_file(
        tensors: dict[str, tuple[Any, str]], keys: dict[str, Any] | None = None, architecture: str = "llama"
    ) -> GgufFile:
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
        for key, value in (keys or {}).items():
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
        for name, (values, kind) in tensors.items():
            quantization = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(values, quantization), raw_dtype=quantization)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return GgufFile(tmp_path / "model.gguf")

    return write_file


@pytest.fixture
def values() -> Any:
    return np.random.default_rng(0).normal(size=(64, 64)).astype("float32")


def _note(seen: list[Any], written: int, total: int) -> None:
    seen.append((written, total))


def _joined(parts: Any) -> Any:
    return np.concatenate(list(parts))


@pytest.mark.parametrize("kind", _TYPES)
def test_moved_rows_of_blocks_decode_to_moved_rows_of_values(kind: str, write: Write, values: Any) -> None:
    tensor = write({"a": (values, kind)}).tensors["a"]
    decoded = tensor.values(slice(None))
    order = rotary_rows(2, 64)
    placed = place("b", Piece(tensor, order))
    assert placed.moves_rows_only
    np.testing.assert_array_equal(_joined(placed.values(200)), decoded[order])
    blocks = _joined(part for _, part in placed.blocks(200))
    np.testing.assert_array_equal(blocks, tensor.blocks[order])
    # Undoing llama.cpp's order gives the halves of each head back.
    interleaved = decoded.reshape(2, 2, 16, 64).swapaxes(1, 2).reshape(64, 64)
    np.testing.assert_array_equal(interleaved[order], decoded)


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_pieces_alternate_join_and_turn_in_parts_of_any_size(size: int, write: Write, values: Any) -> None:
    file = write({"a": (values, "F32"), "b": (values + 1, "F32")})
    a, b = file.tensors["a"], file.tensors["b"]
    alternating = place("c", a, b, shape=(128, 64), alternates=True)
    np.testing.assert_array_equal(_joined(alternating.values(size)), np.stack([values, values + 1], 1).reshape(128, 64))
    joined = place("c", Piece(a, slice(0, 8)), Piece(b, slice(8, 16), transposed=False))
    np.testing.assert_array_equal(_joined(joined.values(size)), np.concatenate([values[:8], values[8:16] + 1]))
    stack = place("c", a, shape=(2, 64, 32), transposed=True)
    turned = _joined(stack.values(size)).reshape(2, 64, 32)
    np.testing.assert_array_equal(turned, values.reshape(2, 32, 64).swapaxes(1, 2))
    padded = place("c", a, empty_rows=2, offset=-1.0)
    np.testing.assert_array_equal(_joined(padded.values(size)), np.concatenate([np.zeros((2, 64)), values - 1]))


def test_a_tensor_of_another_shape_than_its_rows_is_refused(write: Write, values: Any) -> None:
    tensor = write({"a": (values, "F32")}).tensors["a"]
    with pytest.raises(StoreError, match="a has shape"):
        place("b", tensor, shape=(65, 64))


def test_quantized_values_are_rounded_to_the_nearest_bfloat16() -> None:
    exact = np.array([1.0, -2.5, 0.0, 3.1415927, 1.00390625, 1.01171875], "float32")
    rounded = (to_bfloat16(exact).astype("uint32") << 16).view("float32")
    assert rounded.tolist() == [1.0, -2.5, 0.0, 3.140625, 1.0, 1.015625]


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_scales_that_are_not_numbers_are_refused(scale: float, write: Write, values: Any) -> None:
    tensor = write({"a": (values, "Q8_0")}).tensors["a"]
    broken = np.array(tensor.blocks)
    broken[3, :2] = np.array([scale], "float16").view("uint8")
    output = unpacked(place("b", type(tensor)(tensor.name, tensor.shape, tensor.type, broken)))
    with pytest.raises(StoreError, match="a has values that are infinite or not a number"):
        _joined(output.parts())


def test_shards_hold_all_tensors_and_the_same_bytes_each_time(
    write: Write, values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write({"a": (values, "F32"), "b": (values, "F16"), "c": (values, "BF16"), "d": (values, "Q4_0")})
    monkeypatch.setattr(writing, "_SHARD", 25_000)
    contents = []
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        seen: list[Any] = []
        write_weights(
            [unpacked(place(name, tensor)) for name, tensor in file.tensors.items()],
            directory,
            partial(_note, seen),
        )
        assert seen[-1] == (40_960, 40_960)
        contents.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads(contents[0]["model.safetensors.index.json"])
    assert index["metadata"] == {"total_size": 40_960}
    for name, shard in index["weight_map"].items():
        assert name in contents[0][shard].decode(errors="replace")
    first = load_file(tmp_path / "0" / "model-00001-of-00002.safetensors")
    np.testing.assert_array_equal(first["a"], values)


def test_two_tensors_of_the_same_name_are_refused(tmp_path: Path) -> None:
    same = OutputTensor("a", "F32", (1,), lambda: iter([np.zeros(1, "float32")]))
    with pytest.raises(StoreError, match="two tensors of the GGUF file become a"):
        write_weights([same, same], tmp_path, lambda *_: None)


def test_a_tensor_that_the_architecture_does_not_know_is_refused(write: Write, values: Any) -> None:
    keys = {f"llama.{key}": value for key, value in _KEYS.items()}
    file = write({"token_embd.weight": (values, "F32"), "blk.0.attn_magic.weight": (values, "F32")}, keys)
    with pytest.raises(StoreError, match=r"has the tensor blk\.0\.attn_magic\.weight, which architecture 'llama'"):
        list(TABLE["llama"].place(file))


def test_layers_that_predict_further_tokens_are_left_out(write: Write, values: Any) -> None:
    keys = {f"llama.{key}": value for key, value in _KEYS.items()} | {
        "llama.block_count": 2,
        "llama.nextn_predict_layers": 1,
    }
    norm = (values[0], "F32")
    file = write(
        {"blk.0.attn_norm.weight": norm, "blk.1.attn_norm.weight": norm, "blk.1.nextn.enorm.weight": norm}, keys
    )
    assert [placed.name for placed in TABLE["llama"].place(file)] == ["model.layers.0.input_layernorm.weight"]


@pytest.mark.parametrize(("low", "high", "context"), [(1.0, 4.0, 8192), (1.0, 4.0, 1024), (2.0, 6.0, 4096)])
def test_the_scaling_of_llama_3_is_found_in_its_factors(write: Write, low: float, high: float, context: int) -> None:
    frequencies = 10_000.0 ** (-np.arange(0, 128, 2) / 128)
    kept = np.clip((context * frequencies / (2 * np.pi) - low) / (high - low), 0, 1)
    divisors = (1 / ((1 - kept) / 8 + kept)).astype("float32")
    found = rope_parameters(write({"rope_freqs.weight": (divisors, "F32")}, {"llama.rope.freq_base": 10_000.0}))
    assert (found["rope_type"], found["factor"]) == ("llama3", 8.0)
    ratios = (found["original_max_position_embeddings"] / found["low_freq_factor"], found["high_freq_factor"])
    assert ratios == pytest.approx((context / low, high / low * found["low_freq_factor"]), rel=1e-3)


def test_factors_that_are_not_those_of_llama_3_are_refused(write: Write) -> None:
    divisors = np.array([1, 8, 1, 8] * 16, "float32")
    with pytest.raises(StoreError, match="not in the way of Llama 3"):
        rope_parameters(write({"rope_freqs.weight": (divisors, "F32")}))


def test_a_turn_and_a_text_end_with_tokens_of_their_own(write: Write, values: Any) -> None:
    keys = {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 106, "tokenizer.ggml.bos_token_id": 2}
    found = token_ids(write({"a": (values, "F32")}, keys))
    assert found == {"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": None}


def test_an_encoder_says_how_it_pools_and_computes_in_the_type_of_its_weights(
    write: Write, values: Any, tmp_path: Path
) -> None:
    keys = {f"bert.{key}": value for key, value in _KEYS.items()} | {
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.pooling_type": 2,
    }
    file = write({"token_embd.weight": (values, "F16"), "position_embd.weight": (values, "F16")}, keys, "bert")
    (tmp_path / "out").mkdir()
    config = write_model(file, tmp_path / "out").config
    assert (config["architectures"], config["dtype"]) == (["BertModel"], "float16")
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_bytes())
    assert (pooling["pooling_mode_cls_token"], pooling["pooling_mode_mean_tokens"]) == (True, False)
    modules = json.loads((tmp_path / "out" / "modules.json").read_bytes())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]


@pytest.mark.parametrize("repacks", [True, False])
def test_a_disk_needs_room_for_what_is_written_and_no_more(
    write: Write, values: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, repacks: bool
) -> None:
    keys = {f"llama.{key}": value for key, value in _KEYS.items()}
    file = write({"token_embd.weight": (values, "Q4_0"), "output_norm.weight": (values[0], "F32")}, keys)
    out = tmp_path / "out"
    out.mkdir()
    disk = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    with pytest.raises(StoreError, match=r"not enough disk space.* bytes needed, 0 free; .*OLLAMA_MODELS") as refused:
        write_model(file, out, repacks=repacks)
    assert not list(out.iterdir())
    needed = int(str(refused.value).partition(" bytes needed")[0].rpartition(" ")[2].replace(",", ""))
    disk.free = needed + _SPARE
    write_model(file, out, repacks=repacks)
    data = (out / "model.safetensors").read_bytes()
    assert len(data) == 8 + int.from_bytes(data[:8], "little") + needed


def _tensor_info(name: bytes, shape: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("infos", "reason"),
    [
        ([_tensor_info(b"a", (64, 64), 0)], "is incomplete: a ends after"),
        ([_tensor_info(b"a", (1 << 40, 1 << 40), 0)], "is incomplete"),
        ([_tensor_info(b"a", (4,), 0, 1 << 62)], "is incomplete"),
        ([_tensor_info(b"a", (33, 2), 2)], "rows of 33 values, which is no multiple of a block's 32"),
        ([_tensor_info(b"a", (4,), 999)], "a has type 999, which gguf does not know"),
        ([_tensor_info(b"a", (1,), 0)] * 2, "two tensors named a"),
        ([_tensor_info(b"a", (1,) * 5, 0)], "a tensor with 5 dimensions"),
    ],
)
def test_tensors_that_a_file_cannot_hold_are_refused(infos: list[bytes], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes(rest=b"".join(infos) + b"\0" * 64, tensors=len(infos)))
    with pytest.raises(StoreError, match=reason):
        GgufFile(path)


def test_a_mixture_of_experts_of_nomic_bert_is_placed_as_its_own_code_has_it(write: Write, tmp_path: Path) -> None:
    """Experts are stacked by rows, the second layers transposed, and their bias, which llama.cpp drops, is zero."""
    rng = np.random.default_rng(1)
    shapes = {
        "token_embd.weight": (8, 64), "token_types.weight": (1, 64), "token_embd_norm.weight": (64,),
        "blk.0.ffn_up.weight": (96, 64), "blk.0.ffn_up.bias": (96,), "blk.0.attn_qkv.bias": (192,),
        "blk.1.ffn_gate_inp.weight": (4, 64), "blk.1.ffn_up_exps.weight": (4, 96, 64),
        "blk.1.ffn_down_exps.weight": (4, 64, 96), "blk.1.layer_output_norm.bias": (64,),
    }  # fmt: skip
    tensors = {name: (rng.standard_normal(shape).astype("float32"), "F32") for name, shape in shapes.items()}
    keys = {f"nomic-bert-moe.{key}": value for key, value in _KEYS.items() if "rms" not in key} | {
        "nomic-bert-moe.block_count": 2,
        "nomic-bert-moe.attention.layer_norm_epsilon": 1e-5,
        "nomic-bert-moe.expert_count": 4,
        "nomic-bert-moe.expert_used_count": 2,
        "nomic-bert-moe.moe_every_n_layers": 2,
    }
    (tmp_path / "out").mkdir()
    config = write_model(write(tensors, keys, "nomic-bert-moe"), tmp_path / "out").config
    assert (config["num_experts"], config["moe_top_k"], config["moe_every_n_layers"]) == (4, 2, 2)
    assert (config["activation_function"], config["qkv_proj_bias"], config["mlp_fc1_bias"]) == ("gelu", True, True)
    found, layer = load_file(tmp_path / "out" / "model.safetensors"), "encoder.layers.1.mlp"
    ups, downs = (tensors[f"blk.1.ffn_{part}_exps.weight"][0] for part in ("up", "down"))
    assert (found[f"{layer}.experts.mlp.w1"] == ups.reshape(4 * 96, 64)).all()
    assert (found[f"{layer}.experts.mlp.w2"] == downs.swapaxes(1, 2)).all()
    assert (found[f"{layer}.experts.bias"] == np.zeros(64)).all()
    assert f"{layer}.router.layer.weight" in found
    assert "encoder.layers.0.mlp.fc1.weight" in found


@pytest.mark.parametrize("kind", _TYPES)
def test_rows_that_pad_a_matrix_are_zero_in_any_form(write: Write, values: Any, tmp_path: Path, kind: str) -> None:
    placed = place("a.weight", write({"a": (values, kind)}).tensors["a"])
    rows = values.shape[0]
    for name, make in (
        ("exact", lambda one: quantized([one], kept_forms([one], "LlamaForCausalLM"))),
        ("bf16", lambda one: [unpacked(one)]),
    ):
        found = []
        for number, tensor in enumerate((placed, placed.padded(rows + 3))):
            directory = tmp_path / f"{name}{number}"
            directory.mkdir()
            write_weights(make(tensor), directory, lambda *_: None)
            found.append(dict(_as_bytes(directory / "model.safetensors")))
        assert found[0].keys() == found[1].keys()
        for key, (shape, data) in found[1].items():
            own_shape, own = found[0][key]
            assert shape == [rows + 3, *own_shape[1:]]
            assert data.startswith(own)
            if not key.endswith("weight_packed"):  # the integers do not matter where the scale is zero
                assert not any(data[len(own) :])


def _as_bytes(path: Path) -> Iterator[tuple[str, tuple[list[int], bytes]]]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            start, stop = (8 + size + offset for offset in entry["data_offsets"])
            yield name, (entry["shape"], data[start:stop])


def test_a_part_of_a_split_file_is_refused(write: Write, values: Any) -> None:
    with pytest.raises(StoreError, match="one part of a split GGUF file"):
        write({"a": (values, "F32")}, {"split.count": 2})


def test_an_array_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    key = b"general.tags"
    pair = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 4, 1 << 61)
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)
    with pytest.raises(StoreError, match=r"an array of 2305843009213693952 values"):
        GgufFile(tmp_path / "model.gguf")
