"""What is otherwise on Ollama's own API, and on every path."""

from __future__ import annotations

import json
import re

from replay.comparison import Difference
from replay.recording import Exchange, Response
from replay.rules import WHOLE, Deviation, accepted, any_of, at, error_of, on, refused


def _option_types(exchange: Exchange, actual: Response, difference: Difference) -> bool:
    text = error_of(exchange.response)
    return (
        re.fullmatch(r'option "\w+" must be of type \w+', text) is not None
        and error_of(actual) == text
        and difference == Difference("status", "500", "400")
    )


_EMPTY_TEXT = "no input provided"


def _empty_text(exchange: Exchange, actual: Response, difference: Difference) -> bool:
    return (
        error_of(exchange.response).endswith(_EMPTY_TEXT)
        and error_of(actual).startswith(_EMPTY_TEXT)
        and (difference == Difference("status", "500", "400") or difference.where == "body.error")
    )


def _continued(exchange: Exchange, actual: Response, difference: Difference) -> bool:
    """The prompt is shorter, because it does not close the last message and begin another."""
    messages = exchange.request.fields.get("messages") or []
    return (
        bool(messages)
        and messages[-1]["role"] == "assistant"
        and difference.where == "body.prompt_eval_count"
        and int(difference.actual or 0) < int(difference.recorded or 0)
    )


def _tools_as_json(exchange: Exchange, actual: Response, difference: Difference) -> bool:
    """The prompt is the same, save that notation; where only its length is told, it is longer."""
    tools = exchange.request.fields.get("tools")
    if not tools or not (difference.recorded and difference.actual):
        return False
    if difference.where in {"body.prompt_eval_count", "usage.usage.prompt_tokens"}:
        return int(difference.actual) > int(difference.recorded)
    if difference.where != "body._debug_info.rendered_template":
        return False
    written = "".join(json.dumps(tool, separators=(",", ":")) for tool in tools)
    recorded, ours = (json.loads(text) for text in (difference.recorded, difference.actual))
    return bool(re.sub(r"\{function <nil> \{.*\}\}", lambda _: written, recorded) == ours)


def _cut_prompt(exchange: Exchange, actual: Response, difference: Difference) -> bool:
    if difference.where != "body.context":
        return False
    recorded, limit = json.loads(exchange.response.body), exchange.request.fields["options"].get("num_ctx", 0)
    ours = json.loads(actual.body)
    return bool(len(recorded["context"]) > limit >= len(ours["context"]) - ours["eval_count"] > 0)


def _modelfile(exchange: Exchange, actual: Response, difference: Difference) -> bool:
    """All commands are the same, save the template's text and the licence."""
    if difference.where != "body.modelfile":
        return False
    commands = [_commands(json.loads(reply.body)["modelfile"]) for reply in (exchange.response, actual)]
    return commands[0] == commands[1]


def _commands(modelfile: str) -> list[tuple[str, str]]:
    found = re.split(r"^(FROM|TEMPLATE|SYSTEM|PARAMETER|LICENSE|MESSAGE) ", modelfile, flags=re.MULTILINE)
    return [(name, text) for name, text in zip(found[1::2], found[2::2], strict=True) if name not in _OURS]


_OURS = {"FROM", "TEMPLATE", "LICENSE"}
_NOT_KNOWN = r"pull model manifest: file does not exist: no known source for '.*"


def _whole_reply(exchange: Exchange, actual: Response, difference: Difference) -> bool:
    stream = actual.header("content-type") in {"application/x-ndjson", "text/event-stream"}
    return not stream and at("framing", recorded="chunked|no length", actual="length")(exchange, actual, difference)


def _not_in_catalogue(exchange: Exchange, actual: Response, difference: Difference) -> bool:
    """The model is asked of a registry in the recording; we look into the catalogue, and say what it has."""
    if exchange.request.path not in {"/api/pull", "/api/create"} or difference.where not in _PULLED:
        return False
    last = json.loads(actual.body.splitlines()[-1])
    return re.fullmatch(_NOT_KNOWN, str(last.get("error"))) is not None


_PULLED = {"error.error", "body.error", "order of records", "status", "body"}


def _own_template(exchange: Exchange, actual: Response, difference: Difference) -> bool:
    """Two steps less: what was found by guessing, and its layer."""
    guessed = "using autodetected template chatml, using existing layer …, "
    left = (difference.recorded or "").replace(guessed, "")
    return difference == Difference("order of records", difference.recorded, left) and guessed in (
        difference.recorded or ""
    )


def _never_pulled(exchange: Exchange, actual: Response, difference: Difference) -> bool:
    """What could not be pulled cannot be deleted."""
    name = str(exchange.request.fields.get("model"))
    missing = name.startswith("http://") and error_of(actual) == f"model '{name}' not found"
    return missing and exchange.request.path == "/api/delete" and difference.where in WHOLE


