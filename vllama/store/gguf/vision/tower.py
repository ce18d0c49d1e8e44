"""The vision tower of a model: in a file of its own (llama.cpp's "mmproj"), or in the file of the text model (Ollama).

A tower in a file of its own has the architecture "clip", so the key "{arch}.vision.block_count" is in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllama.errors import StoreError
from vllama.store.gguf.architectures.names import PROJECTOR, VISION_INSIDE, projector_kind
from vllama.store.gguf.reading import GgufFile

TENSORS = ("v.", "mm.", "model.image_newline")
"""How names of a tower's tensors begin."""


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower and the layers between it and the text model.

    `file` has the tower's tensors only. `kind` is a value of `clip.projector_type` (llama.cpp's
    tools/mtmd/clip-impl.h, `PROJECTOR_TYPETENSORS`).
    """

    file: GgufFile
    kind: str

    @property
    def has_own_file(self) -> bool:
        """Whether llama.cpp's converter wrote it; Ollama's has other names, and leaves tensors as they are."""
        return self.file.architecture == PROJECTOR

    def number(self, name: str, default: int | None = None) -> int:
        """Return the key of this name. Raises StoreError if it is missing and there is no default."""
        key = f"{{arch}}.vision.{name}"
        return int(self.file.key(key) if default is None else self.file.key(key, default))

    def real(self, name: str, default: float) -> float:
        """Return the key of this name as a float."""
        return float(self.file.key(f"{{arch}}.vision.{name}", default))

    def colours(self, name: str, default: tuple[float, float, float]) -> list[float]:
        """Return a value for each colour: `image_mean` or `image_std`."""
        stated = self.file.key(f"{{arch}}.vision.{name}", None)
        values = stated if isinstance(stated, list) and len(stated) == 3 else default
        return [round(float(value), 8) for value in values]  # 32-bit floats have no more digits

    def sizes(self) -> dict[str, int]:
        """Return the sizes that a tower of transformers has in its `vision_config`."""
        return {
            "hidden_size": self.number("embedding_length"),
            "intermediate_size": self.number("feed_forward_length"),
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.number("attention.head_count"),
            "num_channels": 3,
            "image_size": self.number("image_size"),
            "patch_size": self.number("patch_size"),
        }

    @property
    def layers(self) -> int:
        """The number of layers."""
        return self.number("block_count")


def separate(file: GgufFile, projector: GgufFile | None = None) -> tuple[GgufFile, Tower | None]:
    """Return the text model without its tower, and the tower of this or of the other file; None if there is none.

    Raises StoreError for a tower in both, and for a projector that is none.
    """
    inside = {name: tensor for name, tensor in file.tensors.items() if name.startswith(TENSORS)}
    if projector is not None:
        if inside:
            raise StoreError("the model has a vision tower of its own, so it takes no projector (mmproj)")
        return file, Tower(projector, _kind(projector))
    if not inside:
        return file, None
    kind = VISION_INSIDE.get(file.architecture)
    if kind is None:
        raise StoreError(f"the vision tower inside files of architecture '{file.architecture}' cannot be converted")
    rest = {name: tensor for name, tensor in file.tensors.items() if name not in inside}
    return file.only(rest), Tower(file.only(inside), kind)


def _kind(projector: GgufFile) -> str:
    if projector.architecture != PROJECTOR:
        raise StoreError(f"a file of architecture '{projector.architecture}' is no projector (mmproj)")
    keys: Mapping[str, Any] = projector.keys
    if keys.get("clip.has_audio_encoder") is True and keys.get("clip.has_vision_encoder") is not True:
        raise StoreError("the projector (mmproj) is for sound, which cannot be converted")
    return projector_kind(keys)
