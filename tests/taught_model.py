"""A model of a few megabytes that was taught what to say: thinking, tool calls and JSON on cue, on the real engine.

No real model that calls tools fits every machine, and a random one says nothing that a parser could read. This one
learns `LESSONS` by heart, on a CPU in about a minute. Only what stands right before the reply decides (attention
reaches back `_WINDOW` tokens in each layer), so any system prompt, list of tools and history may stand before it.

`python tests/taught_model.py` writes a snapshot to `KEPT`, with the tokenizer of smollm2:135m in $OLLAMA_MODELS.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vllama.names import ModelName
from vllama.store.model_store import ModelStore

KEPT = Path(__file__).parents[1] / ".cache" / f"taught-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}"
"""Where the snapshot is that this file makes, so that a checkout makes it once."""

# --- what it is taught ---


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that the model makes."""

    name: str
    arguments: dict[str, Any]

    @property
    def json(self) -> str:
        """As nearly all families write it."""
        return json.dumps({"name": self.name, "arguments": self.arguments})


@dataclass(frozen=True, slots=True)
class Lesson:
    """The reply to a user's message that ends so: thinking (where that is on), text, then calls."""

    ending: str
    thinking: str
    answer: str = ""
    calls: tuple[Call, ...] = ()


OSLO, BERGEN, PARIS = (Call("get_weather", {"city": city}) for city in ("Oslo", "Bergen", "Paris"))

LESSONS = (
    Lesson("weather in Oslo?", "I must ask the weather service.", calls=(OSLO,)),
    Lesson("weather in Paris?", "Paris needs a call.", calls=(PARIS,)),
    Lesson("weather in Oslo and Bergen?", "Two cities, two calls.", calls=(OSLO, BERGEN)),
    Lesson("weather in Oslo, please.", "A polite one.", "I will look.", (OSLO,)),
    Lesson("Add 2 and 3.", "That is for the calculator.", calls=(Call("add", {"a": 2, "b": 3}),)),
    Lesson("What time is it?", "The clock knows.", calls=(Call("get_time", {}),)),
    Lesson("Note that Ann is 31.", "I shall note it.", calls=(Call("final_result", {"name": "Ann", "age": 31}),)),
    Lesson("How old is Ann?", "Somebody told me.", '{"name": "Ann", "age": 31}'),
    Lesson("Describe Oslo in JSON.", "Cold and by the sea.", '{"city": "Oslo", "degrees": 7}'),
    Lesson("How many r are in strawberry?", "s-t-r, then a-w-b-e-r-r-y.\nThat makes three.", "There are three."),
    Lesson("Why is the sky blue?", "Air scatters light.", "Because air scatters blue light most."),
    Lesson("capital of France?", "That is well known.", "The capital of France is Paris."),
    Lesson("Hello!", "A greeting.", "Hello! How can I help you?"),
)
OTHERWISE = Lesson("", "I do not know this one.", "I have nothing to say about that.")

TOOL_LESSONS = (
    Lesson("7 degrees and sunny", "The sun shines.", "It is sunny there."),
    Lesson("3 degrees and rain", "So it rains.", "Take an umbrella."),
)
"""The same for results of tools, in templates that wrap them in `<tool_response>`."""
TOOL_OTHERWISE = Lesson("", "A result came back.", "The tool has answered.")


def _tagged(lesson: Lesson) -> str:
    """Calls as Hermes and Qwen write them."""
    return _lines(lesson.answer, *(f"<tool_call>\n{call.json}\n</tool_call>" for call in lesson.calls))


def _bare(lesson: Lesson) -> str:
    """Calls as JSON that nothing marks."""
    return _lines(lesson.answer, *(call.json for call in lesson.calls))


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Manner:
    """A way to reply: on the `cue` that the template puts last, after the `opening` that it puts into the reply."""

    cue: str
    opening: str
    reply: Callable[[Lesson], str]

    @property
    def prompt_end(self) -> str:
        """What the template puts after the last message."""
        cue = f"<|im_start|>system\n{self.cue}<|im_end|>\n" if self.cue else ""
        return f"{cue}<|im_start|>assistant\n{self.opening}"


