"""What chat templates refuse is repaired, through vLLM's own call of the tokenizer; no engine starts here."""

from __future__ import annotations

import copy
import logging
import os
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from client_conversations import (
    AGAIN,
    ANSWER,
    BRIEF,
    COUNTED,
    HELLO,
    SHAPES,
    WEATHER,
    Message,
    Shape,
    call,
    calling,
    result,
    said,
)
from llama_cpp_sources import chat_templates
from refusing_templates import REFUSING
from sampling import count

# vLLM is imported (its imports warn), but no engine started.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

GEMMA = REFUSING["strictly alternating, no system (Gemma 2)"]
MISTRAL = REFUSING["alternating after the system message, ids of nine (Mistral)"]
QWEN = REFUSING["system first, and a user (Qwen 3.5)"]
LLAMA = REFUSING["one call at once (Llama 3)"]
"""Four of them by the families' names."""


@cache
def tokenizer() -> Any:
    """A tokenizer of a few words, whose conversations are repaired as a worker's are."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from vllm.tokenizers.hf import maybe_make_thread_pool

    from vllama.worker.chat_templates import repair_for

    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>")),
        bos_token="<s>",
        eos_token="</s>",
    )
    maybe_make_thread_pool(made)  # as vLLM's renderer does: its methods take any arguments
    repair_for(made, "library/strict:latest")
    return made


def prompt(template: str, messages: list[Message], tools: Any = None, **arguments: Any) -> str:
    """Render as vLLM's renderer does."""
    from vllm.renderers.hf import safe_apply_chat_template

    given = {"add_generation_prompt": True, "continue_final_message": False, **arguments}
    config: Any = SimpleNamespace()
    conversation: Any = copy.deepcopy(messages)
    rendered = safe_apply_chat_template(
        config, tokenizer(), conversation, tools=copy.deepcopy(tools), chat_template=template, tokenize=False, **given
    )
    return str(rendered)


def is_refused(template: str, messages: list[Message], tools: Any) -> bool:
    """Whether the template raises without the repairs."""
    given = {"add_generation_prompt": True, "tokenize": False, "return_dict": False}
    try:
        tokenizer().apply_chat_template.__wrapped__(
            conversation=copy.deepcopy(messages), tools=tools, chat_template=template, **given
        )
    except Exception:  # noqa: BLE001 - a template may raise anything
        return True
    return False


def lost(rendered: str, messages: list[Message]) -> list[str]:
    """Return the texts and calls of a conversation that are not in a prompt; text beside calls may be missing."""
    texts = [m["content"] for m in messages if m["content"] and not m.get("tool_calls")]
    calls = [c["function"]["name"] for m in messages for c in m.get("tool_calls") or ()]
    return [text for text in texts + calls if text not in rendered]


@pytest.mark.parametrize("template", REFUSING.values(), ids=REFUSING)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_conversation_is_rendered_and_a_refused_one_is_whole(template: str, shape: Shape) -> None:
    messages, tools = shape
    rendered = prompt(template, messages, tools)
    if is_refused(template, messages, tools):
        assert not lost(rendered, messages)


@pytest.mark.parametrize("template", REFUSING.values(), ids=REFUSING)
def test_the_templates_refuse_some_conversations(template: str) -> None:
    assert any(is_refused(template, messages, tools) for messages, tools in SHAPES.values())


def test_a_conversation_that_is_not_refused_stays_as_it_is() -> None:
    assert prompt(QWEN, [BRIEF, HELLO]) == "<system>Be brief.\n<user>Hello.\n<assistant>"


def test_a_system_message_goes_before_the_first_user_message() -> None:
    assert prompt(GEMMA, [BRIEF, HELLO]) == "<user>Be brief.\n\nHello.\n<assistant>"


def test_a_system_message_alone_becomes_the_user_s() -> None:
    assert prompt(GEMMA, [BRIEF]) == "<user>Be brief.\n<assistant>"
    assert prompt(QWEN, [BRIEF]) == "<user>Be brief.\n<assistant>"


def test_late_system_messages_are_joined_at_the_beginning() -> None:
    assert prompt(QWEN, [BRIEF, HELLO, ANSWER, said("system", "In French."), AGAIN]) == (
        "<system>Be brief.\n\nIn French.\n<user>Hello.\n<assistant>Hi there.\n<user>Once more, please.\n<assistant>"
    )
    assert prompt(GEMMA, [HELLO, ANSWER, said("system", "In French."), AGAIN]).startswith("<user>In French.\n\nHello.")


