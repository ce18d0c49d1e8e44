"""Images in, tokens out: a random model that sees, on the real engine, through the routes that clients use."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from PIL import Image

from engine.conftest import build
from engine.server import Record, Server
from vllama.names import ModelName
from vllama.store.model_store import ModelStore
from vllama.store.pull import pull

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MODEL = "tiny-vision:latest"
GREEDY = {"temperature": 0, "num_predict": 6}
QUESTION = "What is this?"


def picture(colour: str, size: tuple[int, int] = (64, 64), form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


BLACK, WHITE = encoded(picture("black")), encoded(picture("white"))
WIDE = encoded(picture("black", (200, 100)))


@pytest.fixture(scope="module")
def sees(store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the model loaded, whose context is short and which takes three images in a request."""
    snapshot = build("tiny_vision_model.py", store, tmp_path_factory.mktemp("tiny-vision"))
    for _ in pull(store, ModelName.parse(MODEL), from_path=snapshot):
        pass
    limits = ("--max-model-len", "256", "--limit-mm-per-prompt", '{"image":3}')
    running = Server(store.root, "--model", MODEL, *limits)
    try:
        running.load(MODEL)
        yield running
    finally:
        running.close()


def generate(*images: str, **fields: Any) -> Record:
    return {"model": MODEL, "prompt": QUESTION, "images": images, "options": GREEDY, **fields}


def user(content: str, *images: str) -> Record:
    return {"role": "user", "content": content, "images": images}


def chat(*messages: Record, **fields: Any) -> Record:
    return {"model": MODEL, "messages": messages, "options": GREEDY, **fields}


def completion(*images: str, **fields: Any) -> Record:
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}} for image in images]
    content = [{"type": "text", "text": QUESTION}, *parts]
    limits = {"temperature": 0, "max_tokens": 6}
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **limits, **fields}


def content_of(records: list[Record]) -> str:
    return "".join(record["message"]["content"] if "message" in record else record["response"] for record in records)


def test_the_model_is_said_to_see_before_and_after_it_is_loaded(sees: Server) -> None:
    shown = sees.ask("/api/show", {"model": MODEL})
    (tag,) = (model for model in sees.client.get("/api/tags").json()["models"] if model["name"] == MODEL)

    assert shown["capabilities"] == ["completion", "vision"]
    assert tag["details"]["family"] == "idefics3"
    info = shown["model_info"]
    assert (info["idefics3.context_length"], info["idefics3.vision.image_size"]) == (256, 56)
    assert info["general.parameter_count"] > 49192 * 64 * 2  # the words alone


def test_what_chat_says_depends_on_the_image(sees: Server) -> None:
    black, white = (sees.ask("/api/chat", chat(user(QUESTION, image))) for image in (BLACK, WHITE))
    without = sees.ask("/api/chat", chat(user(QUESTION)))

    assert black["message"]["content"] != white["message"]["content"]
    assert black["eval_count"] == white["eval_count"] == 6
    assert black["prompt_eval_count"] == white["prompt_eval_count"] > without["prompt_eval_count"]


def test_what_generate_says_depends_on_the_image_and_is_what_chat_says(sees: Server) -> None:
    for image in (BLACK, WHITE):
        generated = sees.ask("/api/generate", generate(image))
        assert generated["response"] == sees.ask("/api/chat", chat(user(QUESTION, image)))["message"]["content"]
    assert sees.ask("/api/generate", generate(BLACK))["response"] != generated["response"]


def test_openais_route_says_of_an_image_what_ollamas_say(sees: Server) -> None:
    reply = sees.client.post("/v1/chat/completions", json=completion(BLACK)).json()
    chatted = sees.ask("/api/chat", chat(user(QUESTION, BLACK)))

    assert reply["choices"][0]["message"]["content"] == chatted["message"]["content"]
    assert reply["usage"]["prompt_tokens"] == chatted["prompt_eval_count"]


