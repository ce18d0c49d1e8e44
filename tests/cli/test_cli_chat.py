from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from vllama.cli.api_client import ApiClient
from vllama.cli.chat import HELP, HELP_PARAMETERS, HELP_SET, HELP_SHOW, Chat
from vllama.cli.conversation import Conversation, parse_option
from vllama.errors import OptionTypeError, RequestError
from vllama.settings import Address

from .scripted_server import (
    LOADED,
    NOT_FOUND,
    PATIENCE,
    SHOW,
    TAGS,
    Handler,
    ScriptedServer,
    body,
    chat_pieces,
    stream,
)

CTRL_C, CTRL_D = KeyboardInterrupt(), EOFError()


class Output(io.StringIO):
    """Standard output; Ctrl-C is pressed when `interrupt_at` is written."""

    interrupt_at: str | None = None

    def write(self, text: str) -> int:
        written = super().write(text)
        if text == self.interrupt_at:
            raise KeyboardInterrupt
        return written


@dataclass
class Typist:
    """Types lines at the prompt and keeps all that is shown; leaves with Ctrl-D at the end."""

    chat: Chat
    out: Output
    err: io.StringIO
    prompts: list[str]
    history: list[bool]
    typed: Iterator[str | BaseException] = field(default_factory=lambda: iter(()))

    def type(self, *lines: str | BaseException) -> str:
        """Have a session of these lines; return what it wrote, less the prompts."""
        self.typed = iter(lines)
        self.chat.run()
        return self.out.getvalue()

    def read(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = next(self.typed, CTRL_D)
        if isinstance(line, BaseException):
            raise line
        return line


@pytest.fixture
def typist(server: ScriptedServer) -> Typist:
    server.on("POST", "/api/chat", stream(*chat_pieces("Hi", " there")))
    out, err, history = Output(), io.StringIO(), list[bool]()
    chat = Chat(Conversation("smollm2:135m"), ApiClient.from_environment(), input, history.append, out, err)
    typist = Typist(chat, out, err, [], history)
    chat.read = typist.read
    return typist


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def sent_messages(server: ScriptedServer) -> list[list[dict[str, str]]]:
    return [sent["messages"] for sent in server.bodies("/api/chat")]


def test_a_turn_streams_its_answer_and_the_session_ends_with_ctrl_d(typist: Typist, server: ScriptedServer) -> None:
    assert typist.type("hello") == "Hi there\n\n\n"
    assert typist.prompts == [">>> ", ">>> "]
    assert server.requests == [
        ("POST", "/api/chat", {"model": "smollm2:135m", "messages": [user("hello")], "options": {}})
    ]


def test_each_turn_is_sent_with_all_that_was_said_before(typist: Typist, server: ScriptedServer) -> None:
    server.on("POST", "/api/chat", stream(*chat_pieces("One")), stream(*chat_pieces("Two")))
    typist.type("first", "second", "third")
    assert sent_messages(server)[2] == [
        user("first"),
        assistant("One"),
        user("second"),
        assistant("Two"),
        user("third"),
    ]


@pytest.mark.parametrize("leave", ["/bye", "/exit", "/bye now"])
def test_bye_leaves(typist: Typist, server: ScriptedServer, leave: str) -> None:
    assert typist.type(leave, "never asked") == ""
    assert server.requests == []


def test_blank_lines_ask_nothing(typist: Typist, server: ScriptedServer) -> None:
    typist.type("", "   ")
    assert server.requests == []


def test_clear_forgets_what_was_said_but_not_the_system_message(typist: Typist, server: ScriptedServer) -> None:
    text = typist.type("/set system Be brief.", "one", "/clear", "two")
    assert "Cleared session context\n" in text
    assert sent_messages(server)[1] == [system("Be brief."), user("two")]


def test_a_system_message_goes_first_whenever_it_is_set(typist: Typist, server: ScriptedServer) -> None:
    text = typist.type("one", "/set system Be  very brief. ", "two", "/set system Be long.", "three")
    assert text.count("Set system message.\n") == 2
    assert sent_messages(server)[1][0] == system("Be  very brief.")
    assert [message["content"] for message in sent_messages(server)[2] if message["role"] == "system"] == ["Be long."]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['"""one', "two", 'three"""'], "one\ntwo\nthree"),
        (['"""', "one", '"""'], "\none\n"),
        (['"""one line"""'], "one line"),
    ],
)
def test_triple_quotes_hold_a_message_of_several_lines(
    typist: Typist, server: ScriptedServer, lines: list[str], message: str
) -> None:
    typist.type(*lines)
    assert sent_messages(server) == [[user(message)]]
    assert typist.prompts == [">>> ", *["... "] * (len(lines) - 1), ">>> "]


def test_triple_quotes_hold_a_system_message_too(typist: Typist, server: ScriptedServer) -> None:
    typist.type('/set system """Be', 'brief."""', "hello")
    assert sent_messages(server)[0][0] == system("Be\nbrief.")


def test_ctrl_c_at_the_prompt_says_how_to_leave_and_stays(typist: Typist, server: ScriptedServer) -> None:
    text = typist.type(CTRL_C, "hello")
    assert text.startswith("\nUse Ctrl + d or /bye to exit.\nHi there")


