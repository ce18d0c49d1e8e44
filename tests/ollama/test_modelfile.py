"""Modelfiles: the cases of Ollama's own parser, its words for what is wrong, and the way back."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllama.errors import RequestError
from vllama.ollama.creation import Changes
from vllama.ollama.modelfile import Modelfile, commands, decode, parse, quote_if_needed

COMMANDS = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", '
    '"parameter", "message", or "requires"'
)


def values(text: str) -> list[tuple[str, str, str]]:
    return [(command.name, command.subject, command.value) for command in commands(text)]


def test_a_modelfile_says_what_a_model_is_made_of() -> None:
    said = parse(
        """
# Mario
FROM smollm2:135m
PARAMETER temperature 0.5
parameter num_ctx 1
Parameter stop <|im_end|>
PARAMETER stop "### User: "
TEMPLATE \"\"\"{{ .System }}
{{ .Prompt }}\"\"\"
System You are Mario. # who else
LICENSE MIT
license Apache-2.0
MESSAGE user hi
MESSAGE assistant It's-a me
"""
    )
    assert said.base == "smollm2:135m"
    assert said.changes.parameters == {"temperature": 0.5, "num_ctx": 1, "stop": ["<|im_end|>", "### User: "]}
    assert said.changes.template == "{{ .System }}\n{{ .Prompt }}"
    assert said.changes.system == "You are Mario. # who else"
    assert said.changes.license == "MIT\nApache-2.0"
    assert said.changes.messages == (("user", "hi"), ("assistant", "It's-a me"))
    assert said.warnings == ()


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ('FROM "FOO  BAR  "', "FOO  BAR  "),
        ("FROM     FOOO BAR    ", "FOOO BAR"),
        ("FROM /what/is/the path ", "/what/is/the path"),
        ("PARAMETER seed 1\nFROM foo", "foo"),
        ("from\tfoo\r\nsystem x\r\n", "foo"),
        ("\n\n  FROM foo", "foo"),
    ],
)
def test_the_base_may_be_written_in_many_ways(text: str, base: str) -> None:
    assert parse(text).base == base


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('"""\nThis is a\nmultiline system.\n"""', "\nThis is a\nmultiline system.\n"),
        ('"""This is a\nmultiline system."""   ', "This is a\nmultiline system."),
        ('"""This is one."""', "This is one."),
        ('"two\nlines"', "two\nlines"),
        ('"""\nwith "quotes".\n"""', '\nwith "quotes".\n'),
        ('""""""', ""),
        ('""', ""),
        ('"\'"', "'"),
        ("""\"\"\"''"'""'""'"'''''""'""'\"\"\"""", """''"'""'""'"'''''""'""'"""),
        ('"""say "hi""""', 'say "hi"'),
        ("# not a comment", "# not a comment"),
        ("a\\nb", "a\\nb"),
    ],
)
def test_quotes_hold_what_goes_over_several_lines(value: str, text: str) -> None:
    for end in ("", "\n", "\nPARAMETER seed 1\n"):
        assert values(f"FROM foo\nSYSTEM {value}{end}")[1] == ("system", "", text)


def test_comments_stand_where_a_command_could_begin() -> None:
    assert values("# a\nFROM foo\n  # FROM bar\n#\nSYSTEM x") == [("from", "", "foo"), ("system", "", "x")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no FROM line"),
        ("PARAMETER seed 1", "no FROM line"),
        ("FROM ", "no FROM line"),
        ("\nFROM foo\nBADCOMMAND param1 value1\n", f"(line 3): {COMMANDS}"),
        ("FROM foo\nSYSTEM\n", f"(line 2): {COMMANDS}"),
        ("FROM foo\n{{ .Prompt }}", f"(line 2): {COMMANDS}"),
        ("FROM foo\r\nBAD x", f"(line 2): {COMMANDS}"),
        (
            "FROM foo\n\nMESSAGE badguy I'm a bad guy!\n",
            '(line 3): message role must be one of "system", "user", or "assistant"',
        ),
        ("FROM foo\nPARAMETER param1\n", "(line 2): unexpected EOF: param1"),
        ("FROM foo\nMESSAGE system\n", "(line 2): unexpected EOF: system"),
        ('FROM foo\nSYSTEM """This is\na system.""\n', "(line 2): unexpected EOF: the quotes are not closed"),
        ('FROM foo\nSYSTEM "\n', "(line 2): unexpected EOF: the quotes are not closed"),
        ("FROM foo\nPARAMETER bogus 1", "(line 2): unknown parameter 'bogus'"),
        ("FROM foo\nPARAMETER temperature hot", "(line 2): invalid float value [hot]"),
        ("FROM foo\nPARAMETER num_ctx 1.5", "(line 2): invalid int value [1.5]"),
        ("FROM foo\nPARAMETER use_mmap maybe", "(line 2): invalid bool value [maybe]"),
        ("FROM foo\nREQUIRES soon", "(line 2): requires must be a valid semver (e.g. 0.14.0)"),
        (
            "FROM foo\nREQUIRES 99.0.0",
            "(line 2): the model requires Ollama 99.0.0; this server provides the API of Ollama 0.35.0",
        ),
        (
            "FROM a\nFROM b\nFROM c",
            "(line 3): a third FROM is not supported; a model has one base, and one projector (mmproj)",
        ),
        (
            "FROM foo\nADAPTER ./lora\nADAPTER ./other",
            "(line 3): only one adapter is currently supported",
        ),
    ],
)
def test_what_is_wrong_is_told_in_ollamas_words_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize("command", ["DRAFT ./small", "RENDERER qwen3", "PARSER qwen3"])
def test_what_has_no_meaning_here_is_refused_by_name(command: str) -> None:
    with pytest.raises(RequestError, match=rf"^\(line 2\): {command.split(maxsplit=1)[0]} is not supported: "):
        parse(f"FROM foo\n{command}")


