"""An Ollama store on disk, laid out as the real one: manifests, and blobs named by their checksum."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

PREFIX = "application/vnd.ollama.image."


def gguf_bytes(
    architecture: str = "llama", rest: bytes = b"", keys: Mapping[str, int | str] | None = None, tensors: int = 0
) -> bytes:
    """Return the header of a GGUF file: texts, numbers, an array of texts and one of numbers.

    `rest` follows: what is said of each of the `tensors`, and they themselves.
    """

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def typed(value: int | str) -> bytes:
        return struct.pack("<I", 8) + text(value) if isinstance(value, str) else struct.pack("<II", 4, value)

    pairs = [
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc"),
        text("tokenizer.ggml.scores") + struct.pack("<IIQff", 9, 6, 2, 0.5, 1.0),
        text("general.architecture") + typed(architecture),
        *(text(key) + typed(value) for key, value in (keys or {}).items()),
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(pairs)) + b"".join(pairs) + rest


def converts_to(snapshot: Path) -> Callable[..., Iterator[tuple[int, int]]]:
    """Return a stand-in for the conversion of a GGUF, of which always this snapshot comes."""

    def convert(
        source: Path, destination: Path, precision: str, projector: Path | None = None
    ) -> Iterator[tuple[int, int]]:
        assert all(path.exists() for path in (source, projector) if path)
        shutil.copytree(snapshot, destination)
        config = json.loads((destination / "config.json").read_bytes())
        config["gguf"] = {"precision": precision}
        (destination / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield from ()

    return convert


class OllamaLayout:
    """Ollama's OLLAMA_MODELS, which is filled model by model."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "blobs").mkdir(parents=True)

    def blob(self, data: bytes) -> str:
        """Store a blob and return its digest."""
        digest = hashlib.sha256(data).hexdigest()
        (self.directory / "blobs" / f"sha256-{digest}").write_bytes(data)
        return f"sha256:{digest}"

    def layer(self, kind: str, data: bytes) -> dict[str, Any]:
        """Store a layer's blob and return what a manifest says of it."""
        return {"mediaType": PREFIX + kind, "digest": self.blob(data), "size": len(data)}

    def manifest(self, *layers: dict[str, Any], **config: Any) -> dict[str, Any]:
        """Return a manifest of these layers, in their order."""
        data = json.dumps({"model_format": "gguf", "architecture": "amd64", "os": "linux", **config}).encode()
        return {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": self.blob(data),
                "size": len(data),
            },
            "layers": list(layers),
        }

    def write(self, path: str, manifest: dict[str, Any], *, folder: str = "manifests") -> Path:
        """Give a manifest its name, `host/namespace/model/tag`; in manifests-v2 it is a link to a blob."""
        place = self.directory / folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps(manifest).encode()
        if folder == "manifests":
            place.write_bytes(data)
        else:
            place.symlink_to(self.directory / "blobs" / self.blob(data).replace(":", "-"))
        return place
