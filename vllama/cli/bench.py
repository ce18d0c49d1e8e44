"""`vllama bench`: measure a server, alone or against another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from vllama.cli.api_client import ApiClient
from vllama.cli.bench_output import Outputs, emit, output_options
from vllama.cli.progress import ProgressLine
from vllama.errors import RequestError

if TYPE_CHECKING:
    from vllama.bench.design import ExperimentDesign
    from vllama.bench.result import Api, ExperimentResult, LoadLevel, Mode, System

T = TypeVar("T", int, float)

SUBCOMMANDS: Mapping[str, str] = {"report": "bench_report", "compare": "bench_compare", "rerun": "bench_rerun"}
"""Commands below `vllama bench`, and the modules of this package that they are in."""

MODES = ("streaming", "concurrent", "sequential", "all", "coldstart", "switch", "overhead")
_OF_LOADS = ("rate", "duration", "prompt_tokens", "schema", "control")
UNUSED = {
    "sequential": ("rate",),
    "coldstart": _OF_LOADS,
    "switch": _OF_LOADS,
    "overhead": (*_OF_LOADS, "url", "label", "against"),
}
"""Options that a mode refuses, because it would ignore them."""

APIS = ("ollama", "ollama-generate", "openai", "openai-completions")

POSITIVE = click.FloatRange(0, min_open=True)

BUDGET_SECONDS = 40.0
"""Total time of all runs without --iterations and --duration."""

LEAST_SECONDS = 2.0


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return `1,2,4` as numbers."""
    return _positive(text, int)


def numbers(text: str) -> tuple[float, ...]:
    """Return `0.5,2` as numbers."""
    return _positive(text, float)