def test_messages_of_one_role_are_joined() -> None:
    assert prompt(MISTRAL, [HELLO, AGAIN]) == "<user>Hello.\n\nOnce more, please.\n<assistant>"
    answers = [HELLO, ANSWER, said("assistant", "How are you?"), AGAIN]
    assert "<assistant>Hi there.\n\nHow are you?\n" in prompt(MISTRAL, answers)


def test_an_assistant_that_speaks_first_answers_an_empty_message() -> None:
    expected = "<user>\n<assistant>Hi there.\n<user>Once more, please.\n<assistant>"
    assert prompt(GEMMA, [ANSWER, AGAIN]) == expected
    assert prompt(MISTRAL, [BRIEF, ANSWER, AGAIN]) == f"<system>Be brief.\n{expected}"


def test_calls_and_results_get_the_same_ids_of_nine_letters_and_digits() -> None:
    with_ids = MISTRAL.replace("[{{ c.f", "[{{ c.id }} {{ c.f").replace(
        "{{ m.content", "{{ m.tool_call_id }} {{ m.content"
    )
    for shape in ("two calls", "result without id", "a long run of an agent"):
        rendered = prompt(with_ids, *SHAPES[shape])
        made, answered = re.findall(r"\[(\w{9}) ", rendered), re.findall(r"<tool>(\w{9}) ", rendered)
        assert made == answered
        assert len(set(made)) == len(made) > 0


def test_an_id_that_a_template_takes_is_kept() -> None:
    with_ids = MISTRAL.replace("[{{ c.f", "[{{ c.id }} {{ c.f")
    messages = [HELLO, calling(call("aB3dE6gH9")), result("aB3dE6gH9"), AGAIN, AGAIN]
    assert "[aB3dE6gH9 get_weather(" in prompt(with_ids, messages, [WEATHER])


def test_calls_at_once_come_one_after_the_other_each_with_its_result() -> None:
    messages, tools = SHAPES["two calls"]
    crossed = [*messages[:2], messages[3], messages[2]]
    for given in (messages, crossed):
        assert re.findall(r"<(?:assistant|tool)>(.*)\n", prompt(LLAMA, given, tools)) == [
            '[get_weather({"city": "Paris"})]',
            "sunny",
            '[get_weather({"city": "Rome"})]',
            "rainy",
        ]


def test_a_template_without_tools_gets_calls_and_results_as_text() -> None:
    assert prompt(GEMMA, *SHAPES["call and result"]) == (
        '<user>Hello.\n<assistant>{"tool_calls": [{"name": "get_weather", "arguments": {"city": "Paris"}}]}\n'
        '<user>{"tool_response": {"name": "get_weather", "content": "sunny"}}\n<assistant>'
    )


def test_a_call_s_format_matters_more_than_the_text_beside_it() -> None:
    silent = MISTRAL.replace("{{ m.content }}", "{{ '' if m.tool_calls else m.content }}")
    assert '<assistant>[get_weather({"city": "Paris"})]\n' in prompt(silent, *SHAPES["text beside a call"])


