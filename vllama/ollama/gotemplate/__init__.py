"""Translation of Go templates of Ollama's models to Jinja chat templates for transformers and vLLM.

The result requires what transformers provides to every chat template: a sandboxed Jinja with loop controls, `tojson`
with separators, `raise_exception` and `strftime_now`. It reads `messages` and `tools` in OpenAI's shape, and these
variables if the Go template uses them:

- `enable_thinking` (bool) and `reasoning_effort` (a level): `.Think`, `.ThinkLevel`, `.IsThinkSet`. A level alone turns
  thinking on; thinking without a level means Ollama's level `medium`.
- `prompt` and `suffix` (text), both given: fill in the middle. The template is run once with `.Prompt` and `.Suffix`
  and sees no messages, whichever are given (transformers wants at least one).

A template without `.Messages` runs once for each round of system, prompt and response. Where Ollama differs from Go's
plain rules, this follows Ollama (template/template.go), with these exceptions: nil prints nothing; tools, calls and
whatever else is an object print as JSON, keys in the order given and keys that Ollama does not know included; numbers
inside arguments print as in JSON; `index` and `slice` return nil instead of an error for missing items; templates
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
_MARK = "{#- translated from Go -#}"


def is_go_template(text: str) -> bool:
    """Return whether a template is in Go's language rather than Jinja.

    One action that exists only in Go decides. Text without any action counts as Go: it came from a field that Ollama
    documents as Go, and Ollama prints such text once per round instead of as the whole prompt.
    """
    return bool(_GO_ACTION.search(text)) or not _JINJA_TAG.search(text)


@lru_cache(maxsize=64)  # called for every request
def to_jinja(text: str) -> str:
    """Translate a Go template to Jinja. Raises TemplateError, with Go's message if it does not parse."""
    return _MARK + translate(parse(text))


def is_translated(jinja: str) -> bool:
    """Return whether `to_jinja` made a template: unlike others in Jinja, it leaves BOS and EOS to the tokenizer."""
    return jinja.startswith(_MARK)


@lru_cache(maxsize=64)
def variables(text: str) -> frozenset[str]:
    """Return the names of all fields that a Go template uses, in Go's spelling, such as `Messages` or `Role`.

    Ollama derives capabilities from them (contract §4.5). Raises TemplateError if the text does not parse.
    """
    return parse(text).names
