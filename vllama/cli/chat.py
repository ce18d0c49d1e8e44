"""The interactive chat of `vllama run`: reads lines, runs slash commands, streams replies.

Independent of the terminal: lines come from a function, text goes to streams.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from vllama.cli.answer import Answer, timings
from vllama.cli.api_client import ApiClient, Record
from vllama.cli.conversation import Conversation, Think, infer_think, parse_option
from vllama.cli.list import models_table
from vllama.cli.loading import LoadSpinner
from vllama.cli.show import PARTS, describe
from vllama.errors import VllamaError

PROMPT, MORE, QUOTES = ">>> ", "... ", '"""'

HELP = """\
Available Commands:
  /set            Set session variables
  /show           Show model information
  /load <model>   Load another model and start a new conversation
  /list           List the stored models
  /clear          Clear session context
  /bye            Exit
  /?, /help       Help for a command

Use \""" to begin a multi-line message.
"""

HELP_SET = """\
Available Commands:
  /set parameter <name> <value>   Set a parameter
  /set system <string>            Set system message
  /set format json                Enable JSON mode
  /set noformat                   Disable formatting
  /set think [level]              Enable thinking
  /set nothink                    Disable thinking
  /set verbose                    Show timings
  /set quiet                      Hide timings
  /set history                    Enable history
  /set nohistory                  Disable history
"""

HELP_SHOW = """\
Available Commands:
  /show info         Show details for this model
  /show license      Show model license
  /show modelfile    Show Modelfile for this model
  /show parameters   Show parameters for this model
  /show system       Show system message
  /show template     Show prompt template
"""

HELP_PARAMETERS = """\
Usage: /set parameter <name> <value>, for example
  /set parameter temperature 0
  /set parameter num_predict 128
  /set parameter seed 42
  /set parameter stop <string> <string> ...
"""