def test_an_image_on_v1_may_be_written_in_any_way_that_ollama_takes(sees: Server) -> None:
    uri = f"data:image/png;base64,{BLACK}"
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BLACK}}
    expected = sees.client.post("/v1/chat/completions", json=completion(BLACK)).json()["choices"][0]["message"]

    def said(path: str, *content: Record) -> Any:
        messages = [{"role": "user", "content": [*content]}]
        limited = {"max_output_tokens": 6, "input": messages} if "responses" in path else {"messages": messages}
        reply = sees.client.post(path, json={"model": MODEL, "temperature": 0, "max_tokens": 6, **limited})
        assert reply.status_code == 200, reply.text
        return reply.json()

    for image in (uri, {"url": uri}, {"url": uri, "detail": None}, {"url": uri, "detail": "original"}):
        text, part = {"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": image}
        message = said("/v1/chat/completions", text, part)["choices"][0]["message"]
        assert message == expected
    for detail in ({}, {"detail": None}, {"detail": "tiny"}):
        asked = {"type": "input_text", "text": QUESTION}
        shown = {"type": "input_image", "image_url": uri, "file_id": None, **detail}
        assert said("/v1/responses", asked, shown)["output"][0]["content"][0]["text"] == expected["content"]
    assert said("/v1/messages", {"type": "text", "text": QUESTION}, block)["content"][0]["text"] == expected["content"]


def test_the_plugin_knows_and_does_the_same_without_a_gateway(sees: Server) -> None:
    body = chat(user(QUESTION, WHITE), stream=False)
    transport = httpx.HTTPTransport(uds=sees.worker(MODEL).socket)
    with httpx.Client(transport=transport, base_url="http://worker", timeout=60) as plugin:
        shown = plugin.post("/api/show", json={"model": MODEL}).json()
        said = plugin.post("/api/chat", json=body).json()

    assert shown["capabilities"] == ["completion", "vision"]
    assert shown["model_info"]["general.architecture"] == "idefics3"
    assert said["message"] == sees.ask("/api/chat", body)["message"]


def test_streams_say_the_same(sees: Server) -> None:
    body = chat(user(QUESTION, WHITE))
    whole = sees.ask("/api/chat", body)["message"]["content"]
    chunks = sees.client.post("/v1/chat/completions", json=completion(WHITE, stream=True)).text.split("data: ")

    assert content_of(sees.records("/api/chat", body)) == whole
    assert content_of(sees.records("/api/generate", generate(WHITE))) == whole
    deltas = [json.loads(chunk)["choices"] for chunk in chunks if chunk.startswith("{")]
    assert "".join(choices[0]["delta"].get("content") or "" for choices in deltas if choices) == whole


def test_images_of_other_shapes_take_other_numbers_of_tokens(sees: Server) -> None:
    square, wide = (sees.ask("/api/generate", generate(image))["prompt_eval_count"] for image in (BLACK, WIDE))

    assert square != wide


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF"])
def test_other_formats_are_seen_as_well(sees: Server, form: str) -> None:
    image = encoded(picture("white", form=form))

    assert (
        sees.ask("/api/generate", generate(image))["response"] == sees.ask("/api/generate", generate(WHITE))["response"]
    )


def test_data_uris_and_line_breaks_are_taken_out(sees: Server) -> None:
    plain = sees.ask("/api/generate", generate(WHITE))["response"]
    wrapped = "\n".join(WHITE[start : start + 76] for start in range(0, len(WHITE), 76))

    assert sees.ask("/api/generate", generate(f"data:image/png;base64,{WHITE}"))["response"] == plain
    assert sees.ask("/api/generate", generate(wrapped))["response"] == plain


def test_several_images_are_seen_in_their_order(sees: Server) -> None:
    one, two = (sees.ask("/api/chat", chat(user(QUESTION, *images))) for images in ([BLACK], [BLACK, WHITE]))
    swapped = sees.ask("/api/chat", chat(user(QUESTION, WHITE, BLACK)))
    texts = {record["message"]["content"] for record in (one, two, swapped)}

    assert len(texts) == 3
    assert two["prompt_eval_count"] == swapped["prompt_eval_count"] > one["prompt_eval_count"]