def test_a_call_is_not_lost_to_a_template_that_wants_a_text_or_calls() -> None:
    template = (
        "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls[0].function.name }}"
        "{{ '' + m.tool_calls[0].function.arguments }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert 'get_weather{"city": "Paris"}' in prompt(template, *SHAPES["call with null content"])


def test_texts_beside_images_are_joined_in_order() -> None:
    template = GEMMA.replace("{{ m.content | trim }}", "{% for p in m.content %}{{ p.text or p.type }} {% endfor %}")
    picture = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert prompt(template, [system, picture]) == "<user>Be brief. image What is it? <assistant>"


def test_a_repair_is_logged_once_for_each_kind_and_names_the_model(caplog: pytest.LogCaptureFixture) -> None:
    template = GEMMA + "{# logged #}"
    with caplog.at_level(logging.WARNING, "vllama"):
        for _ in range(3):
            prompt(template, [BRIEF, HELLO])
        prompt(template, [BRIEF, HELLO, AGAIN])

    assert [record.getMessage() for record in caplog.records if record.name.startswith("vllama")] == [
        "the chat template of library/strict:latest refuses a system message: it was put before the first user message",
        "the chat template of library/strict:latest refuses messages of one role in a row: they were joined",
    ]


def test_what_no_repair_helps_against_is_refused_in_the_template_s_words() -> None:
    with pytest.raises(Exception, match=r"^the chat template cannot render these messages: We are closed\.$"):
        prompt("{{ raise_exception('We are closed.') }}", [BRIEF, HELLO])


def test_an_assistant_s_last_message_is_continued() -> None:
    messages = [BRIEF, HELLO, said("assistant", "The capital of France is")]
    assert prompt(QWEN, messages) == "<system>Be brief.\n<user>Hello.\n<assistant>The capital of France is"
    assert prompt(GEMMA, messages) == "<user>Be brief.\n\nHello.\n<assistant>The capital of France is"
    assert prompt(MISTRAL, [HELLO, said("assistant", "The capital\n")]).endswith("<assistant>The capital\n")


def test_a_template_that_does_not_show_the_last_message_begins_a_new_one() -> None:
    template = (
        "{% for m in messages if m.role == 'user' %}<user>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert prompt(template, [HELLO, ANSWER]) == "<user>Hello.<assistant>"


@pytest.mark.parametrize("last", [calling(call()), said("assistant", " \n"), said("assistant", None)])
def test_a_last_message_without_text_or_with_calls_is_not_continued(last: Message) -> None:
    assert prompt(QWEN, [HELLO, last]).endswith("<assistant>")


def test_a_client_s_own_choice_about_the_last_message_holds() -> None:
    ended = prompt(QWEN, [HELLO, ANSWER], add_generation_prompt=False)
    continued = prompt(QWEN, [HELLO, ANSWER], add_generation_prompt=False, continue_final_message=True)
    assert (ended, continued) == ("<user>Hello.\n<assistant>Hi there.\n", "<user>Hello.\n<assistant>Hi there.")


@cache
def tokenizer_with_bos() -> Any:
    """One that puts `<s>` before every text, as those of Llama, Gemma and Mistral do."""
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    from vllama.worker.chat_templates import repair_for

    backend = Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="a"))
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    repair_for(made, "library/with-bos:latest")
    return made


@pytest.mark.parametrize("template", ["{{ .Prompt }}!", "<s>{{ .Prompt }}!"])
def test_what_a_go_template_rendered_begins_with_bos_once(template: str) -> None:
    from vllama.ollama.templates import in_jinja

    rendered = tokenizer_with_bos().apply_chat_template(
        [HELLO], chat_template=in_jinja(template), tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<s>Hello.!"


@pytest.mark.parametrize("template", ["{{ .Prompt }}", "<s>{{ .Prompt }}"])
def test_the_token_ids_of_what_a_go_template_rendered_begin_with_bos_once(template: str) -> None:
    from vllm.renderers.hf import safe_apply_chat_template

    from vllama.ollama.templates import in_jinja

    config: Any = SimpleNamespace()
    made: Any = [said("user", "a")]
    assert safe_apply_chat_template(config, tokenizer_with_bos(), made, chat_template=in_jinja(template)) == [0, 1]


def test_a_jinja_template_decides_about_bos_itself() -> None:
    rendered = tokenizer_with_bos().apply_chat_template(
        [HELLO], chat_template="{{ messages[0].content }}", tokenize=False
    )
    assert rendered == "Hello."


@pytest.fixture(scope="session")
def public_templates() -> dict[str, str]:
    """Chat templates of 70 public models: files of $VLLAMA_TEST_TEMPLATES or, in full runs, of llama.cpp's sources."""
    if stated := os.environ.get("VLLAMA_TEST_TEMPLATES"):
        return {path.stem: path.read_text() for path in sorted(Path(stated).glob("*.jinja"))}
    if not count(0, 1):
        pytest.skip("needs a download: set VLLAMA_TEST_FULL=1, or VLLAMA_TEST_TEMPLATES to a folder of templates")
    return chat_templates()


@pytest.mark.timeout(300)
def test_the_templates_of_70_public_models_render_what_clients_send(public_templates: dict[str, str]) -> None:
    refused = []
    for name, template in public_templates.items():
        for shape, (messages, tools) in SHAPES.items():
            try:
                prompt(template, messages, tools)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a refusal
                refused.append(f"{name}, {shape}: {error}")
    assert not refused
    assert len(public_templates) * len(COUNTED) >= 1190
