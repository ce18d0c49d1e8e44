"""vLLM's multimodal side as `vllama/worker/vision.py` uses it: decoding, limits, placeholders, the prompts with images.

No engine starts here. Where one of these fails after an upgrade, the adapter is the file to change.
"""

from __future__ import annotations

import importlib
import inspect
import io
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from PIL import Image

from vllama.errors import RequestError

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # what vLLM's imports warn of is not ours
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def adapter() -> Any:
    """vllama.worker.vision; importing it imports vLLM, which takes seconds."""
    return importlib.import_module("vllama.worker.vision")


def vision_of(adapter: Any, **limits: int) -> Any:
    """The adapter over a model with these limits."""
    renderer = SimpleNamespace(mm_processor=MagicMock(**{"info.allowed_mm_limits": limits}))
    config = SimpleNamespace(multimodal_config=SimpleNamespace(media_io_kwargs=None))
    return adapter.Vision(renderer, config)


@pytest.fixture
def vision(adapter: Any) -> Any:
    """The adapter over a model that takes two images in a request."""
    return vision_of(adapter, image=2)


def picture(mode: str = "RGB", size: tuple[int, int] = (4, 2), form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form)
    return file.getvalue()


def test_a_model_takes_as_many_images_as_vllm_says(adapter: Any) -> None:
    assert vision_of(adapter, image=3, video=1).most_images == 3
    assert vision_of(adapter, vision_chunk=2).most_images == 2
    assert vision_of(adapter, audio=1).most_images == vision_of(adapter, image=0).most_images == 0
    text = SimpleNamespace(mm_processor=None), SimpleNamespace(multimodal_config=None)
    assert adapter.Vision(*text).most_images == 0


@pytest.mark.anyio
@pytest.mark.parametrize(("mode", "form"), [("RGB", "PNG"), ("RGBA", "WEBP"), ("CMYK", "JPEG"), ("P", "GIF")])
async def test_images_are_decoded_to_rgb_beside_the_bytes_they_came_from(vision: Any, mode: str, form: str) -> None:
    data = picture(mode, form=form)
    first, second = await vision.decode([data, data])
    assert (first.mode, first.size, first.original_bytes) == ("RGB", (4, 2), data)
    assert second.size == (4, 2)
    assert await vision.decode([]) == []


@pytest.mark.anyio
@pytest.mark.parametrize("cut", [9, 40, -20])
async def test_a_damaged_image_is_refused_and_no_address_of_ours_is_told(vision: Any, cut: int) -> None:
    with pytest.raises(RequestError, match=r"^invalid image input: ") as refused:
        await vision.decode([picture(size=(64, 64))[:cut]])
    assert " at 0x" not in str(refused.value)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"image": 1}, "this model only supports one image while more than one image requested"),
        ({"image": 2}, "this model supports 2 images in a request, and 3 were sent"),
        ({"audio": 1}, "this model supports no images in a request, and 3 were sent"),
    ],
)
async def test_too_many_images_are_refused_before_they_are_decoded(
    adapter: Any, limits: dict[str, int], message: str
) -> None:
    with pytest.raises(RequestError) as refused:
        await vision_of(adapter, **limits).decode([b"", b"", b""])
    assert str(refused.value) == message


@pytest.mark.anyio
async def test_an_image_with_too_many_pixels_is_refused_with_vllms_limit(
    vision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "7")
    with pytest.raises(RequestError, match=r"4x2 \(8 pixels\) exceed the maximum of 7 pixels"):
        await vision.decode([picture()])


@pytest.mark.anyio
async def test_images_with_too_many_pixels_together_are_refused_with_our_limit(
    adapter: Any, vision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "MOST_PIXELS", 15)
    await vision.decode([picture()])
    with pytest.raises(RequestError, match=r"have 16 pixels in total; the maximum is 15"):
        await vision.decode([picture(), picture()])


@pytest.mark.parametrize(
    ("text", "count", "placed"),
    [
        ("a", 1, "<1>a"),
        ("a", 2, "<1><2>a"),
        ("a[img]b", 1, "a<1>b"),
        ("[img-1] then [img-0]", 2, "<2> then <1>"),
        ("[img] and [img-0]", 1, "<1> and [img-0]"),
        ("[img-7]", 1, "<1>[img-7]"),
        ("a<1>b", 1, "a<1>b"),
        ("a<1>b", 2, "<2>a<1>b"),
        ("[img]", 0, "[img]"),
    ],
)
def test_placeholders_of_a_raw_prompt(vision: Any, text: str, count: int, placed: str) -> None:
    vision.__dict__["_model_class"] = SimpleNamespace(get_placeholder_str=lambda _, number: f"<{number}>")
    assert vision.placed(text, count) == placed


def test_the_same_placeholder_for_every_image_is_counted(vision: Any) -> None:
    vision.__dict__["_model_class"] = SimpleNamespace(get_placeholder_str=lambda *_: "<image>")
    assert vision.placed("<image> or [img]", 2) == "<image> or <image>"
    assert vision.placed("<image> or what", 2) == "<image><image> or what"