@dataclass
class Chat:
    """An interactive chat session.

    `read` shows a prompt and returns a line; it raises EOFError at the end and KeyboardInterrupt on
    Ctrl-C, as `input` does. `keep_history` turns the recording of lines on and off. `think_is_chosen` says that
    the user set the conversation's `think`, which is then kept when another model is loaded.
    """

    conversation: Conversation
    client: ApiClient
    read: Callable[[str], str]
    keep_history: Callable[[bool], None]
    out: TextIO
    err: TextIO
    verbose: bool = False
    hide_thinking: bool = False
    think_is_chosen: bool = False

    def run(self) -> None:
        """Read and handle lines until the user exits."""
        while True:
            try:
                line = self.read(PROMPT)
                if line.split(maxsplit=1)[:1] in (["/bye"], ["/exit"]):
                    return
                self._obey_or_ask(line)
            except EOFError:
                self._say()
                return
            except KeyboardInterrupt:
                self._say("\nUse Ctrl + d or /bye to exit.")
            except VllamaError as error:
                self.err.write(f"Error: {error}\n")
                self.err.flush()

    def _obey_or_ask(self, line: str) -> None:
        if line.startswith("/"):
            self._obey(line)
        elif line.startswith(QUOTES):
            self._ask(self._block(line))
        elif line.strip():
            self._ask(line)

    def _block(self, opening: str) -> str:
        """Return the text between triple quotes, reading lines until the closing quotes."""
        text = opening.removeprefix(QUOTES)
        while not text.endswith(QUOTES):
            text += "\n" + self.read(MORE)
        return text.removesuffix(QUOTES)

    def _ask(self, text: str) -> None:
        """Stream the reply; after Ctrl-C the part received so far stays in the history."""
        answer = Answer()
        stream = self.client.stream("/api/chat", self.conversation.chat(text))
        spinner = LoadSpinner(self.client, self.conversation.model, stream=self.err)
        with spinner, closing(stream) as records:
            try:
                answer.show(spinner.until_first(records), self.out, hide_thinking=self.hide_thinking)
            except KeyboardInterrupt:
                if not answer.text:
                    self._say()
                    return
        self.conversation.remember(text, answer.text)
        self._say("\n")
        if self.verbose and answer.final:
            self.err.write(timings(answer.final) + "\n")

    def _obey(self, line: str) -> None:
        command, *words = line.split()
        match command:
            case "/?" | "/help":
                helps = {"set": HELP_SET, "show": HELP_SHOW}
                self._say(helps.get(words[0].lstrip("/"), HELP) if words else HELP)
            case "/clear":
                self.conversation.messages.clear()
                self._say("Cleared session context")
            case "/list":
                self._say(models_table(self.client.tags(), datetime.now(UTC)))
            case "/load":
                self._load(words)
            case "/set":
                self._set(line, words)
            case "/show":
                self._show(words)
            case _:
                self._say(f"Unknown command '{command}'. Type /? for help")

    def _load(self, words: list[str]) -> None:
        if len(words) != 1:
            self._say("Usage:\n  /load <model>")
            return
        info = self.client.show(words[0])
        think = self.conversation.think if self.think_is_chosen else infer_think(info)
        conversation = Conversation(
            words[0],
            self.conversation.system,
            self.conversation.format,
            self.conversation.keep_alive,
            think,
            self.conversation.options,
        )
        with LoadSpinner(self.client, words[0], f"loading {words[0]}", self.err):
            self.client.post("/api/generate", {**conversation.load(), "stream": False})
        self.conversation = conversation
        self._say(f"Loaded model '{words[0]}'")

    def _set(self, line: str, words: list[str]) -> None:
        what, *values = words or [""]
        match what:
            case "system" if values:
                text = line.split(maxsplit=2)[2].rstrip()
                self.conversation.system = self._block(text) if text.startswith(QUOTES) else text
                self._say("Set system message.")
            case "parameter" if len(values) > 1:
                self.conversation.options[values[0]] = parse_option(values[0], values[1:])
                self._say(f"Set parameter '{values[0]}' to '{', '.join(values[1:])}'")
            case "parameter":
                self._say(HELP_PARAMETERS)
            case "format" if values == ["json"]:
                self.conversation.format = "json"
                self._say("Set format to 'json' mode.")
            case "format":
                self._say("Invalid or missing format. For 'json' mode use '/set format json'")
            case "noformat":
                self.conversation.format = None
                self._say("Disabled format.")
            case "think":
                self._set_think(values[0] if values else True)
                self._say(f"Set 'think' mode to '{values[0]}'." if values else "Set 'think' mode.")
            case "nothink":
                self._set_think(think=False)
                self._say("Set 'nothink' mode.")
            case "verbose" | "quiet":
                self.verbose = what == "verbose"
                self._say(f"Set '{what}' mode.")
            case "history" | "nohistory":
                self.keep_history(what == "history")
            case "" | "system":
                self._say(HELP_SET)
            case _:
                self._say(f"Unknown command '/set {what}'. Type /? for help")

    def _set_think(self, think: Think) -> None:
        self.conversation.think = think
        self.think_is_chosen = True

    def _show(self, words: list[str]) -> None:
        what = words[0] if words else ""
        if what and what not in {"info", *PARTS}:
            self._say(f"Unknown command '/show {what}'. Type /? for help")
            return
        if not what:
            self._say(HELP_SHOW)
            return
        info = self.client.show(
            self.conversation.model, system=self.conversation.system, options=self.conversation.options
        )
        if what == "info":
            self._say(describe(info, verbose=False))
        elif what == "parameters":
            self._say(self._parameters(info))
        else:
            text = (self.conversation.system if what == "system" else "") or info.get(what)
            self._say(text or f"No {what} was specified for this model.")

    def _parameters(self, info: Record) -> str:
        lines = ["Model defined parameters:"]
        defined = info.get("parameters", "").splitlines()
        lines += [f"  {line}" for line in defined or ["No additional parameters were specified for this model."]]
        if self.conversation.options:
            lines += ["", "User defined parameters:"]
            lines += [f"  {name:<30} {value}" for name, value in self.conversation.options.items()]
        return "\n".join(lines)

    def _say(self, text: str = "") -> None:
        self.out.write(text + "\n")
        self.out.flush()