def _positive(text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(float(number) for number in found) <= 0:
        message = f"{text!r} is not a list of positive numbers such as 1,2,4"
        raise click.BadParameter(message)
    return tuple(dict.fromkeys(found))


class BenchCommand(click.Command):
    """Passes control to the subcommand that the first argument names, if any."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context of this command or of the one below it."""
        if args and args[0] in SUBCOMMANDS:
            command: click.Command = import_module(f"vllama.cli.{SUBCOMMANDS[args[0]]}").command
            return command.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(
    "bench",
    cls=BenchCommand,
    epilog="""\b
Examples:
  vllama bench smollm2:135m
  vllama bench smollm2:135m --concurrency 1,2,4,8,16,32 --duration 20
  vllama bench smollm2:135m --against http://127.0.0.1:11435 --output result.json
  vllama bench smollm2:135m --rate 2,4,8 --arrivals poisson --slo-ttft 500
  vllama bench smollm2:135m --schema person.json --concurrency 1,16

\b
Work with existing results:
  vllama bench report RESULT.json --html report.html
  vllama bench compare BEFORE.json AFTER.json --fail-if 5%
  vllama bench rerun RESULT.json""",
)
@click.argument("model", default="")
@click.option("--url", default="", help="Server to measure.  [default: OLLAMA_HOST]")
@click.option("--api", type=click.Choice(APIS), default="ollama", show_default=True, help="API to measure it by.")
@click.option("--label", default="", help="Name of the server in reports.  [default: its address]")
@click.option("--against", default="", metavar="URL", help="Second server to compare with: the baseline.")
@click.option("--against-model", default="", metavar="NAME", help="Model of the baseline.  [default: MODEL]")
@click.option(
    "--against-api", type=click.Choice(APIS), help="API to measure the baseline by.  [default: same as --api]"
)
@click.option("--against-label", default="", help="Name of the baseline in reports.  [default: its address]")
@click.option(
    "--control",
    default="",
    metavar="NAME",
    help="The baseline's model on the measured server, to separate the effect of the server from that of the model.",
)
@click.option(
    "--allow-different",
    is_flag=True,
    help="Compare even if context, quantization or lengths differ; the report lists the differences.",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="streaming",
    show_default=True,
    help="Kind of measurement; all: sequential, concurrent and streaming.",
)
@click.option(
    "--concurrency",
    type=whole_numbers,
    metavar="N,…",
    default="1,8",
    show_default=True,
    help="Number of clients, each with one request at a time.",
)
@click.option(
    "--rate",
    type=numbers,
    metavar="N,…",
    help="Requests per second instead of clients, sent even if the server falls behind.",
)
@click.option(
    "--arrivals",
    type=click.Choice(("constant", "poisson")),
    default="constant",
    show_default=True,
    help="Spacing of requests with --rate.",
)
@click.option("--iterations", type=click.IntRange(1), help="Requests per run.")
@click.option("--duration", type=POSITIVE, help="Seconds per run.  [default: all runs share 40]")
@click.option(
    "--repetitions", type=click.IntRange(1), help="Runs per mode, load and server.  [default: 1; with --against 3]"
)
@click.option(
    "--warmup",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Uncounted requests per client before each run.",
)
@click.option("--timeout", type=POSITIVE, default=300.0, show_default=True, help="Maximum seconds per request.")
@click.option("--tokens", type=click.IntRange(1), default=50, show_default=True, help="Maximum tokens per reply.")
@click.option("--prompt-tokens", type=click.IntRange(1), help="Length of synthetic prompts, including the template.")
@click.option(
    "--prompts",
    type=click.Path(exists=True, path_type=Path),
    help="File of prompts (text, JSON lines, ShareGPT) or directory of images.",
)
@click.option("--same-prefix", is_flag=True, help="Start all prompts with the same words, so that prefix caches work.")
@click.option(
    "--schema",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON Schema that replies must match, or a task file with prompts and expected values.",
)
@click.option("--slo-ttft", type=POSITIVE, help="Goodput: maximum ms to the first token.")
@click.option("--slo-tpot", type=POSITIVE, help="Goodput: maximum ms per token.")
@click.option("--slo-e2e", type=POSITIVE, help="Goodput: maximum ms for the whole reply.")
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, path_type=Path),
    help="The model's tokenizer.json, to check token counts.  [default: the one in OLLAMA_MODELS, if present]",
)
@click.option("--switch-model", default="", metavar="NAME", help="Second model for --mode switch.")
@click.option(
    "--processes", type=click.IntRange(1), help="Processes of the load generator.  [default: as many as the load needs]"
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Random seed for prompts, arrivals and confidence intervals."
)
@output_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Measure the throughput and latency of a server under load.

    MODEL is the model to measure; the default is the loaded one. docs/benchmarking.md defines each figure.
    """
    outputs = Outputs.taken_from(options)
    with ProgressLine(sys.stderr) as progress:
        result = measured(options, ("vllama", *sys.argv[1:]), progress)
    emit(result, outputs)
    if result.interrupted:
        ctx.exit(130)
    if refusal := _refusal(result):
        click.echo(f"Error: {refusal}", err=True)
        ctx.exit(1)


def measured(
    options: Mapping[str, Any], command_line: tuple[str, ...], progress: Callable[[str, float], object]
) -> ExperimentResult:
    """Carry out a bench with these options of the command, by parameter name."""
    design = design_of(options, command_line)
    if options["mode"] == "coldstart":
        from vllama.bench.model_loads import measure_cold_starts

        return measure_cold_starts(design, progress)
    if options["mode"] == "switch":
        from vllama.bench.model_loads import measure_switches

        return measure_switches(design, options["switch_model"], progress)
    if options["mode"] == "overhead":
        from vllama.bench.overhead import measure_overhead

        return measure_overhead(model_directory(options["model"]), design, progress)
    from vllama.bench.experiment import measure

    return measure(design, progress)


def model_directory(model: str) -> Path:
    """Return MODEL itself if it is a directory, else the directory of the stored model with this name."""
    if Path(model).is_dir():
        return Path(model)
    from vllama.cli.local_store import open_store
    from vllama.names import ModelName

    return Path(open_store().get(ModelName.parse(model)).snapshot)


def _refusal(result: ExperimentResult) -> str:
    """Return why the result is not what was asked for; "" if it is."""
    if not any(run.metrics.ok for run in result.runs):
        return "no request was answered"
    return next((warning for warning in result.warnings if warning.startswith("not compared")), "")


def design_of(options: Mapping[str, Any], command_line: tuple[str, ...]) -> ExperimentDesign:
    """Return what the options ask for. Raises RequestError for those that exclude each other."""
    from vllama.bench.design import ExperimentDesign
    from vllama.bench.prompts import PromptSource
    from vllama.bench.quality import Task
    from vllama.bench.result import Slo

    _check(options)
    systems = _systems(options)
    levels = _levels(options)
    repetitions = options["repetitions"] or (3 if len(systems) > 1 else 1)
    runs = len(systems) * len(levels) * repetitions
    budgeted = not (options["iterations"] or options["duration"])
    task = Task.from_file(options["schema"]) if options["schema"] else None
    source = options["schema"] if task and task.prompts else options["prompts"]
    prompts = PromptSource(str(source or ""), fresh_prefix=not options["same_prefix"])
    prompts.open()  # refuses a bad file before any model is loaded
    return ExperimentDesign(
        systems=systems,
        levels=levels,
        prompts=prompts,
        output_tokens=options["tokens"],
        prompt_tokens=options["prompt_tokens"],
        iterations=options["iterations"],
        seconds=max(LEAST_SECONDS, BUDGET_SECONDS / runs) if budgeted else options["duration"],
        repetitions=repetitions,
        arrivals=options["arrivals"],
        warmup=options["warmup"],
        timeout=options["timeout"],
        processes=options["processes"],
        slo=Slo(options["slo_ttft"], options["slo_tpot"], options["slo_e2e"]),
        task=task,
        allow_different=options["allow_different"],
        seed=options["seed"],
        tokenizers=_tokenizers(systems, options["tokenizer"]),
        command=command_line,
        options={name: str(value) if isinstance(value, Path) else value for name, value in options.items()},
    )


def _tokenizers(systems: Sequence[System], given: Path | None) -> dict[str, Callable[[str], int]]:
    from vllama.bench.tokenizer import tokenizer_for

    models = dict.fromkeys(system.model for system in systems)
    found = {model: tokenizer_for(model, given if model == systems[0].model else None) for model in models}
    return {model: count for model, count in found.items() if count}


def _check(options: Mapping[str, Any]) -> None:
    mode = options["mode"]
    for name in UNUSED.get(mode, ()):
        if options[name]:
            message = f"--{name.replace('_', '-')} has no place in --mode {mode}"
            raise RequestError(message)
    if options["arrivals"] == "poisson" and not options["rate"]:
        raise RequestError("--arrivals needs --rate: clients send when their last reply has ended")
    if options["prompts"] and options["prompt_tokens"]:
        raise RequestError("--prompt-tokens is for synthetic prompts; --prompts has its own")
    if not options["against"]:
        for name in ("against_model", "against_api", "against_label", "control"):
            if options[name]:
                message = f"--{name.replace('_', '-')} needs --against URL"
                raise RequestError(message)
    if (mode == "switch") is not bool(options["switch_model"]):
        raise RequestError("--mode switch and --switch-model NAME need each other")


def _systems(options: Mapping[str, Any]) -> tuple[System, ...]:
    from vllama.bench.result import System

    url = options["url"].rstrip("/") or ApiClient.from_environment().url
    model = options["model"] or _model_of(url, options["api"])
    ours = System(options["label"] or _address(url), url, options["api"], model)
    if not options["against"]:
        return (ours,)
    other = options["against"].rstrip("/")
    other_model = options["against_model"] or model
    baseline = System(
        options["against_label"] or _address(other), other, options["against_api"] or options["api"], other_model
    )
    if baseline.name == ours.name:  # two models, or two APIs, of one server
        suffixes = (model, other_model) if model != other_model else (ours.api, baseline.api)
        if suffixes[0] == suffixes[1]:
            raise RequestError("--against names what is measured already: nothing would be compared")
        ours, baseline = (
            System(f"{side.name} {suffix}", side.url, side.api, side.model)
            for side, suffix in zip((ours, baseline), suffixes, strict=True)
        )
    if not options["control"]:
        return ours, baseline
    return ours, baseline, System("control", url, options["api"], options["control"])


def _address(url: str) -> str:
    return url.partition("://")[2] or url


def _model_of(url: str, api: Api) -> str:
    from vllama.bench.server_facts import only_model

    if model := only_model(url, api):
        return model
    message = f"which model? {url} does not have exactly one; name it: vllama bench MODEL"
    raise RequestError(message)


def _levels(options: Mapping[str, Any]) -> tuple[LoadLevel, ...]:
    from vllama.bench.result import LoadLevel

    levels: list[LoadLevel] = []
    asked = ("sequential", "concurrent", "streaming") if options["mode"] == "all" else (options["mode"],)
    for mode in cast("tuple[Mode, ...]", asked):
        if mode == "sequential":
            levels.append(LoadLevel(mode, 1))
        elif options["rate"]:
            levels += (LoadLevel(mode, rate=float(rate)) for rate in options["rate"])
        else:
            levels += (LoadLevel(mode, int(clients)) for clients in options["concurrency"])
    return tuple(levels)