NATIVE = (
    Deviation(
        "files",
        "vllama serves safetensors, converted from GGUF if a model has only that: the names, types and shapes of "
        "tensors and `details.parent_model` are theirs, and the facts of a GGUF header are left out.",
        "contract §4.1, §4.4",
        any_of(
            at(r"body\.details\.parent_model", recorded='"/var/lib/ollama/.*"', actual='""'),
            at(r"body\.tensors\[\]\.(name|type|shape\[\])"),
            at(r"body\.model_info\.(general|tokenizer\.ggml)\.\w+", actual=""),
        ),
    ),
    Deviation(
        "template",
        "The chat template that `/api/show` gives is the tokenizer's, in Jinja.",
        "contract §4.1",
        any_of(at("body.template", recorded=r".*\{\{.*", actual=r".*\{%.*"), _modelfile),
    ),
    Deviation(
        "licence",
        "The licence that comes with the weights belongs to the model, too.",
        "contract §4.1",
        at("body.license", recorded="", actual=r'" *Apache License.*'),
    ),
    Deviation(
        "parsers",
        "`model_info` has the parsers that were chosen for tool calls and thinking, under our own name.",
        "Deliberate differences",
        at(r"body\.model_info\.vllama\.(tool|reasoning)_parser", recorded="", actual=r'".+"'),
    ),
    Deviation(
        "provenance",
        "`model_info` has, under our own name, what a pull asked for, what is served, and what became of weights.",
        "Deliberate differences",
        at(r"body\.model_info\.vllama\.(asked|served|difference|weights)", recorded="", actual=r'".+"'),
    ),
    Deviation(
        "served context",
        "The context length in `model_info` is what is served, once a worker serves it.",
        "contract §4.1",
        at("body.model_info.llama.context_length", recorded="8192", actual="4096"),
    ),
    Deviation(
        "version",
        "`/api/version` reports the release whose API is spoken.",
        "contract §6.9",
        at(r"body\.version", recorded=r'"0\.24\.0"', actual=r'"\d+\.\d+\.\d+"'),
    ),
    Deviation(
        "newer keys",
        "`details.context_length` and `.embedding_length`, `capabilities` of `/api/tags`, and "
        "`prompt_eval_cached_count` of final records are in newer Ollamas.",
        "contract §4.2, §8",
        any_of(
            at(r"body(\.models\[\])?\.details\.(context_length|embedding_length)", recorded="", actual=r"\d+"),
            at(r"body\.models\[\]\.capabilities", recorded="", actual=r"\[.*\]"),
            at(r".*\.prompt_eval_cached_count", recorded="", actual=r"\d+"),
        ),
    ),
    Deviation(
        "option types",
        "An option of the wrong type is the client's fault: 400 instead of 500, with the same text.",
        "contract §10",
        _option_types,
    ),
    Deviation(
        "lenient input",
        "Texts as parts of a message's content, seconds in a string as `keep_alive`, and arguments of past tool calls "
        "in a string are accepted.",
        "contract §10",
        any_of(
            accepted(r"json: cannot unmarshal array into .* ChatRequest\.messages\.content of type string"),
            accepted(r'time: missing unit in duration "\d+"'),
            accepted("Value looks like object, but can't find closing '}' symbol"),
        ),
    ),
    Deviation(
        "empty text",
        "A text of which the tokenizer makes no token is the client's fault: 400 instead of 500, with the cause.",
        "contract §1.4",
        _empty_text,
    ),
    Deviation(
        "continued message",
        "A reply continues the assistant's last message where the model's template allows it; Ollama's template of "
        "this model closes the message and begins another.",
        "Chat templates",
        _continued,
    ),
    Deviation(
        "images",
        "Images for a model that sees nothing are refused; Ollama puts a placeholder into the prompt.",
        "contract §2.6",
        refused(r"registry\.ollama\.ai/library/smollm2:135m does not support vision"),
    ),
    Deviation(
        "tools as JSON",
        "A tool that a Go template writes as a whole, `{{ . }}`, is JSON, as models have learned it. Ollama 0.24.0 "
        "writes Go's own notation, `{function <nil> {…}}`.",
        "Go templates",
        _tools_as_json,
    ),
    Deviation(
        "cut prompt",
        "`context` of a prompt that was too long has the tokens that the model got, not those that were cut.",
        "contract §2.7",
        _cut_prompt,
    ),
    Deviation(
        "catalogue",
        "Ollama's registry is not used: models are pulled by the catalogue or from the Hugging Face Hub, and "
        "the error lists similar names.",
        "Routes",
        any_of(_not_in_catalogue, _never_pulled),
    ),
    Deviation(
        "own template",
        "A GGUF file's own chat template is used: none is guessed from it, and so there is no layer of one.",
        "Creating models",
        _own_template,
    ),
    Deviation(
        "push",
        "Nothing leaves this server.",
        "contract §1.8",
        on(
            "/api/push",
            any_of(
                refused("push is not supported by this server"),
                refused("push is not supported by this server", over="Head .*"),
            ),
        ),
    ),
    Deviation(
        "cloud",
        "No user is signed in, and no models are recommended: Ollama recommends cloud and GGUF models.",
        "contract §1.11",
        any_of(
            on("/api/experimental/model-recommendations", at("body.recommendations", actual="0 entries")),
            on("/api/me", at("status", recorded="503", actual="401")),
            on("/api/me", at("body.error", recorded='"account unavailable"', actual='"unauthorized"')),
        ),
    ),
    Deviation(
        "double slash",
        "Doubled slashes in a path are taken as one, without a redirect that clients do not follow.",
        "contract §1.0",
        on("//.*", any_of(at("status", recorded="307", actual="200"), at("body|header location|header content-type"))),
    ),
    Deviation(
        "framing",
        "A reply that is sent whole says its length; Go's server sends long ones in chunks.",
        "RFC 9112 §6",
        _whole_reply,
    ),
    Deviation(
        "reason phrase",
        "The reason behind a status code is the standard one.",
        "RFC 9112 §4",
        at("reason"),
    ),
)
