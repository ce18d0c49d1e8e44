"""Which messages the chat template sees (contract §2.3)."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from vllama.ollama.requests import ChatRequest, GenerateRequest
from vllama.protocol.profile import Profile
from vllama.worker.conversation import (
    TemplateMessage,
    images_of,
    of_chat,
    of_generate,
    plain_text,
    shortened,
    with_images,
)

PLAIN = Profile("m", ("completion",))
MARIO = Profile("m", ("completion",), system="You are Mario.", messages=(("user", "who?"), ("assistant", "me")))


def said(role: str, content: str | list[dict[str, Any]], **more: Any) -> TemplateMessage:
    return {"role": role, "content": content, **more}


def generate(**fields: Any) -> GenerateRequest:
    return GenerateRequest.parse(orjson.dumps({"model": "m", "prompt": "hi", **fields}))


def chat(*messages: dict[str, Any]) -> ChatRequest:
    return ChatRequest.parse(orjson.dumps({"model": "m", "messages": messages}))


WHO, ME = said("user", "who?"), said("assistant", "me")


@pytest.mark.parametrize(
    ("request_", "profile", "conversation"),
    [
        (generate(), PLAIN, [said("user", "hi")]),
        (generate(system="Be brief."), PLAIN, [said("system", "Be brief."), said("user", "hi")]),
        (generate(), MARIO, [said("system", "You are Mario."), WHO, ME, said("user", "hi")]),
        (generate(system="Be brief."), MARIO, [said("system", "Be brief."), WHO, ME, said("user", "hi")]),
        (generate(context=[1, 2]), MARIO, [said("system", "You are Mario."), said("user", "hi")]),
    ],
    ids=["plain", "own system", "the model's system and examples", "own system wins", "context replaces the examples"],
)
def test_a_completion_is_a_conversation_of_one_turn(
    request_: GenerateRequest, profile: Profile, conversation: list[TemplateMessage]
) -> None:
    assert of_generate(request_, profile) == conversation


def test_a_chat_is_the_clients_messages() -> None:
    request = chat(said("system", "s"), said("user", "a"), said("assistant", "b"), said("user", "c"))
    assert of_chat(request, PLAIN) == [
        said("system", "s"),
        said("user", "a"),
        said("assistant", "b"),
        said("user", "c"),
    ]


def test_the_models_system_and_examples_stand_before_the_clients_messages() -> None:
    assert of_chat(chat(said("user", "hi")), MARIO) == [said("system", "You are Mario."), WHO, ME, said("user", "hi")]


def test_the_models_system_gives_way_to_a_system_message_that_comes_first() -> None:
    request = chat(said("SYSTEM", "Be brief."), said("user", "hi"))
    assert of_chat(request, MARIO) == [WHO, ME, said("system", "Be brief."), said("user", "hi")]


def test_a_system_message_further_down_does_not_replace_the_models() -> None:
    request = chat(said("user", "hi"), said("system", "Be brief."))
    assert of_chat(request, MARIO)[0] == said("system", "You are Mario.")


def test_a_call_and_its_result_have_the_shape_that_templates_know() -> None:
    request = chat(
        said("assistant", "", tool_calls=[{"id": "call_x", "function": {"name": "f", "arguments": {"b": 1, "a": 2}}}]),
        said("tool", "sunny", tool_name="f", tool_call_id="call_x"),
    )
    call = {"id": "call_x", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": 2}}}
    shaped = of_chat(request, PLAIN)
    assert shaped == [
        said("assistant", "", tool_calls=[call]),
        said("tool", "sunny", name="f", tool_call_id="call_x"),
    ]
    assert list(shaped[0]["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]  # the model's own order


def test_calls_without_an_id_get_different_ones() -> None:
    function = {"name": "f", "arguments": {}}
    [shaped] = of_chat(chat(said("assistant", "", tool_calls=[{"function": function}, {"function": function}])), PLAIN)
    ids = [call["id"] for call in shaped["tool_calls"]]
    assert len(set(ids)) == 2
    assert all(ids)


def test_earlier_thinking_is_kept_for_templates_that_want_it() -> None:
    [shaped] = of_chat(chat(said("assistant", "4", thinking="2+2")), PLAIN)
    assert shaped == said("assistant", "4", reasoning="2+2")


A, B, C = b"a", b"b", b"c"


def image(content: Any) -> dict[str, Any]:
    return {"type": "image_pil", "image_pil": content}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def seen(content: str, *images: bytes) -> dict[str, Any]:
    return said("user", content, images=[base64.b64encode(image).decode() for image in images])


@pytest.mark.parametrize(
    ("content", "images", "parts"),
    [
        ("look", [A, B], [text("look"), image(A), image(B)]),
        ("", [A], [image(A)]),
        ("this [img] and [img]!", [A, B], [text("this "), image(A), text(" and "), image(B), text("!")]),
        ("[img] look", [A, B], [image(A), text(" look"), image(B)]),
        ("[img][img]", [A], [image(A), text("[img]")]),
        ("[img]", [], "[img]"),
    ],
    ids=["after the text", "without text", "at markers", "markers for some", "a marker too many", "none"],
)
def test_images_follow_the_text_unless_it_has_markers_for_them(content: str, images: list[bytes], parts: Any) -> None:
    assert of_chat(chat(seen(content, *images)), PLAIN) == [said("user", parts)]


def test_the_images_of_a_completion_belong_to_its_one_message() -> None:
    request = generate(images=[base64.b64encode(A).decode()])
    assert of_generate(request, MARIO)[-1] == said("user", [text("hi"), image(A)])
    assert of_generate(request, MARIO)[:-1] == of_generate(generate(), MARIO)[:-1]


def test_images_are_put_in_place_of_what_was_sent_in_order() -> None:
    conversation = of_chat(chat(seen("one", A, B), said("assistant", "ok"), seen("[img] two", C)), PLAIN)
    assert images_of(conversation) == [A, B, C]
    decoded = with_images(conversation, ["A", "B", "C"])
    assert images_of(decoded) == ["A", "B", "C"]
    assert decoded[1] == conversation[1]
    assert images_of(conversation) == [A, B, C]


def test_a_dropped_message_takes_its_images_along() -> None:
    conversation = of_chat(chat(said("system", "s"), seen("one", A), seen("two", B)), PLAIN)
    assert images_of(shortened(conversation, 2)) == [B]


def test_without_a_template_markers_tell_where_the_images_stand() -> None:
    conversation = of_chat(chat(seen("one", A), said("assistant", "ok"), seen("a[img]b", B)), PLAIN)
    assert plain_text(conversation) == "one[img]\nok\na[img]b"
