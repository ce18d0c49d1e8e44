"""One table of settings: name, environment variable, default, meaning.

The CLI makes its flags from it, `vllama serve --help` and `docs/configuration.md` print it, and
`Settings.from_environment` reads it. Nothing below this module reads the environment.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vllama.durations import NS_PER_SECOND, parse_keep_alive
from vllama.errors import RequestError

log = logging.getLogger(__name__)

DEFAULT_PORT = 11434
DEFAULT_KEEP_ALIVE = 5 * 60 * NS_PER_SECOND

_PREFIXES = ("", "k", "m", "g", "t")
_SHARE = re.compile(r"(\d+(?:\.\d+)?) *((?i:%|[kmgt](?:i?b)?)?)")


AFTER_A_RESTART = "after a restart"
FOR_LATER_LOADS = "for models that are loaded from now on"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. `parse` turns the text of the variable into the value; it raises ValueError.

    `shown` is the default as one would write it, where that does not follow from its type. `takes_effect` says when
    a change does that a running server is told of.
    """

    name: str
    env: str
    default: Any
    parse: Callable[[str], Any]
    meaning: str
    shown: str = ""
    takes_effect: str = "at once"


def parse_bool(text: str) -> bool:
    """Return a Go boolean; what does not parse counts as true, as in Ollama (contract §6.1)."""
    return text.lower() not in {"0", "f", "false"}


def parse_seconds(text: str) -> float | None:
    """Return seconds from a Go duration or bare seconds; None where it is 0 or negative: no limit."""
    ns = parse_keep_alive(text)
    return None if ns is None or ns <= 0 else ns / NS_PER_SECOND


def _waiting_seconds(text: str) -> float:
    """Return seconds; what is negative is 0."""
    return parse_seconds(text) or 0.0


def parse_share(text: str) -> int | float:
    """Return bytes as an `int` (`0`, `16GiB`, `16GB`), or a share of the whole as a `float` (`50%`)."""
    found = _SHARE.fullmatch(text.strip())
    if found is None:
        message = f"{text!r} is neither a share such as 50% nor an amount such as 16GiB"
        raise ValueError(message)
    number, unit = float(found[1]), found[2].lower()
    if unit == "%":
        return min(number, 100.0) / 100
    return int(number * (1024 if unit.endswith("ib") else 1000) ** _PREFIXES.index(unit[:1]))


def _parse_duration(text: str) -> int:
    ns = parse_keep_alive(text)
    return DEFAULT_KEEP_ALIVE if ns is None else ns


