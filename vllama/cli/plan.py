"""`vllama plan`: show the memory plan of models without loading them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vllama import settings_file
from vllama.cli.local_store import open_store, with_hint
from vllama.cli.output import print_json, table
from vllama.errors import LoadFailed
from vllama.names import ModelName

if TYPE_CHECKING:
    from vllama.scheduler.devices import Machine
    from vllama.scheduler.memory import Claim, Device, Placement, Unfit

HEADER = (
    "NAME", "ON", "WEIGHTS", "OVERHEAD", "KV/TOKEN", "KV CACHE", "CONTEXT", "REQUESTS", "TAKES", "VERDICT",
)  # fmt: skip
SHORT = 2048
"""Number of tokens of a short request."""

NO_ROOM = 1


class PlanCommand(click.Command):
    """A command that keeps vLLM's flags, which follow `--`, in `ctx.meta`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remove vLLM's flags and parse the rest."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta["engine_flags"] = args[end + 1 :]
        return super().parse_args(ctx, args[:end])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the pieces of the usage line, including vLLM's flags."""
        return [*super().collect_usage_pieces(ctx), "[-- VLLM FLAGS...]"]


@click.command(
    "plan",
    cls=PlanCommand,
    epilog=f"""\b
Examples:
  vllama plan smollm2:135m
  vllama plan qwen2.5:7b llama3.1:8b --json | jq '.models[].verdict'
  OLLAMA_CONTEXT_LENGTH=8192 vllama plan qwen2.5:7b -- --kv-cache-dtype fp8

\b
Exit codes:
  0    every model can be loaded, some perhaps only after others sleep or stop
  {NO_ROOM}    at least one model does not fit, even with all others unloaded""",
)
@click.argument("names", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, in bytes and tokens.")
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], *, as_json: bool) -> None:
    """Show the memory plan of stored models without loading them.

    Several NAMES are planned together, in the given order. The columns: ON is the devices; OVERHEAD is memory other
    than weights and KV cache, estimated until the model's first load has been measured; REQUESTS is the number of
    requests that the KV cache holds at once, with the full context and with 2048 tokens; TAKES is the memory of the
    model in total. No server is needed; memory that a running server uses does not count as free. A server plans in the
    same way, with its own settings and flags.
    """
    from vllama.scheduler.engine_flags import refuse_ours

    flags: list[str] = ctx.meta["engine_flags"]
    refuse_ours(flags)
    machine, plans = _plan([ModelName.parse(name) for name in names], flags)
    if as_json:
        print_json({"machine": _machine_record(machine), "models": [_record(plan) for plan in plans]})
    else:
        click.echo("\n".join(_lines(machine, plans)))
    ctx.exit(NO_ROOM if any(_verdict(plan) == "does not fit" for plan in plans) else 0)


def _plan(names: Sequence[ModelName], flags: Sequence[str]) -> tuple[Machine, list[Placement | Unfit]]:
    """Plan these models together, each next to the earlier ones that fit."""
    from vllama.scheduler.memory import Placement
    from vllama.scheduler.planner import Planner
    from vllama.scheduler.serving import Serving

    settings = settings_file.load(os.environ)
    planner = Planner(settings, Serving(flags))
    store = open_store()
    with with_hint(store):
        manifests = [store.get(name) for name in names]
    machine = planner.look()
    if not machine.is_known:
        raise LoadFailed(f"cannot read the memory of this machine's GPUs: {machine.reason}")
    plans: list[Placement | Unfit] = []
    claims: list[Claim] = []
    for manifest in manifests:
        plans.append(planner.place(manifest, machine, claims))
        if isinstance(plans[-1], Placement):
            claims += plans[-1].claims()
    return machine, plans


def _verdict(plan: Placement | Unfit) -> str:
    from vllama.scheduler.memory import Unfit

    if not isinstance(plan, Unfit):
        return "fits"
    return "fits when others sleep or stop" if plan.fits_alone else "does not fit"


def _lines(machine: Machine, plans: Sequence[Placement | Unfit]) -> list[str]:
    """Return the lines of the output: devices, table and notes."""
    from vllama.scheduler.memory import Unfit, gib

    lines = [f"{_spelled(device)}: {gib(device.free)} of {gib(device.total)} free" for device in machine.devices]
    lines += ["", table(HEADER, [_row(plan) for plan in plans]), ""]
    if any(not plan.overhead.is_learned for plan in plans):
        lines.append("~ marks an estimate, which the first load of the model replaces with a measurement.")
    for plan in plans:
        lines += [f"{plan.need.name}: {note}" for note in plan.need.notes]
        if isinstance(plan, Unfit):
            lines.append(f"{plan.need.name}: {plan.message}")
    return lines if lines[-1] else lines[:-1]


def _spelled(device: Device) -> str:
    if device.kind == "gpu":
        return f"GPU {device.id} ({device.name})"
    return f"CPU ({device.name}, {device.cores} cores)"


def _row(plan: Placement | Unfit) -> tuple[str, ...]:
    from vllama.scheduler.memory import Placement, gib

    overhead = f"{'' if plan.overhead.is_learned else '~'}{gib(plan.overhead.total)}"
    if not isinstance(plan, Placement):
        return (
            plan.need.name, "-", gib(plan.weights), overhead, "-", gib(plan.kv), str(plan.context), "-",
            gib(plan.needed), _verdict(plan),
        )  # fmt: skip
    each = " each" if len(plan.devices) > 1 else ""
    on = ",".join(device.id for device in plan.devices) if plan.devices[0].kind == "gpu" else "CPU"
    requests = f"{plan.requests(plan.context)} full, {plan.requests(SHORT)} short"
    return (
        plan.need.name, on, gib(plan.weights) + each, overhead, f"{plan.kv_per_token / 1024:.1f} KiB", gib(plan.kv),
        str(plan.context), requests, gib(plan.claim) + each, _verdict(plan),
    )  # fmt: skip


def _machine_record(machine: Machine) -> dict[str, Any]:
    names = ("index", "id", "name", "kind", "total", "free", "cores")
    devices = [{name: getattr(device, name) for name in names} for device in machine.devices]
    return {"devices": devices, "reason": machine.reason}


def _record(plan: Placement | Unfit) -> dict[str, Any]:
    from vllama.scheduler.memory import Placement, environment, flags

    record: dict[str, Any] = {
        "name": plan.need.name,
        "verdict": _verdict(plan),
        "weights": plan.weights,
        "overhead": plan.overhead.total,
        "overhead_is_learned": plan.overhead.is_learned,
        "kv_cache": plan.kv,
        "context": plan.context,
        "notes": list(plan.need.notes),
    }
    if isinstance(plan, Placement):
        return record | {
            "takes": plan.claim,
            "devices": [device.index for device in plan.devices],
            "tensor_parallel_size": plan.tensor_parallel_size,
            "kv_per_token": plan.kv_per_token,
            "requests": {"full": plan.requests(plan.context), "short": plan.requests(SHORT)},
            "flags": flags(plan),
            "environment": environment(plan),
        }
    return record | {
        "takes": plan.needed,
        "available": plan.available,
        "message": plan.message,
        "would_fit": {"context": plan.largest_context, "gpus": plan.gpus, "bits": plan.bits},
    }
