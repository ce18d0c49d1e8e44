from __future__ import annotations

import pytest

from vllama.errors import SourceUnavailable
from vllama.store.sources.hub_listing import Listing, RemoteFile, gguf_file, label_of, projector_file, snapshot_files

BASICS = ("config.json", "tokenizer.json", "model.safetensors")


def _listing(*paths: str) -> Listing:
    return Listing("acme/x", "a" * 40, tuple(RemoteFile(path, 1, git_sha1=f"{i:040x}") for i, path in enumerate(paths)))


def _chosen(*paths: str) -> list[str]:
    return [file.path for file in snapshot_files(_listing(*BASICS, *paths))][len(BASICS) :]


class TestASnapshot:
    @pytest.mark.parametrize(
        "path",
        [
            "generation_config.json", "chat_template.jinja", "tokenizer.model", "merges.txt", "tekken.json",
            "qwen.tiktoken", "LICENSE", "NOTICE.md", "model-00001-of-00002.safetensors", "1_Pooling/config.json",
            "2_Dense/model.safetensors", "additional_chat_templates/tool_use.jinja",
        ],
    )  # fmt: skip
    def test_it_has_what_a_worker_reads(self, path: str) -> None:
        assert _chosen(path) == [path]

    @pytest.mark.parametrize(
        "path",
        [
            "pytorch_model.bin", "model.pt", "modeling_x.py", "training_args.bin", "README.md", ".gitattributes",
            "x.gguf", "flax_model.msgpack", "original/model.safetensors", "onnx/config.json", "metal/model.bin",
            "original/params.json", "a/1_Pooling/config.json",
        ],
    )  # fmt: skip
    def test_it_has_no_pickle_no_code_and_no_second_copy(self, path: str) -> None:
        assert _chosen(path) == []

    @pytest.mark.parametrize(
        "path", ["../x.json", "/x.json", "1_Pooling/../../x.json", "..\\x.json", "1_Pooling//x.json", ".x/config.json"]
    )
    def test_a_path_that_leads_elsewhere_is_left_out(self, path: str) -> None:
        assert _chosen(path) == []

    def test_mistrals_own_copy_of_the_weights_is_left_out(self) -> None:
        assert _chosen("consolidated.safetensors", "consolidated.safetensors.index.json") == []

    def test_without_settings_it_is_none(self) -> None:
        with pytest.raises(SourceUnavailable, match=r"config\.json is missing"):
            snapshot_files(_listing("params.json", "consolidated.safetensors"))

    @pytest.mark.parametrize(
        ("paths", "reason"),
        [
            (
                ("config.json", "a.bin", "b.bin", "c.bin", "d.bin"),
                r"pickle format only \(a\.bin, b\.bin, c\.bin and 1 more\)",
            ),
            (("config.json", "README.md"), r"has no weights \(\*\.safetensors, \*\.gguf\)"),
            (("config.json", "model.safetensors.index.json"), "but not the weights"),
        ],
    )
    def test_without_weights_it_says_what_there_is(self, paths: tuple[str, ...], reason: str) -> None:
        with pytest.raises(SourceUnavailable, match=reason):
            snapshot_files(_listing(*paths))


class TestGguf:
    @pytest.mark.parametrize(
        ("tag", "label"),
        [("Q4_K_M", "Q4_K_M"), ("q8_0", "Q8_0"), ("IQ2_XXS", "IQ2_XXS"), ("bf16", "BF16"), ("main", ""), ("v1.0", ""),
         ("gptq-4bit-32g", ""), ("q4_K_M-fixed", ""), ("0123456789abcdef0123456789abcdef01234567", "")],
    )  # fmt: skip
    def test_a_tag_is_a_quantization_or_a_revision(self, tag: str, label: str) -> None:
        assert label_of(tag) == label

    @pytest.mark.parametrize(
        "path",
        ["qwen2.5-0.5b-instruct-q8_0.gguf", "Meta-Llama-3.1-8B-Instruct-Q8_0.gguf", "x.Q8_0.gguf", "Q8_0/x.gguf"],
    )
    def test_names_of_files_are_read_as_they_are_usual(self, path: str) -> None:
        assert gguf_file(_listing(path, "x-Q4_K_M.gguf"), "Q8_0").path == path

    def test_the_only_file_needs_no_name(self) -> None:
        assert gguf_file(_listing("model.gguf", "mmproj-model-f16.gguf"), "").path == "model.gguf"

    @pytest.mark.parametrize(
        ("paths", "path"),
        [
            (("model.gguf",), None),
            (("model.gguf", "mmproj-model-f16.gguf"), "mmproj-model-f16.gguf"),
            (("mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"), "mmproj-F16.gguf"),
            (("llava-7b-mmproj-Q8_0.gguf", "llava-7b-mmproj-F32.gguf"), "llava-7b-mmproj-F32.gguf"),
            (("mmproj.gguf",), "mmproj.gguf"),
        ],
    )
    def test_the_projector_is_the_least_rounded_one(self, paths: tuple[str, ...], path: str | None) -> None:
        found = projector_file(_listing(*paths))
        assert (found and found.path) == path

    def test_one_of_several_does(self) -> None:
        with pytest.raises(SourceUnavailable, match=r"several GGUF files, none with Q4_K_M; .* Q2_K, Q8_0"):
            gguf_file(_listing("x-Q8_0.gguf", "x-Q2_K.gguf"), "")

    def test_a_split_one_is_refused(self) -> None:
        parts = [f"x-Q8_0-0000{i}-of-00002.gguf" for i in (1, 2)]
        with pytest.raises(SourceUnavailable, match=r"the Q8_0 of 'acme/x' is split into 2 files"):
            gguf_file(_listing(*parts), "Q8_0")
