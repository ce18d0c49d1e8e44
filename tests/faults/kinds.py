"""The faults: each brings the server to where it is to be hit, sends clients, and hits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults.clients import Ask, some_asks
from faults.scene import DAMAGED, HUNGRY, LOGLESS, SHARDLESS, STARVED, Scene

_FEW_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault. `weight` is its share of a campaign; the slow ones have less."""

    name: str
    inject: Callable[[Scene], None]
    weight: int


def _server_killed_before_load(scene: Scene) -> None:
    scene.unloaded()
    scene.send(some_asks(scene.dice, 4, _FEW_TOKENS))
    worker = scene.first_worker()
    scene.pause(0.5)
    scene.kill(worker.main)


def _server_killed_during_load(scene: Scene) -> None:
    scene.unloaded()
    scene.send(some_asks(scene.dice, 4, _FEW_TOKENS))
    worker = scene.first_worker()
    scene.wait_for_engine(worker)
    scene.pause(3)
    scene.kill(worker.main)


def _server_killed_idle(scene: Scene) -> None:
    worker = scene.loaded()
    scene.kill(worker.main)
    scene.send(some_asks(scene.dice, 4, _FEW_TOKENS))


def _server_killed_mid_stream(scene: Scene) -> None:
    worker = scene.loaded()
    scene.streams(worker)
    scene.pause(1)
    scene.kill(worker.main)


def _engine_killed_during_load(scene: Scene) -> None:
    scene.unloaded()
    scene.send(some_asks(scene.dice, 4, _FEW_TOKENS))
    engine = scene.wait_for_engine(scene.first_worker())
    scene.pause(3)
    scene.kill(engine)


def _engine_killed_idle(scene: Scene) -> None:
    engine = scene.wait_for_engine(scene.loaded())
    scene.kill(engine)
    scene.send(some_asks(scene.dice, 4, _FEW_TOKENS))


def _engine_killed_mid_stream(scene: Scene) -> None:
    worker = scene.loaded()
    scene.streams(worker)
    scene.pause(1)
    scene.kill(scene.wait_for_engine(worker))


def _server_hangs(scene: Scene) -> None:
    worker = scene.loaded()
    scene.streams(worker)
    scene.pause(1)
    scene.stop(worker.main)


def _engine_hangs(scene: Scene) -> None:
    worker = scene.loaded()
    scene.streams(worker)
    scene.pause(1)
    scene.stop(scene.wait_for_engine(worker))


def _engine_hangs_in_load(scene: Scene) -> None:
    scene.unloaded()
    scene.send(some_asks(scene.dice, 2, _FEW_TOKENS))
    scene.stop(scene.wait_for_engine(scene.first_worker()))


def _spare_killed(scene: Scene) -> None:
    spares = [p for p in scene.server.tree.living() if "--spare" in p.command]
    if spares:
        scene.kill(scene.dice.choice(spares))
    scene.injected()
    scene.send(some_asks(scene.dice, 4, _FEW_TOKENS))


def _out_of_memory(scene: Scene) -> None:
    scene.injected()
    scene.send(some_asks(scene.dice, 3, _FEW_TOKENS), scene.dice.choice([HUNGRY, STARVED]))


def _disk_full(scene: Scene) -> None:
    log = scene.server.store / "logs" / "logless_latest.log"
    log.unlink(missing_ok=True)
    log.symlink_to(scene.dice.choice([Path("/dev/full"), scene.server.store / "nowhere" / "log"]))
    scene.injected()
    crowd = scene.send(some_asks(scene.dice, 3, _FEW_TOKENS), LOGLESS)
    crowd.wait()
    scene.server.post("/api/generate", {"model": LOGLESS, "keep_alive": 0})


def _config_damaged(scene: Scene) -> None:
    scene.injected()
    scene.send(some_asks(scene.dice, 3, _FEW_TOKENS), DAMAGED)


def _weights_missing(scene: Scene) -> None:
    scene.injected()
    scene.send(some_asks(scene.dice, 3, _FEW_TOKENS), SHARDLESS)


def _clients_leave(scene: Scene) -> None:
    scene.loaded()
    asks = some_asks(scene.dice, 7, 64)
    leaving = [Ask(scene.dice.choice(["/api/chat", "/v1/chat/completions"]), True, 4000, scene.dice.randrange(20))] * 3
    scene.injected()
    scene.send([*asks, *leaving])


KINDS: tuple[Kind, ...] = (
    Kind("API server killed before the load", _server_killed_before_load, 8),
    Kind("API server killed during the load", _server_killed_during_load, 8),
    Kind("API server killed when idle", _server_killed_idle, 6),
    Kind("API server killed mid-stream", _server_killed_mid_stream, 12),
    Kind("EngineCore killed during the load", _engine_killed_during_load, 8),
    Kind("EngineCore killed when idle", _engine_killed_idle, 6),
    Kind("EngineCore killed mid-stream", _engine_killed_mid_stream, 12),
    Kind("API server hangs mid-stream", _server_hangs, 5),
    Kind("EngineCore hangs mid-stream", _engine_hangs, 5),
    Kind("EngineCore hangs in the load", _engine_hangs_in_load, 1),
    Kind("spare worker killed", _spare_killed, 4),
    Kind("out of memory in the load", _out_of_memory, 4),
    Kind("disk of the log full", _disk_full, 3),
    Kind("config.json damaged", _config_damaged, 3),
    Kind("weights missing", _weights_missing, 3),
    Kind("clients leave", _clients_leave, 12),
)
"""All of them; the weights add up to a hundred."""