def test_ctrl_c_in_a_message_of_several_lines_drops_it(typist: Typist, server: ScriptedServer) -> None:
    typist.type('"""one', CTRL_C, "hello")
    assert sent_messages(server) == [[user("hello")]]


def test_ctrl_c_stops_the_answer_and_not_the_program(typist: Typist, server: ScriptedServer) -> None:
    first = chat_pieces("One")[0]
    server.on("POST", "/api/chat", stream(first, Handler.wait_for_client_to_leave), stream(*chat_pieces("Two")))
    typist.out.interrupt_at = "One"
    assert typist.type("first", "second") == "One\n\nTwo\n\n\n"
    assert server.client_left.wait(PATIENCE)


def test_what_was_said_until_ctrl_c_stays_in_the_history(typist: Typist, server: ScriptedServer) -> None:
    server.on("POST", "/api/chat", stream(*chat_pieces("One", " more")), stream(*chat_pieces("Two")))
    typist.out.interrupt_at = "One"
    typist.chat.verbose = True
    typist.type("first", "second")
    assert sent_messages(server)[1] == [user("first"), assistant("One"), user("second")]
    assert typist.err.getvalue() == "eval count:           2 token(s)\n"


def test_a_question_that_ctrl_c_left_unanswered_is_forgotten(typist: Typist, server: ScriptedServer) -> None:
    thinking = b'{"message":{"role":"assistant","content":"","thinking":"Hm"},"done":false}\n'
    server.on("POST", "/api/chat", stream(thinking, *chat_pieces("One")), stream(*chat_pieces("Two")))
    typist.out.interrupt_at = "Hm"
    text = typist.type("first", "second")
    assert text == "Thinking...\nHm\n...done thinking.\n\n\nTwo\n\n\n"
    assert sent_messages(server)[1] == [user("second")]


@pytest.mark.parametrize(
    "failure",
    [
        body(b'{"error":"the prompt is too long"}', 400),
        stream(chat_pieces("One")[0], b'{"error":"the prompt is too long"}\n'),
    ],
)
def test_an_error_is_told_and_the_question_forgotten(typist: Typist, server: ScriptedServer, failure: Any) -> None:
    server.on("POST", "/api/chat", failure, stream(*chat_pieces("Two")))
    assert typist.type("first", "second").endswith("Two\n\n\n")
    assert typist.err.getvalue() == "Error: the prompt is too long\n"
    assert sent_messages(server)[1] == [user("second")]


def test_parameters_are_sent_with_their_types(typist: Typist, server: ScriptedServer) -> None:
    text = typist.type("/set parameter temperature 0", "/set parameter seed 42", "/set parameter stop <a> <b>", "hello")
    assert "Set parameter 'temperature' to '0'\n" in text
    assert "Set parameter 'stop' to '<a>, <b>'\n" in text
    assert server.bodies("/api/chat")[0]["options"] == {"temperature": 0.0, "seed": 42, "stop": ["<a>", "<b>"]}


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("temperature", ["0.5"], 0.5),
        ("num_predict", ["-1"], -1),
        ("stop", ["a"], ["a"]),
        ("use_mmap", ["true"], True),
        ("use_mmap", ["0"], False),
    ],
)
def test_a_parameter_has_the_type_of_its_option(name: str, words: list[str], value: object) -> None:
    parsed = parse_option(name, words)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("temperature", ["hot"], "temperature must be a number, not 'hot'"),
        ("seed", ["1.5"], "seed must be an integer, not '1.5'"),
        ("seed", ["1", "2"], "seed must be an integer, not '1 2'"),
        ("use_mmap", ["perhaps"], "use_mmap must be true or false, not 'perhaps'"),
    ],
)
def test_a_parameter_of_the_wrong_type_is_refused(name: str, words: list[str], message: str) -> None:
    with pytest.raises(OptionTypeError, match=f"^{message}$"):
        parse_option(name, words)


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^unknown parameter 'heat'$"):
        parse_option("heat", ["1"])


def test_a_refused_parameter_changes_nothing_and_the_chat_goes_on(typist: Typist, server: ScriptedServer) -> None:
    typist.type("/set parameter temperature hot", "hello")
    assert typist.err.getvalue() == "Error: temperature must be a number, not 'hot'\n"
    assert server.bodies("/api/chat")[0]["options"] == {}


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        (["/set format json"], "format", "json"),
        (["/set format json", "/set noformat"], "format", None),
        (["/set think"], "think", True),
        (["/set think high"], "think", "high"),
        (["/set nothink"], "think", False),
    ],
)
def test_a_session_variable_goes_with_every_question(
    typist: Typist, server: ScriptedServer, lines: list[str], field: str, value: object
) -> None:
    typist.type(*lines, "hello")
    assert server.bodies("/api/chat")[0].get(field) == value


def test_verbose_prints_the_timings_of_each_answer_until_quiet(typist: Typist) -> None:
    typist.type("/set verbose", "hello", "/set quiet", "hello")
    assert typist.err.getvalue() == "eval count:           2 token(s)\n"


