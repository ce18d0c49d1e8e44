"""What is taken for an image, by its first bytes and its size (contract §2.6)."""

from __future__ import annotations

import pytest

from vllama.errors import RequestError
from vllama.ollama import images
from vllama.ollama.images import check_images

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "data", [PNG, b"\xff\xd8\xff\xe0", b"GIF87a", b"GIF89a", b"RIFF\x00\x00\x00\x00WEBP"], ids=repr
)
def test_the_usual_formats_are_images(data: bytes) -> None:
    check_images([data, data], "images")


@pytest.mark.parametrize(
    "data", [b"hi", b"\x89PNG", b"RIFF\x00\x00\x00\x00WAVE", b"%PDF-1.7", b"<svg/>", b"BM"], ids=repr
)
def test_anything_else_is_refused_and_which_one_it_was_is_said(data: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        check_images([PNG, data], "messages[3].images")
    assert str(refused.value) == ("invalid image input: messages[3].images[1] is neither PNG, JPEG, WebP nor GIF")


def test_nothing_is_no_image() -> None:
    with pytest.raises(RequestError, match=r"images\[0\] is empty$"):
        check_images([b""], "images")


def test_an_image_over_the_limit_is_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_BYTES", len(PNG))
    check_images([PNG], "images")
    with pytest.raises(RequestError, match=r"images\[0\] has 9 bytes, the limit is 8; send a smaller image$"):
        check_images([PNG + b"x"], "images")