def _non_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        message = "must not be negative"
        raise ValueError(message)
    return value


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _models_directory(text: str) -> Path:
    return Path(text).expanduser()


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "host",
        "OLLAMA_HOST",
        "127.0.0.1:11434",
        str,
        "address to listen on, and the address that the other commands talk to",
        takes_effect=AFTER_A_RESTART,
    ),
    Setting(
        "origins",
        "OLLAMA_ORIGINS",
        (),
        _listed,
        "further browser origins to allow, comma separated, * as wildcard",
    ),
    Setting(
        "keep_alive",
        "OLLAMA_KEEP_ALIVE",
        DEFAULT_KEEP_ALIVE,
        _parse_duration,
        "how long an idle model stays loaded: 5m, 300, 0 (unload at once), -1 (for ever)",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "models",
        "OLLAMA_MODELS",
        Path("~/.vllama/models").expanduser(),
        _models_directory,
        "directory of the model store",
        takes_effect=AFTER_A_RESTART,
    ),
    Setting(
        "load_timeout",
        "OLLAMA_LOAD_TIMEOUT",
        600.0,
        parse_seconds,
        "give up on a load that has made no progress for this long; 0: never",
    ),
    Setting(
        "hang_timeout",
        "VLLAMA_HANG_TIMEOUT",
        120.0,
        parse_seconds,
        "replace a loaded model's worker that does not answer for this long; 0: never",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "max_loaded_models",
        "OLLAMA_MAX_LOADED_MODELS",
        0,
        _non_negative,
        "models that are awake at once; 0: three for each GPU, or three",
    ),
    Setting(
        "num_parallel",
        "OLLAMA_NUM_PARALLEL",
        0,
        _non_negative,
        "most requests that one model works on at once (a cap, not a reservation); 0: vLLM decides",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "max_queue",
        "OLLAMA_MAX_QUEUE",
        512,
        _non_negative,
        "most requests that may wait for a model to load before 503",
    ),
    Setting(
        "drain_timeout",
        "VLLAMA_DRAIN_TIMEOUT",
        30 * NS_PER_SECOND,
        _parse_duration,
        "how long answers under way may go on when the server is stopped; 0: not at all, -1: as long as they take",
    ),
    Setting(
        "pin",
        "VLLAMA_PIN",
        (),
        _listed,
        "models that, once loaded, go neither for another nor after a keep-alive, comma separated",
    ),
    Setting(
        "min_residency",
        "VLLAMA_MIN_RESIDENCY",
        10.0,
        _waiting_seconds,
        "how long a model that was just loaded is spared while another may make room",
    ),
    Setting(
        "yield_after",
        "VLLAMA_YIELD_AFTER",
        10.0,
        _waiting_seconds,
        "when a model has waited so long for busy ones, further requests for those wait behind it",
    ),
    Setting(
        "sleep_budget",
        "VLLAMA_SLEEP_BUDGET",
        0.5,
        parse_share,
        "most host memory for sleeping models, as 50% or 16GiB; 0: models never sleep",
        shown="50%",
    ),
    Setting(
        "sleep_timeout",
        "VLLAMA_SLEEP_TIMEOUT",
        3600.0,
        parse_seconds,
        "stop a model that has slept for so long; 0: never",
    ),
    Setting(
        "context_length",
        "OLLAMA_CONTEXT_LENGTH",
        0,
        _non_negative,
        "context to serve, in tokens; 0: as much as model and memory allow",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "spare_workers",
        "VLLAMA_SPARE_WORKERS",
        1,
        _non_negative,
        "worker processes that have imported vLLM already and wait for a model to load; each holds 0.6 GB; 0: none",
        takes_effect=AFTER_A_RESTART,
    ),
    Setting(
        "debug",
        "OLLAMA_DEBUG",
        False,
        parse_bool,
        "log more",
    ),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The values in force. Durations are ns where an `int`, seconds where a `float`.

    `keep_alive` and `drain_timeout` are ns or FOREVER; `load_timeout`, `hang_timeout` and `sleep_timeout` are None for
    no limit; `sleep_budget` is bytes where an `int`, a share of the machine's memory where a `float`.
    """

    host: str
    origins: tuple[str, ...]
    keep_alive: int
    models: Path
    load_timeout: float | None
    hang_timeout: float | None
    max_loaded_models: int
    num_parallel: int
    max_queue: int
    drain_timeout: int
    pin: tuple[str, ...]
    min_residency: float
    yield_after: float
    sleep_budget: int | float
    sleep_timeout: float | None
    context_length: int
    spare_workers: int
    debug: bool

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], **overrides: Any) -> Settings:
        """Read the table's variables; an override that is not None wins.

        A value that does not parse falls back to the default with a warning, as in Ollama
        (contract §6.1).
        """
        values: dict[str, Any] = {}
        for row in SETTINGS:
            if (override := overrides.get(row.name)) is not None:
                values[row.name] = override
                continue
            text = environ.get(row.env, "").strip().strip("\"'")
            values[row.name] = row.default
            if text:
                try:
                    values[row.name] = row.parse(text)
                except (ValueError, RequestError) as error:
                    log.warning("%s=%s ignored: %s", row.env, text, error)
        unknown = overrides.keys() - {field.name for field in fields(cls)}
        if unknown:
            message = f"no such setting: {', '.join(sorted(unknown))}"
            raise TypeError(message)
        return cls(**values)

    @property
    def address(self) -> Address:
        """The parsed `host`."""
        return Address.parse(self.host)

    def resident_limit(self, gpus: int = 1) -> int:
        """How many models may be awake at once on a machine with so many GPUs."""
        return self.max_loaded_models or 3 * gpus


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens: OLLAMA_HOST taken apart (contract §6.1)."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `[scheme://]host[:port][/path]`; what is missing or invalid takes Ollama's default."""
        text = text.strip().strip("\"'").strip()
        scheme, has_scheme, rest = text.partition("://")
        if not has_scheme:
            scheme, rest = "http", text
        default_port = (
            {"http": 80, "https": 443}[scheme] if has_scheme and scheme in {"http", "https"} else DEFAULT_PORT
        )
        authority, _, path = rest.partition("/")
        if authority.count(":") > 1 and not authority.startswith("["):
            authority = f"[{authority}]"  # a bare IPv6 address
        try:
            host = urlsplit(f"//{authority}").hostname or "127.0.0.1"
        except ValueError as error:
            log.warning("invalid host in OLLAMA_HOST=%s, using 127.0.0.1: %s", text, error)
            return cls(scheme, "127.0.0.1", default_port, path.rstrip("/"))
        try:
            port = urlsplit(f"//{authority}").port
        except ValueError:
            log.warning("invalid port in OLLAMA_HOST=%s, using %d", text, default_port)
            port = None
        return cls(scheme, host, default_port if port is None else port, path.rstrip("/"))

    @property
    def url(self) -> str:
        """The base URL of a client; an unspecified address is reached over loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{host}:{self.port}{'/' + self.path if self.path else ''}"
