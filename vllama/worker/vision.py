"""A small adapter for vLLM's multimodal functions.

Written against vLLM 0.26 and 0.32 (`tests/worker/test_vision_adapter.py` holds it to them). Public: `ImageMediaIO`.
Internal, and kept to this file: `renderer.mm_processor.info.allowed_mm_limits`
(`vllm/multimodal/processing/context.py`), `get_placeholder_str` of a model's class
(`vllm/model_executor/models/interfaces.py`), and the `mm_placeholders` of a rendered prompt
(`vllm/multimodal/inputs.py: PlaceholderRange`).
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from io import BytesIO
from typing import Any

from PIL import Image, UnidentifiedImageError
from vllm.model_executor.model_loader import get_model_cls
from vllm.multimodal.media import ImageMediaIO

from vllama.errors import RequestError

MOST_PIXELS = 256 * 1024**2
"""Maximum pixels of all images of a request, 768 MiB decoded; vLLM limits a single image."""

NO_SHARED_CACHE = True
"""vLLM's `skip_mm_cache` for every prompt of ours.

vLLM's API server and engine each keep a list of the prepared images that the engine has; both go by the requests that
reach the engine. A prompt that is rendered and then dropped (too long, or its client has left) would be on one list
only, and the next request with that image would fail, in 0.26 with an assertion. With this the API server keeps a
cache of its own, and sends the engine the prepared image each time.
"""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_MARKER = re.compile(r"\[img(?:-(\d+))?\]")

Picture = Any
"""A decoded image with the bytes that it came from (`vllm.multimodal.media.MediaWithBytes`)."""


class Vision:
    """The images of one model. A model that takes none has `most_images` 0."""

    def __init__(self, renderer: Any, model_config: Any) -> None:
        self._model_config = model_config
        processor = renderer.mm_processor
        limits = processor.info.allowed_mm_limits if processor is not None else {}
        # Some models take images and videos as one kind.
        self.most_images = int(limits.get("image", 0) or limits.get("vision_chunk", 0))
        multimodal = model_config.multimodal_config
        stated = (multimodal.media_io_kwargs or {}) if multimodal is not None else {}
        self._decoder = ImageMediaIO(**{"image_mode": "RGB", **stated.get("image", {})})

    async def decode(self, images: Sequence[bytes]) -> list[Picture]:
        """Decode images, off the event loop. Raises RequestError where they are too many, too large or damaged."""
        if not images:
            return []
        if len(images) > self.most_images:
            raise RequestError(_too_many(len(images), self.most_images))
        sizes = await asyncio.to_thread(lambda: [_pixels(data) for data in images])
        if sum(sizes) > MOST_PIXELS:
            raise RequestError(
                f"invalid image input: the images have {sum(sizes)} pixels in total; the maximum is {MOST_PIXELS}. "
                "Send fewer or smaller images"
            )
        return await asyncio.gather(*(asyncio.to_thread(self._decode, data) for data in images))

    def _decode(self, data: bytes) -> Picture:
        try:
            return self._decoder.load_bytes(data)
        except Exception as error:  # PIL raises many things for a damaged file
            raise RequestError(f"invalid image input: {error}") from error

    @cached_property
    def _model_class(self) -> Any:
        return get_model_cls(self._model_config)

    def placed(self, text: str, count: int) -> str:
        """Return a raw prompt with the model's own placeholder for each image (contract §2.6).

        They take the places of `[img]` and `[img-N]`; those without a place stand before the text, unless it has the
        model's placeholders already.
        """
        wanted = [self._model_class.get_placeholder_str("image", number + 1) or "" for number in range(count)]
        unplaced = dict(enumerate(wanted))

        def placeholder(marker: re.Match[str]) -> str:
            number = int(marker[1]) if marker[1] else next(iter(unplaced), -1)
            return unplaced.pop(number, marker[0])

        text = _MARKER.sub(placeholder, text)
        missing = Counter(wanted)
        missing.subtract({each: text.count(each) for each in missing if each})
        return "".join(each * max(number, 0) for each, number in missing.items()) + text


def text_ids(prompt: dict[str, Any]) -> list[int]:
    """Return the token ids of a rendered prompt without those for its images."""
    ids: list[int] = prompt["prompt_token_ids"]
    covered = {position for taken in _ranges(prompt) for position in range(taken.offset, taken.offset + taken.length)}
    return [token_id for position, token_id in enumerate(ids) if position not in covered] if covered else ids


def images_in(prompt: dict[str, Any]) -> int:
    """Return the number of images in a rendered prompt."""
    return len(list(_ranges(prompt)))


def prepend(ids: Sequence[int], prompt: dict[str, Any], dropped: int = 0) -> None:
    """Put token ids before a rendered prompt, in the place of its first `dropped` ones."""
    prompt["prompt_token_ids"] = [*ids, *prompt["prompt_token_ids"][dropped:]]
    prompt.pop("prompt", None)  # the text of what was rendered, which it is no more
    if placeholders := prompt.get("mm_placeholders"):
        prompt["mm_placeholders"] = {
            kind: [replace(taken, offset=taken.offset + len(ids) - dropped) for taken in ranges]
            for kind, ranges in placeholders.items()
        }


def _ranges(prompt: dict[str, Any]) -> Iterator[Any]:
    for ranges in prompt.get("mm_placeholders", {}).values():
        yield from ranges


def _pixels(data: bytes) -> int:
    """Return width times height, from the image's header."""
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            return image.width * image.height
    except Exception as error:
        shown = "cannot be read" if isinstance(error, UnidentifiedImageError) else str(error)
        raise RequestError(f"invalid image input: {shown}") from error


def _too_many(count: int, most: int) -> str:
    if most == 1:  # contract §2.6
        return "this model only supports one image while more than one image requested"
    return f"this model supports {most or 'no'} images in a request, and {count} were sent"