def test_an_image_stands_where_its_message_has_a_marker_for_it_and_after_the_text_otherwise(sees: Server) -> None:
    def rendered(text: str) -> str:
        record = sees.ask("/api/chat", chat(user(text, WIDE), _debug_render_only=True))
        assert record["_debug_info"]["image_count"] == 1
        return str(record["_debug_info"]["rendered_template"])

    assert rendered("A[img]B").index("A") < rendered("A[img]B").index("<image>") < rendered("A[img]B").index("B")
    assert rendered("AB").index("AB") < rendered("AB").index("<image>")


def test_a_raw_prompt_takes_images_at_markers_at_the_models_own_placeholder_or_in_front(sees: Server) -> None:
    def rendered(text: str) -> str:
        record = sees.ask("/api/generate", generate(WIDE, prompt=text, raw=True, _debug_render_only=True))
        return str(record["_debug_info"]["rendered_template"])

    assert rendered("A[img-0]B") == rendered("A[img]B") == rendered("A<image>B")
    assert rendered("AB").endswith("AB")
    raw = generate(prompt="A[img]B", raw=True)
    black, white = (sees.ask("/api/generate", {**raw, "images": [image]}) for image in (BLACK, WHITE))
    assert black["response"] != white["response"]


def test_context_has_the_words_around_an_image_and_stands_before_the_next_one(sees: Server) -> None:
    first = sees.ask("/api/generate", generate(BLACK))
    plain = sees.ask("/api/generate", generate())
    second = sees.ask("/api/generate", generate(BLACK, context=first["context"]))

    assert first["context"][: plain["prompt_eval_count"]] == plain["context"][: plain["prompt_eval_count"]]
    assert second["prompt_eval_count"] == len(first["context"]) + first["prompt_eval_count"]
    assert second["response"] != sees.ask("/api/generate", generate(WHITE, context=first["context"]))["response"]


def test_messages_left_out_of_a_chat_that_is_too_long_take_their_images_along(sees: Server) -> None:
    last = user(QUESTION, WHITE)
    old = [user("x " * 100, BLACK), {"role": "assistant", "content": "y " * 60}, user("z " * 30, BLACK)]

    cut = sees.ask("/api/chat", chat(*old, last, options={**GREEDY, "num_ctx": 70}))
    assert cut["message"]["content"] == sees.ask("/api/chat", chat(last))["message"]["content"]


@pytest.mark.parametrize("truncate", [True, False])
def test_a_last_message_that_is_too_long_with_its_image_is_refused_whole(sees: Server, truncate: bool) -> None:
    def fitting(*images: str) -> Record:
        return chat(user(QUESTION, *images), truncate=truncate, options={**GREEDY, "num_ctx": 30})

    assert sees.ask("/api/chat", fitting())["prompt_eval_count"] < 30
    assert sees.refusal("/api/chat", fitting(WHITE)) == (400, "the input length exceeds the context length")


def test_an_image_whose_prompt_was_dropped_is_seen_the_next_time(sees: Server) -> None:
    fresh = encoded(picture("red"))
    sees.refusal("/api/chat", chat(user(QUESTION, fresh), truncate=False, options={**GREEDY, "num_ctx": 30}))

    assert sees.ask("/api/chat", chat(user(QUESTION, fresh)))["eval_count"] == 6
    assert sees.client.post("/v1/chat/completions", json=completion(fresh)).status_code == 200
    assert sees.ask("/api/chat", chat(user(QUESTION, fresh)))["eval_count"] == 6