def test_history_is_switched_off_and_on(typist: Typist) -> None:
    typist.type("/set nohistory", "/set history")
    assert typist.history == [False, True]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("/?", HELP),
        ("/help", HELP),
        ("/? set", HELP_SET),
        ("/? /show", HELP_SHOW),
        ("/? nonsense", HELP),
        ("/set", HELP_SET),
        ("/set system", HELP_SET),
        ("/set parameter seed", HELP_PARAMETERS),
        ("/show", HELP_SHOW),
        ("/set format xml", "Invalid or missing format. For 'json' mode use '/set format json'"),
        ("/nonsense", "Unknown command '/nonsense'. Type /? for help"),
        ("/set nonsense", "Unknown command '/set nonsense'. Type /? for help"),
        ("/show nonsense", "Unknown command '/show nonsense'. Type /? for help"),
        ("/load", "Usage:\n  /load <model>"),
    ],
)
def test_a_command_that_is_incomplete_or_unknown_says_what_there_is(
    typist: Typist, server: ScriptedServer, line: str, text: str
) -> None:
    assert typist.type(line, "/bye") == text + "\n"
    assert server.requests == []


def test_every_command_of_the_help_is_known(typist: Typist, server: ScriptedServer) -> None:
    server.on("GET", "/api/tags", body(TAGS))
    names = [line.split()[0].rstrip(",") for line in HELP.splitlines() if line.startswith("  /")]
    assert len(names) == 7
    assert "Unknown command" not in typist.type(*names)


def test_show_info_describes_the_model_as_set_in_this_session(typist: Typist, server: ScriptedServer) -> None:
    text = typist.type("/set system Be brief.", "/set parameter seed 1", "/show info")
    assert "    architecture        llama\n" in text
    assert server.bodies("/api/show") == [{"model": "smollm2:135m", "system": "Be brief.", "options": {"seed": 1}}]


def test_show_prints_parts_of_the_model(typist: Typist) -> None:
    text = typist.type("/show template", "/show license", "/show system", "/bye")
    assert text == (
        f"{json.loads(SHOW)['template']}\n"
        "No license was specified for this model.\n"
        "No system was specified for this model.\n"
    )


def test_show_system_prefers_the_one_of_this_session(typist: Typist) -> None:
    assert typist.type("/set system Be brief.", "/show system", "/bye").endswith("\nBe brief.\n")


def test_show_parameters_tells_the_models_from_the_users(typist: Typist) -> None:
    assert typist.type("/set parameter seed 7", "/show parameters", "/bye").split("\n", 1)[1] == (
        "Model defined parameters:\n"
        '  stop                           "<|im_start|>"\n'
        '  stop                           "<|im_end|>"\n'
        "\n"
        "User defined parameters:\n"
        "  seed                           7\n"
    )


def test_list_shows_the_stored_models(typist: Typist, server: ScriptedServer) -> None:
    server.on("GET", "/api/tags", body(TAGS))
    assert "smollm2:135m    0504a3a26a1e" in typist.type("/list")


def test_load_changes_the_model_and_begins_anew(typist: Typist, server: ScriptedServer) -> None:
    server.on("POST", "/api/generate", body(LOADED))
    text = typist.type("one", "/load qwen", "two")
    assert "Loaded model 'qwen'\n" in text
    assert server.bodies("/api/generate") == [{"model": "qwen", "stream": False}]
    assert server.bodies("/api/chat")[1] == {"model": "qwen", "messages": [user("two")], "options": {}}


def test_load_of_a_model_that_cannot_think_forgets_what_the_last_one_could(
    typist: Typist, server: ScriptedServer
) -> None:
    typist.chat.conversation.think = True
    typist.type("/load qwen", "one")
    assert "think" not in server.bodies("/api/chat")[0]


def test_load_asks_a_thinking_model_to_think_unless_the_user_chose(typist: Typist, server: ScriptedServer) -> None:
    thinker = json.loads(SHOW) | {"capabilities": ["completion", "thinking"]}
    server.on("POST", "/api/show", body(json.dumps(thinker).encode()))
    typist.type("/load qwen", "one", "/set nothink", "/load qwen", "two")
    assert [sent.get("think") for sent in server.bodies("/api/chat")] == [True, False]


def test_load_of_an_unknown_model_keeps_the_old_one(typist: Typist, server: ScriptedServer) -> None:
    server.on("POST", "/api/show", body(NOT_FOUND, 404))
    typist.type("/load nope", "hello")
    assert typist.err.getvalue() == "Error: model 'nope' not found; to fetch it, run `vllama pull nope`\n"
    assert server.bodies("/api/chat")[0]["model"] == "smollm2:135m"


def test_a_server_that_went_away_does_not_end_the_session(
    typist: Typist, no_server: str, server: ScriptedServer
) -> None:
    there = typist.chat.client
    typist.chat.client = ApiClient(Address.parse(no_server))
    typist.type("hello")
    assert f"Error: could not connect to {no_server}" in typist.err.getvalue()
    typist.chat.client = there
    typist.type("again")
    assert sent_messages(server) == [[user("again")]]