MANNERS = (
    Manner("", "", _tagged),
    Manner("", "<think>\n\n</think>\n\n", _tagged),
    Manner("", "<think>\n", lambda lesson: f"{lesson.thinking}\n</think>\n\n{_tagged(lesson)}"),
    Manner("", "<think>", lambda lesson: f"\n{lesson.thinking}\n</think>\n\n{_tagged(lesson)}"),
    Manner("/think", "", lambda lesson: f"<think>\n{lesson.thinking}\n</think>\n\n{_tagged(lesson)}"),
    Manner("/json", "", _bare),
    Manner(
        "/phrases",
        "",
        lambda lesson: f"Here is my thought process: {lesson.thinking} Here is my response: {_tagged(lesson)}",
    ),
)

# --- how it is asked ---

_MESSAGES = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
{{- 'These functions can be called:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}
{{- '\\n</tools>\\nWrite each call as <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
"""
_PLAIN = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""


def _asking(thoughtful: str, thoughtless: str) -> str:
    """The end of a template whose switch is `enable_thinking`."""
    return (
        "{%- if add_generation_prompt %}{%- if enable_thinking is defined and enable_thinking is false %}"
        f"{{{{- {thoughtless!r} }}}}{{%- else %}}{{{{- {thoughtful!r} }}}}{{%- endif %}}{{%- endif %}}\n"
    )


_BARE, _EMPTY, _OPENED, _, _ITSELF, _JSON, _PHRASES = (manner.prompt_end for manner in MANNERS)

TEMPLATES = {
    "tools": _MESSAGES + _asking(_ITSELF, _EMPTY),  # as Qwen 3: the model writes `<think>` itself
    "opened": _MESSAGES + _asking(_OPENED, _EMPTY),  # as Qwen 3.5 and DeepSeek R1: the template writes it
    "phrases": _MESSAGES + _asking(_PHRASES, _BARE),  # as Granite 3
    "calls": _MESSAGES + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}\n",
    "plain": _PLAIN,
}

# --- how it learns ---

_END = "<|im_end|>"
_ADDED_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_WINDOW = 96  # a long reply and the end of its question
_WIDTH, _HEADS, _LAYERS = 64, 6, 2
_BATCH, _STEPS, _RATE = 32, 450, 1e-2
_REPETITIONS, _EXAMINED = 30, 20
_LEAST_MARGIN = 4.0  # of the right token's logit over the next: sampled at temperature 1 it is right 98 times of 100

_SYSTEM_PROMPTS = (
    "",
    "<|im_start|>system\nYou are an assistant that answers briefly. Today is Sunday.\n<tools>\n</tools><|im_end|>\n",
    """\
<|im_start|>system
These functions can be called:
<tools>
{"type": "function", "function": {"name": "get_weather", "description": "The weather in a city", "parameters": \
{"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}}}
</tools>
Write each call as <tool_call>
{"name": ..., "arguments": ...}
</tool_call><|im_end|>
""",
)


class _Teacher:
    """Makes up conversations that end in a lesson."""

    def __init__(self, tokenizer: Any) -> None:
        self._random = random.Random(0)
        words = (tokenizer.decode([token]) for token in range(200, 40_000, 7))
        self._words = [word for word in words if word.strip().isascii()]

    def conversations(self, count: int) -> list[tuple[str, str]]:
        """Prompts and the replies to them, with about as much before each."""
        before: Callable[[], str] = self._random.choice(
            (
                lambda: "",
                lambda: "",
                lambda: self._random.choice(_SYSTEM_PROMPTS),
                lambda: self._noise(20),
                lambda: self._noise(5) + "".join(self._turn()) + "\n",
                lambda: self._noise(100),
            )
        )
        return [(before() + prompt, reply) for prompt, reply in (self._turn() for _ in range(count))]

    def every_lesson(self) -> Iterable[list[tuple[str, str]]]:
        """Each lesson in each manner and after each system prompt: a list for each manner and system prompt."""
        for manner in MANNERS:
            turns = [_turn(lesson.ending, lesson, manner) for lesson in LESSONS]
            turns += [_turn(_wrapped(lesson.ending), lesson, manner) for lesson in TOOL_LESSONS]
            for before in _SYSTEM_PROMPTS:
                yield [(before + prompt, reply) for prompt, reply in turns]

    def _turn(self) -> tuple[str, str]:
        pick, manner = self._random.choice, self._random.choice(MANNERS)
        kind = self._random.random()
        if kind < 0.25:
            lesson = pick((*TOOL_LESSONS, TOOL_OTHERWISE))
            said = _wrapped(self._after_noise(lesson.ending))
        elif kind < 0.35:
            lesson = OTHERWISE
            said = self._after_noise(pick(("", "weather in", "2", "and", "it?", "this.")))
        else:
            lesson = pick(LESSONS)
            said = self._after_noise(lesson.ending)
        return _turn(said, lesson, manner)

    def _after_noise(self, ending: str) -> str:
        words = self._random.choice((0, 0, 2, 6))
        return self._noise(words) + self._random.choice((" ", "\n")) + ending if words else ending

    def _noise(self, words: int) -> str:
        return "".join(self._random.choices(self._words, k=words))


def _turn(said: str, lesson: Lesson, manner: Manner) -> tuple[str, str]:
    """The user's message, as a prompt, and the reply to it."""
    return f"<|im_start|>user\n{said}{_END}\n{manner.prompt_end}", manner.reply(lesson) + _END


def _wrapped(tool_result: str) -> str:
    return f"<tool_response>\n{tool_result}\n</tool_response>"


class _Pupil:
    """The model while it learns.

    Only the layers, and the rows of the tokens that lessons hold, are trained. All other tokens stay noise at the
    input, and at the output they have no chance: their rows are zeros.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        import torch

        self._model, self._tokenizer = model, tokenizer
        lessons = (*LESSONS, OTHERWISE, *TOOL_LESSONS, TOOL_OTHERWISE)
        replies = [manner.reply(lesson) + _END for manner in MANNERS for lesson in lessons]
        prompts = [f"\n{ending} {ending}{_END}\n" for ending in (lesson.ending for lesson in lessons)]
        frame = [manner.prompt_end for manner in MANNERS] + [
            "<|im_start|>user\n<tool_response>\n",
            "\n</tool_response>",
        ]
        self._spoken, self._heard = self._tokens(replies), self._tokens([*replies, *prompts, *frame])

        embeddings = model.model.embed_tokens.weight
        torch.nn.init.normal_(embeddings, std=1 / math.sqrt(_WIDTH))
        self._embeddings = embeddings.detach().clone()
        self._row_of = torch.zeros(len(tokenizer), dtype=torch.long)
        self._row_of[self._heard] = torch.arange(1, len(self._heard) + 1)
        self._rows = torch.nn.Parameter(torch.cat([torch.zeros(1, _WIDTH), self._embeddings[self._heard]]))
        self._head = torch.nn.Linear(_WIDTH, len(self._spoken), bias=False)
        self._place = {int(token): place for place, token in enumerate(self._spoken)}
        self._learning = [
            *model.model.layers.parameters(), *model.model.norm.parameters(), self._rows, *self._head.parameters()
        ]  # fmt: skip
        self._optimizer = torch.optim.AdamW(self._learning, lr=_RATE, weight_decay=0)

    def learn(self, teacher: _Teacher) -> None:
        """Learn, then repeat what is still wrong. Raises RuntimeError where a lesson, or much else, stays so.

        Each lesson is examined in each manner: processors round differently, and what is right on one of them by
        chance may be wrong on another.
        """
        import torch

        schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, _RATE, total_steps=_STEPS, pct_start=0.1)
        for _ in range(_STEPS):
            self._step(teacher.conversations(_BATCH))
            schedule.step()
        for repetition in range(_REPETITIONS):
            self._optimizer.param_groups[0]["lr"] = _RATE / 10 * 0.8**repetition
            forgotten = [one for lessons in teacher.every_lesson() for one in self._wrong(lessons)]
            others = [one for _ in range(_EXAMINED) for one in self._wrong(teacher.conversations(_BATCH))]
            print(f"wrong: {len(forgotten)} lessons, {len(others)} of {_EXAMINED * _BATCH} other conversations")
            if not forgotten and len(others) <= _EXAMINED * _BATCH / 40:
                return
            wrong = forgotten + others
            for start in range(0, len(wrong), _BATCH // 2):
                self._step(wrong[start : start + _BATCH // 2] + teacher.conversations(_BATCH // 2))
        raise RuntimeError(f"the model gets {len(forgotten)} lessons and {len(others)} other conversations wrong")

    def finish(self) -> None:
        """Put what was learned into the model."""
        import torch

        with torch.no_grad():
            self._model.model.embed_tokens.weight[self._heard] = self._rows[1:]
            self._model.lm_head.weight.zero_()
            self._model.lm_head.weight[self._spoken] = self._head.weight

    def _step(self, conversations: list[tuple[str, str]]) -> None:
        import torch
        from torch.nn.functional import cross_entropy

        logits, targets, _ = self._logits(conversations)
        others = torch.full((len(logits), 1), math.log(len(self._tokenizer) - len(self._spoken)))
        loss = cross_entropy(torch.cat([logits, others], 1), targets)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._learning, 1.0)
        self._optimizer.step()

    def _wrong(self, conversations: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those whose reply holds a token that does not lead by enough."""
        import torch

        with torch.no_grad():
            logits, targets, owners = self._logits(conversations)
        right = logits.gather(1, targets[:, None])[:, 0]
        wrong = logits.scatter(1, targets[:, None], -math.inf).amax(1).clamp(min=0)
        return [conversations[index] for index in sorted(set(owners[right - wrong < _LEAST_MARGIN].tolist()))]

    def _logits(self, conversations: list[tuple[str, str]]) -> tuple[Any, Any, Any]:
        """For each token of a reply: the logits before it, its place in the head, its conversation's number."""
        import torch
        from torch.nn.functional import embedding

        asked = self._tokenizer([prompt for prompt, _ in conversations]).input_ids
        said = self._tokenizer([reply for _, reply in conversations]).input_ids
        width = max(len(prompt) + len(reply) for prompt, reply in zip(asked, said, strict=True))
        ids = torch.full((len(asked), width), self._tokenizer.pad_token_id)
        targets = torch.full((len(asked), width), -1)
        for row, (prompt, reply) in enumerate(zip(asked, said, strict=True)):
            end = len(prompt) + len(reply)
            ids[row, :end] = torch.tensor(prompt + reply)
            targets[row, len(prompt) - 1 : end - 1] = torch.tensor([self._place[token] for token in reply])
        numbers = self._row_of[ids]
        noise = embedding(ids, self._embeddings)
        inputs = torch.where((numbers > 0)[..., None], embedding(numbers, self._rows), noise)
        states = self._model.model(inputs_embeds=inputs).last_hidden_state
        return self._head(states[targets >= 0]), targets[targets >= 0], (targets >= 0).nonzero()[:, 0]

    def _tokens(self, texts: Iterable[str]) -> Any:
        import torch

        return torch.tensor(sorted({token for text in texts for token in self._tokenizer(text).input_ids}))


def build_taught_model(tokenizer_from: Path, destination: Path) -> None:
    """Teach a model and write it as a snapshot, with the tokenizer of another and the template "tools".

    On the same machine the weights are the same each time. Raises RuntimeError where it cannot learn.
    """
    import torch
    from transformers import AutoTokenizer, GenerationConfig, MistralConfig, MistralForCausalLM

    torch.set_num_threads(1)  # it is too small for more
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    tokenizer.add_tokens(list(_ADDED_TOKENS))
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = MistralForCausalLM(
        MistralConfig(  # a Llama with a window
            vocab_size=len(tokenizer),
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS,
            num_key_value_heads=_HEADS,
            head_dim=32,  # the least that vLLM's CPU attention takes
            max_position_embeddings=32768,  # coding agents send long prompts
            sliding_window=_WINDOW,
            tie_word_embeddings=False,
            **special,
        )
    )
    pupil = _Pupil(model, tokenizer)
    pupil.learn(_Teacher(tokenizer))
    pupil.finish()
    model.generation_config = GenerationConfig(**special)
    with TemporaryDirectory(dir=destination.parent) as directory:
        snapshot = Path(directory, "snapshot")
        model.to(torch.bfloat16).save_pretrained(snapshot)
        tokenizer.save_pretrained(snapshot)
        (snapshot / "chat_template.jinja").write_text(TEMPLATES["tools"])
        snapshot.rename(destination)


def with_template(snapshot: Path, destination: Path, template: str) -> Path:
    """The same weights with another template of `TEMPLATES`. Returns `destination`."""
    shutil.copytree(snapshot, destination)
    (destination / "chat_template.jinja").write_text(TEMPLATES[template])
    return destination


def main() -> None:
    """Write the snapshot to `KEPT`, unless it is there."""
    if not KEPT.exists():
        KEPT.parent.mkdir(exist_ok=True)
        smollm2 = ModelStore(Path(os.environ["OLLAMA_MODELS"])).get(ModelName.parse("smollm2:135m"))
        build_taught_model(smollm2.snapshot, KEPT)


if __name__ == "__main__":
    main()