def test_what_is_no_image_is_refused_with_the_reason(sees: Server) -> None:
    def refusal(*images: str) -> tuple[int, str]:
        return sees.refusal("/api/generate", generate(*images))

    assert refusal("@@notb64") == (400, "illegal base64 data at input byte 0")
    assert refusal("https://example.com/a.png") == (400, "illegal base64 data at input byte 5")
    assert refusal("file:///etc/passwd") == (400, "illegal base64 data at input byte 4")
    text = encoded(b"not an image")
    assert refusal(text) == (400, "invalid image input: images[0] is neither PNG, JPEG, WebP nor GIF")
    assert sees.refusal("/api/chat", chat(user("a"), user("b", BLACK, text))) == (
        400,
        "invalid image input: messages[1].images[1] is neither PNG, JPEG, WebP nor GIF",
    )
    status, error = refusal(encoded(picture("black")[:60]))
    assert (status, error.startswith("invalid image input: ")) == (400, True)
    assert "0x" not in error


def test_images_that_are_too_many_or_too_large_are_refused_with_the_limit(sees: Server) -> None:
    assert sees.refusal("/api/generate", generate(*[BLACK] * 4)) == (
        400,
        "this model supports 3 images in a request, and 4 were sent",
    )
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    status, error = sees.refusal("/api/generate", generate(encoded(file.getvalue())))
    assert (status, "67108864 pixels" in error) == (400, True)
    status, error = sees.refusal("/api/generate", generate(encoded(picture("black") + bytes(32 * 1024**2))))
    assert (status, "the limit is 33554432" in error) == (400, True)


@pytest.fixture
def asked() -> Iterator[socket.socket]:
    """A listening socket, for somebody who fetches to connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        yield listening


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/a.png", "http://localhost:{port}/", "file:///etc/hostname"])
@pytest.mark.parametrize("kind", ["image_url", "video_url", "audio_url"])
def test_nothing_is_fetched_for_a_request(sees: Server, asked: socket.socket, url: str, kind: str) -> None:
    body = completion()
    place = url.format(port=asked.getsockname()[1])
    body["messages"][0]["content"].append({"type": kind, kind: {"url": place}})

    assert sees.client.post("/v1/chat/completions", json=body).status_code >= 400
    with pytest.raises(BlockingIOError):
        asked.accept()


def test_a_model_without_eyes_refuses_images_in_ollamas_words(sees: Server) -> None:
    refusal = (400, "registry.ollama.ai/library/smollm2:135m does not support vision")

    assert sees.refusal("/api/generate", generate(BLACK, model="smollm2:135m")) == refusal
    assert sees.refusal("/api/chat", chat(user("hi", BLACK), model="smollm2:135m")) == refusal
    assert sees.loaded() == [MODEL]


def test_text_alone_is_answered_too_even_with_the_models_placeholder_in_it(sees: Server) -> None:
    assert sees.ask("/api/chat", chat(user("Hello")))["eval_count"] == 6
    assert sees.ask("/api/chat", chat(user("Hello <image>")))["eval_count"] == 6
    # More placeholders than images: an answer or a clear refusal, and a model that is still there.
    assert sees.post("/api/chat", chat(user("Hello <image>", BLACK), stream=False)).status_code in {200, 400}
    assert sees.ask("/api/chat", chat(user("Hello")))["eval_count"] == 6


def test_the_official_client_takes_paths_bytes_and_text(sees: Server, tmp_path: Path) -> None:
    path = tmp_path / "white.png"
    path.write_bytes(picture("white"))
    client = ollama.Client(host=sees.url, timeout=120)
    forms: list[Any] = [path, str(path), picture("white"), WHITE]
    try:
        said = {client.generate(MODEL, QUESTION, images=[image], options=GREEDY).response for image in forms}
        message = {"role": "user", "content": QUESTION, "images": [str(path)]}
        chatted = client.chat(MODEL, [message], options=GREEDY).message.content
    finally:
        client._client.close()

    assert said == {chatted}


def test_requests_with_different_images_at_once_do_not_mix(sees: Server) -> None:
    colours = ["black", "white", "red", "green", "blue", "yellow"]
    bodies = [chat(user(QUESTION, encoded(picture(colour)))) for colour in colours]
    alone = [sees.ask("/api/chat", body)["message"]["content"] for body in bodies]

    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: sees.ask("/api/chat", body)["message"]["content"], bodies))

    assert len(set(alone)) > 1
    assert together == alone