def test_a_version_of_ollama_that_is_reached_is_no_obstacle() -> None:
    assert parse("FROM foo\nREQUIRES 0.14.0").base == parse("FROM foo\nREQUIRES v0.24").base == "foo"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("temperature 1.0", 1),
        ("temperature 0.7", 0.7),
        ("top_k 20", 20),
        ("num_predict -1", -1),
        ("use_mmap true", True),
        ("use_mmap F", False),
        ("stop ### User:", ["### User:"]),
        ("stop ### User: ", ["### User:"]),
        ('stop "### User: "', ["### User: "]),
        ('stop """### User:\n"""', ["### User:\n"]),
        ("stop </s>", ["</s>"]),
    ],
)
def test_parameters_have_the_types_of_options(line: str, value: object) -> None:
    parameters = parse(f"FROM foo\nPARAMETER {line}").changes.parameters
    assert list(parameters.values()) == [value]
    assert [type(item) for item in parameters.values()] == [type(value)]


def test_parameters_of_old_are_dropped_with_a_warning() -> None:
    said = parse("FROM foo\nPARAMETER mirostat 1\nPARAMETER seed 1")
    assert said.changes.parameters == {"seed": 1}
    assert said.warnings == ("parameter mirostat is deprecated",)


@pytest.mark.parametrize(
    "data",
    [
        b"FROM foo\nSYSTEM \xc3\xbc",
        codecs.BOM_UTF8 + b"FROM foo\nSYSTEM \xc3\xbc",
        "FROM foo\r\nSYSTEM ü".encode("utf-16"),
        codecs.BOM_UTF16_BE + "FROM foo\nSYSTEM ü".encode("utf-16-be"),
    ],
)
def test_files_of_windows_editors_can_be_read(data: bytes) -> None:
    assert parse(decode(data)) == parse("FROM foo\nSYSTEM ü")


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(RequestError, match="the Modelfile is not UTF-8"):
        decode(b"FROM \xff")


def test_the_path_of_an_adapter_is_kept_as_it_is_written() -> None:
    said = parse('FROM foo\nADAPTER "./my adapter"\n')
    assert (said.base, said.adapter, said.changes) == ("foo", "./my adapter", Changes())


@given(st.text(st.sampled_from('ab"# \n\t\\{é'), max_size=30) | st.text(max_size=20))
@example('"Hi" she said')
@example("\ttab")
@example("")
@example("one\ntwo")
@example('say "hi"')
@example('three """ in a row')
def test_what_is_written_can_be_read_again(text: str) -> None:
    # Three quotes at the end of a line end a value, and there is no way around it in the format.
    if any(line.rstrip().endswith('"""') for line in text.splitlines()[:-1]):
        return
    said = parse(f"FROM foo\nSYSTEM {quote_if_needed(text)}\nLICENSE x")
    assert said == Modelfile("foo", said.changes)
    assert (said.changes.system, said.changes.license) == (text, "x")


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(lambda number: "FROM foo\n" + "MESSAGE user hi\n" * number, id="many commands"),
        pytest.param(lambda number: 'FROM foo\nSYSTEM """' + "said\n" * number + '"""', id="a value of many lines"),
        pytest.param(lambda number: "FROM foo\n" + "# said\n" * number, id="many comments"),
    ],
)
def test_eight_times_the_lines_take_about_eight_times_as_long(lines: Callable[[int], str]) -> None:
    def seconds(text: str) -> float:
        began = time.process_time()
        parse(text)
        return time.process_time() - began

    few, many = lines(4_000), lines(32_000)
    assert min(seconds(many) for _ in range(3)) < 24 * min(seconds(few) for _ in range(3))  # 64 if each line looks back
