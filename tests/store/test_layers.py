from __future__ import annotations

from pathlib import Path
from typing import Any

from vllama.store.layers import layers
from vllama.store.manifest import ChatMessage, content_digest

from .conftest import make_manifest

CHATML = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
STOPS = {"stop": ["<|im_start|>", "<|im_end|>"]}

# Digests that Ollama 0.24.0 gave to the same template and the same parameters.
CHATML_DIGEST = "sha256:e3b2721cec511e3a627ae0993753abbf5c72cdf4cfcdbc8f5c33ce15c4c4e04b"
STOPS_DIGEST = "sha256:f02dd72bb2423204352eabc5637b44d79d17f109fdb510a7c51455892aa2d216"
HOT_DIGEST = "sha256:21b961cfd29cd00de03d8370a4733802b56c2a3ef3d0fe75240ffc8d51f4da04"


def test_template_and_parameters_have_the_digests_that_ollama_gives_them() -> None:
    assert layers(make_manifest(template=CHATML, parameters=STOPS))[1:] == [CHATML_DIGEST, STOPS_DIGEST]
    assert layers(make_manifest(parameters={"temperature": "hot", **STOPS}))[1:] == [HOT_DIGEST]


def test_the_first_layer_is_the_files_by_the_name_of_their_snapshot(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    manifest = make_manifest(snapshot=tmp_path)
    assert layers(manifest) == [f"sha256:{content_digest(manifest.files)}"]


def test_each_part_that_says_something_is_a_layer() -> None:
    parts: dict[str, Any] = {
        "template": "T",
        "system": "S",
        "license": "L",
        "parameters": {"seed": 1},
        "messages": (ChatMessage("user", "hi"),),
    }
    bare = layers(make_manifest())
    for part, value in parts.items():
        assert len(layers(make_manifest(**{part: value}))) == len(bare) + 1
    everything = layers(make_manifest(**parts))
    assert len(set(everything)) == len(everything) == len(bare) + len(parts)