def prompt(adapter: Any) -> dict[str, Any]:
    """A prompt whose images are at positions 1 and 2, and at 4."""
    ranges = importlib.import_module("vllm.multimodal.inputs").PlaceholderRange
    placeholders = {"image": [ranges(offset=1, length=2), ranges(offset=4, length=1)]}
    return {"prompt_token_ids": [10, 0, 0, 11, 0, 12], "prompt": "…", "mm_placeholders": placeholders}


def test_the_text_of_a_prompt_is_what_is_no_image(adapter: Any) -> None:
    assert adapter.text_ids(prompt(adapter)) == [10, 11, 12]
    assert adapter.text_ids({"prompt_token_ids": [1, 2]}) == [1, 2]
    assert adapter.images_in(prompt(adapter)) == 2
    assert adapter.images_in({"prompt_token_ids": [1, 2]}) == 0


def test_what_is_put_before_a_prompt_moves_its_images(adapter: Any) -> None:
    rendered = prompt(adapter)
    adapter.prepend([1, 2, 3], rendered)
    assert rendered["prompt_token_ids"] == [1, 2, 3, 10, 0, 0, 11, 0, 12]
    assert [(taken.offset, taken.length) for taken in rendered["mm_placeholders"]["image"]] == [(4, 2), (7, 1)]
    assert adapter.text_ids(rendered) == [1, 2, 3, 10, 11, 12]
    assert "prompt" not in rendered


def test_what_is_put_before_a_prompt_may_take_the_place_of_its_first_tokens(adapter: Any) -> None:
    rendered = prompt(adapter)
    adapter.prepend([1, 2, 3], rendered, dropped=1)
    assert rendered["prompt_token_ids"] == [1, 2, 3, 0, 0, 11, 0, 12]
    assert [(taken.offset, taken.length) for taken in rendered["mm_placeholders"]["image"]] == [(3, 2), (6, 1)]


def test_openais_request_keeps_a_decoded_image_as_it_is() -> None:
    protocol = importlib.import_module("vllm.entrypoints.openai.chat_completion.protocol")
    media = importlib.import_module("vllm.multimodal.media")
    decoded = media.ImageMediaIO().load_bytes(picture())
    parts = [{"type": "text", "text": "hi"}, {"type": "image_pil", "image_pil": decoded}]
    request = protocol.ChatCompletionRequest(messages=[{"role": "user", "content": parts}])

    kept = list(request.messages[0]["content"])
    assert kept[1]["type"] == "image_pil"
    assert kept[1]["image_pil"] is decoded


def test_vllm_has_what_the_adapter_was_written_against() -> None:
    interfaces = importlib.import_module("vllm.model_executor.models.interfaces")
    context = importlib.import_module("vllm.multimodal.processing.context")
    renderers = importlib.import_module("vllm.renderers")
    online = importlib.import_module("vllm.renderers.online_renderer").OnlineRenderer

    assert list(inspect.signature(interfaces.SupportsMultiModal.get_placeholder_str).parameters) == ["modality", "i"]
    assert context.BaseProcessingInfo.allowed_mm_limits is not None
    for method in (
        renderers.BaseRenderer.render_chat_async,
        renderers.BaseRenderer.render_cmpl_async,
        online.render_chat,
    ):
        assert "skip_mm_cache" in inspect.signature(method).parameters


def test_the_flags_and_limits_that_keep_vllm_from_fetching_exist() -> None:
    serve = importlib.import_module("vllm.entrypoints.cli.serve").ServeSubcommand()
    parser = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser(prog="vllm")
    serve.subparser_init(parser.add_subparsers(required=False, dest="subparser"))
    flags = ["--allowed-media-domains", "no remote media", "--mm-processor-cache-gb", "1"]
    parsed = parser.parse_args(["serve", "m", *flags])

    assert parsed.allowed_media_domains == ["no remote media"]
    assert parsed.mm_processor_cache_gb == 1
    assert not parsed.allowed_local_media_path
    connector = importlib.import_module("vllm.multimodal.media").MediaConnector(
        allowed_media_domains=parsed.allowed_media_domains
    )
    for url in ("http://localhost/", "https://example.com/a", "http:///x", "http://no%20remote%20media/", "HTTP://a"):
        with pytest.raises(ValueError, match="allowed domains"):
            connector.fetch_image(url)
    with pytest.raises(RuntimeError, match="allowed-local-media-path"):
        connector.fetch_image("file:///etc/passwd")


def test_the_installed_multimodal_architectures_are_those_that_vllm_lists() -> None:
    listed = importlib.import_module("vllm.model_executor.models.registry")._MULTIMODAL_MODELS
    installed = importlib.import_module("vllama.installed.registry").installed_vllm().multimodal

    assert installed == set(listed)
    assert {"LlavaForConditionalGeneration", "Idefics3ForConditionalGeneration"} <= installed
