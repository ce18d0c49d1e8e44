"""Model names (contract §3)."""

from __future__ import annotations

import re
from string import ascii_letters, digits

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vllama.errors import InvalidName
from vllama.names import ModelName

PART_80 = "8" * 80
HOST_350 = "3" * 350

# name parts that keep the grammar, now and then with two dots in a row, which no name may have
_first = st.sampled_from(ascii_letters + digits + "_")
_parts = st.builds(str.__add__, _first, st.text(ascii_letters + digits + "_.-", max_size=12))
_hosts = st.builds(str.__add__, _first, st.text(ascii_letters + digits + "_.:-", max_size=12))


@st.composite
def name_like_texts(draw: st.DrawFn) -> str:
    model = draw(_parts)
    namespace = draw(st.one_of(st.none(), st.sampled_from(["library", "Library"]), _parts))
    host = draw(st.one_of(st.none(), st.sampled_from(["registry.ollama.ai", "Registry.Ollama.AI"]), _hosts))
    text = model if namespace is None else f"{namespace}/{model}"
    if namespace is not None and host is not None:
        text = f"{draw(st.sampled_from(['', 'http://', 'https://']))}{host}/{text}"
    tag = draw(st.one_of(st.none(), _parts))
    return draw(st.sampled_from(["", " "])) + (text if tag is None else f"{text}:{tag}")


@pytest.mark.parametrize(
    ("text", "full", "display"),
    [
        ("qwen2.5", "registry.ollama.ai/library/qwen2.5:latest", "qwen2.5:latest"),
        ("qwen2.5:7b", "registry.ollama.ai/library/qwen2.5:7b", "qwen2.5:7b"),
        ("me/foo", "registry.ollama.ai/me/foo:latest", "me/foo:latest"),
        (
            "hf.co/Qwen/Qwen2.5-7B-Instruct-GGUF:Q4_K_M",
            "hf.co/Qwen/Qwen2.5-7B-Instruct-GGUF:Q4_K_M",
            "hf.co/Qwen/Qwen2.5-7B-Instruct-GGUF:Q4_K_M",
        ),
        ("huggingface.co/org/repo", "huggingface.co/org/repo:latest", "huggingface.co/org/repo:latest"),
        ("http://localhost:5000/ns/m:t", "localhost:5000/ns/m:t", "localhost:5000/ns/m:t"),
        (" qwen2.5:7b ", "registry.ollama.ai/library/qwen2.5:7b", "qwen2.5:7b"),
        ("host:port/namespace/model", "host:port/namespace/model:latest", "host:port/namespace/model:latest"),
        ("registry.ollama.ai/library/mistral:7b-v2.6", "registry.ollama.ai/library/mistral:7b-v2.6", "mistral:7b-v2.6"),
        ("registry.ollama.ai/me/m:t", "registry.ollama.ai/me/m:t", "me/m:t"),
        ("mistralai.org/model", "registry.ollama.ai/mistralai.org/model:latest", "mistralai.org/model:latest"),
        (
            f"{HOST_350}/{PART_80}/{PART_80}:{PART_80}",
            f"{HOST_350}/{PART_80}/{PART_80}:{PART_80}",
            f"{HOST_350}/{PART_80}/{PART_80}:{PART_80}",
        ),
    ],
)
def test_what_a_user_types_stands_for_one_complete_name(text: str, full: str, display: str) -> None:
    name = ModelName.parse(text)
    assert (name.full, name.display, str(name)) == (full, display, display)


def test_the_tag_follows_the_last_colon_after_the_last_slash() -> None:
    name = ModelName.parse("host:8080/ns/model")
    assert (name.host, name.model, name.tag) == ("host:8080", "model", "latest")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ":",
        ":tag",
        "model:",
        "/model",
        "ns/",
        "//model",
        "host//model",
        "a/b/c/d",
        "two words",
        "model:two words",
        "!!bad name",
        "-model",
        ".model",
        "..",
        "a..b",
        "../../etc/passwd",
        "ns/../model",
        "model:..",
        "host/../model:tag",
        "model\x00",
        "model\nmodel",
        "modèle",
        "model:tag:tag",
        "name@sha256:0123",
        "ns:x/model",
        "8" * 81,
        f"{'8' * 81}/model",
        f"model:{'8' * 81}",
        f"{'3' * 351}/ns/model",
    ],
)
def test_what_is_no_name_is_refused_in_ollamas_words(text: str) -> None:
    with pytest.raises(InvalidName, match=r"^invalid model name$"):
        ModelName.parse(text)


def test_names_that_differ_in_case_are_one_model_but_keep_their_spelling() -> None:
    typed, stored = ModelName.parse("SmolLM2:135M"), ModelName.parse("smollm2:135m")
    assert typed.key == stored.key
    assert typed.display == "SmolLM2:135M"


@pytest.mark.parametrize(
    ("text", "cloud"),
    [
        ("gpt-oss:cloud", True),
        ("gpt-oss:120b-cloud", True),
        ("gpt-oss:120B-Cloud", True),
        ("cloud", False),
        ("gpt-oss:cloudy", False),
        ("my-cloud:latest", False),
    ],
)
def test_a_tag_tells_what_only_ollamas_cloud_serves(text: str, cloud: bool) -> None:
    assert ModelName.parse(text).is_cloud is cloud


@given(name_like_texts())
@example("Registry.Ollama.AI/Library/Model")
def test_the_short_form_of_a_name_stands_for_the_same_model(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except InvalidName:
        assume(".." not in text)  # nothing else in these texts is wrong
        raise
    assert ModelName.parse(name.display).key == name.key
    assert ModelName.parse(name.full).key == name.key
    assert ModelName.parse(name.key).key == name.key


@given(st.one_of(name_like_texts(), st.text(), st.text("aZ0_.:/-@ \\\0", max_size=20)))
def test_no_text_makes_a_name_that_leads_out_of_a_directory(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except InvalidName:
        return
    for part in (name.host, name.namespace, name.model, name.tag):
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*", part)
        assert ".." not in part


@pytest.mark.parametrize(
    ("text", "display"),
    [
        ("qwen2.5:local", "qwen2.5:latest"),
        ("qwen2.5:7b:local", "qwen2.5:7b"),
        ("me/qwen:7b:LOCAL ", "me/qwen:7b"),
        ("my:localhost", "my:localhost"),
        ("local", "local:latest"),
    ],
)
def test_local_after_a_name_asks_for_what_is_served_here_anyway(text: str, display: str) -> None:
    assert ModelName.parse(text).display == display


@pytest.mark.parametrize("text", ["gpt-oss:cloud:local", "gpt-oss:120b-cloud:local"])
def test_local_and_cloud_contradict_each_other(text: str) -> None:
    with pytest.raises(InvalidName, match=f'^use either :local or :cloud, not both: "{text}"$'):
        ModelName.parse(text)
