"""Go templates of Ollama's models to Jinja chat templates that transformers and vLLM render.

The result wants what transformers gives every chat template: a sandboxed Jinja with loop controls, `tojson` with
separators, `raise_exception` and `strftime_now`. It reads `messages` and `tools` in OpenAI's shape, and these
variables, each only where the Go template asks for it:

- `enable_thinking` (bool) and `reasoning_effort` (a level): `.Think`, `.ThinkLevel`, `.IsThinkSet`. A level alone turns
  thinking on; thinking without a level has Ollama's level `medium`.
- `prompt` and `suffix` (text), both given: fill in the middle. The template is run once with `.Prompt` and `.Suffix`
  and sees no messages, whichever are given (transformers wants at least one).

A template without `.Messages` runs once for each round of system, prompt and response. Where Ollama differs from Go's
plain rules, Ollama is followed (template/template.go), with these exceptions: nil prints nothing; tools, calls and
whatever else is an object print as JSON, keys in the order given and keys that Ollama does not know included; numbers
inside of arguments print as JSON has them; what `index` and `slice` do not find is nil instead of an error; templates
without `.Messages` see `.Tools` too. Definitions and calls of named templates, `html`, `js`, `urlquery`, `call`, and
`printf` with a computed format are refused.
"""

from __future__ import annotations

import re
from functools import lru_cache

from vllama.ollama.gotemplate.parser import parse
from vllama.ollama.gotemplate.translation import translate

_GO_ACTION = re.compile(
    r"\{\{(?:-(?=\s))?\s*(?:"
    r"/\*|\.(?![0-9])|\$"  # a comment, a field, a variable
    r"|(?:if|with|range|else\s+if|else\s+with)\s+[^\s}]"
    r'|(?:define|template|block)\s+"'
    r"|(?:end|else|break|continue)\s*(?:-?\}\}|$)"
    r"|(?:json|len|not|and|or|eq|ne|printf?|println|index|slice|toTypeScriptType)\s+[.$(\"`]"
    r"|(?:currentDate|yesterdayDate)\b"
    r")"
)
_JINJA_TAG = re.compile(r"\{[%{#]")


def is_go_template(text: str) -> bool:
    """Whether a template is in Go's language rather than Jinja.

    One action that only Go has settles it. Text without any action is Go's: it came from a field that Ollama documents
    as Go, and Ollama shows such text once for each round instead of as the whole prompt.
    """
    return bool(_GO_ACTION.search(text)) or not _JINJA_TAG.search(text)


@lru_cache(maxsize=64)  # asked at every request
def to_jinja(text: str) -> str:
    """Translate a Go template. Raises TemplateError, with Go's words where it does not parse."""
    return translate(parse(text))


@lru_cache(maxsize=64)
def variables(text: str) -> frozenset[str]:
    """The names of all fields that a Go template uses, in Go's spelling: `Messages`, `Tools`, `Role`, `Thinking`, …

    Ollama reads capabilities off them (contract §4.5). Raises TemplateError where the text does not parse.
    """
    return parse(text).names
