"""One table of settings: name, environment variable, default, meaning.

The CLI makes its flags from it, `vllama serve --help` and `docs/configuration.md` print it, and
`Settings.from_environment` reads it. Other code reads the environment only for what is not in this table: what child
processes inherit (`scheduler/launcher.py`, `store/gguf/conversion.py`, `store/sources/hub_process.py`, `bench/`), which
GPUs are visible (`scheduler/devices.py`, `scheduler/engine_flags.py`), VLLM_PLUGINS (`store/loadable.py`),
XDG_RUNTIME_DIR, NO_COLOR and OLLAMA_NOHISTORY.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from vllama.durations import ZERO, Nanoseconds, from_seconds, parse_keep_alive
from vllama.errors import RequestError

log = logging.getLogger(__name__)

DEFAULT_PORT = 11434
DEFAULT_KEEP_ALIVE = from_seconds(5 * 60)

_PREFIXES = ("", "k", "m", "g", "t")
_SHARE = re.compile(r"(\d+(?:\.\d+)?) *((?i:%|[kmgt](?:i?b)?)?)")


PRECISIONS = ("exact", "bf16")
"""Whether quantized weights of GGUF files stay as they are, or are decoded to bfloat16."""

MANAGEMENT = ("all", "admin", "off")
"""The clients that may pull, push, create, copy and delete models over HTTP: all, those with admins' keys, or none."""

AFTER_A_RESTART = "after a restart"
FOR_LATER_LOADS = "for models loaded from now on"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. `parse` turns the text of the variable into the value; it raises ValueError.

    `shown` is the default as users write it, if that does not follow from its type. `takes_effect` says when a running
    server applies a change.
    """

    name: str
    env: str
    default: Any
    parse: Callable[[str], Any]
    meaning: str
    shown: str = ""
    takes_effect: str = "at once"

    @property
    def is_duration(self) -> bool:
        """Whether the values are Nanoseconds (or None, where there may be no limit)."""
        return self.parse in {_parse_keep_alive, parse_time_limit, _parse_waiting_time}


def parse_bool(text: str) -> bool:
    """Return a Go boolean; invalid text counts as true, as in Ollama (contract §6.1)."""
    return text.lower() not in {"0", "f", "false"}


def parse_time_limit(text: str) -> Nanoseconds | None:
    """Return the duration from Go's notation or bare seconds; None (no limit) if it is 0 or negative."""
    limit = parse_keep_alive(text)
    return None if limit is None or limit <= 0 else limit


def _parse_waiting_time(text: str) -> Nanoseconds:
    """Return the duration; negative values become 0."""
    return parse_time_limit(text) or ZERO


def parse_share(text: str) -> int | float:
    """Return bytes as an `int` (`0`, `16GiB`, `16GB`), or a fraction of the total as a `float` (`50%`)."""
    found = _SHARE.fullmatch(text.strip())
    if found is None:
        message = f"{text!r} is neither a percentage such as 50% nor an amount such as 16GiB"
        raise ValueError(message)
    number, unit = float(found[1]), found[2].lower()
    if unit == "%":
        return min(number, 100.0) / 100
    return int(number * (1024 if unit.endswith("ib") else 1000) ** _PREFIXES.index(unit[:1]))


def _amount(text: str) -> int:
    """Return bytes (`65536`, `64KiB`)."""
    amount = parse_share(text)
    if isinstance(amount, float):
        message = f"{text!r} is no amount such as 16MiB"
        raise ValueError(message)  # noqa: TRY004 - of the text
    return amount


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        message = "must be at least 1"
        raise ValueError(message)
    return value


def _parse_keep_alive(text: str) -> Nanoseconds:
    keep_alive = parse_keep_alive(text)
    return DEFAULT_KEEP_ALIVE if keep_alive is None else keep_alive


def _non_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        message = "must not be negative"
        raise ValueError(message)
    return value


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@dataclass(frozen=True, slots=True)
class Preload:
    """A model to load when the server starts; `keep_alive` is None for that of all models."""

    name: str
    keep_alive: Nanoseconds | None = None


def parse_preloads(text: str) -> tuple[Preload, ...]:
    """Parse comma-separated models as `NAME` or `NAME?keepalive=30m`.

    Sampling options, which Ollama takes there too, change nothing about a load, and are ignored with a warning. Raises
    RequestError for an invalid duration.
    """
    return tuple(map(_preload, _listed(text)))


def _preload(text: str) -> Preload:
    name, _, query = text.partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    keep_alive = next((given.pop(key) for key in ("keepalive", "keep_alive") if key in given), None)
    if given:
        log.warning("OLLAMA_PRELOAD_MODELS: %s of %s has no effect on a load", ", ".join(sorted(given)), name)
    return Preload(name, parse_keep_alive(keep_alive))


def _precision(text: str) -> str:
    if text not in PRECISIONS:
        message = f"must be one of {', '.join(PRECISIONS)}"
        raise ValueError(message)
    return text


def _management(text: str) -> str:
    if text not in MANAGEMENT:
        message = f"must be one of {', '.join(MANAGEMENT)}"
        raise ValueError(message)
    return text


def _path(text: str) -> Path:
    return Path(text).expanduser()


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "host",
        "OLLAMA_HOST",
        "127.0.0.1:11434",
        str,
        "address that the server listens on and that the other commands connect to",
        takes_effect=AFTER_A_RESTART,
    ),
    Setting(
        "origins",
        "OLLAMA_ORIGINS",
        (),
        _listed,
        "additional browser origins to allow, comma-separated; * is a wildcard",
    ),
    Setting(
        "keys",
        "VLLAMA_KEYS",
        None,
        _path,
        "file of API keys; if it exists, each request needs one of them; default: keys.json in the model store",
    ),
    Setting(
        "insecure",
        "VLLAMA_INSECURE",
        False,
        parse_bool,
        "allow an address that other machines can reach although there are no API keys",
        takes_effect=AFTER_A_RESTART,
    ),
    Setting(
        "management",
        "VLLAMA_MANAGEMENT",
        "all",
        _management,
        "clients that may pull, push, create, copy and delete models over HTTP: all, admin (keys with --admin) or off",
    ),
    Setting(
        "key_slots",
        "VLLAMA_KEY_SLOTS",
        0,
        _non_negative,
        "number of requests with keys that a model answers at once; beyond it keys take turns; 0: as many as vLLM runs",
    ),
    Setting(
        "usage",
        "VLLAMA_USAGE",
        None,
        _path,
        "SQLite database of the usage of keys, on a local disk; default: usage.sqlite3 in the model store",
        takes_effect=AFTER_A_RESTART,
    ),
    Setting(
        "audit_log",
        "VLLAMA_AUDIT_LOG",
        None,
        _path,
        "file for changes to the model store and refused requests, as JSON lines; default: the server's log",
    ),
    Setting(
        "keep_alive",
        "OLLAMA_KEEP_ALIVE",
        DEFAULT_KEEP_ALIVE,
        _parse_keep_alive,
        "how long an idle model stays loaded: 5m, 300 (seconds), 0 (unload at once), -1 (forever)",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "models",
        "OLLAMA_MODELS",
        Path("~/.vllama/models").expanduser(),
        _path,
        "model store directory",
        takes_effect=AFTER_A_RESTART,
    ),
    Setting(
        "precision",
        "VLLAMA_PRECISION",
        "exact",
        _precision,
        "weights of GGUF files: exact (keep their quantization) or bf16 (decode it: up to four times the memory)",
        takes_effect=AFTER_A_RESTART,
    ),
    Setting(
        "load_timeout",
        "OLLAMA_LOAD_TIMEOUT",
        from_seconds(600),
        parse_time_limit,
        "cancel a load that has made no progress for this long; 0: never",
    ),
    Setting(
        "hang_timeout",
        "VLLAMA_HANG_TIMEOUT",
        from_seconds(120),
        parse_time_limit,
        "restart the worker of a loaded model that has not responded for this long; 0: never",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "max_loaded_models",
        "OLLAMA_MAX_LOADED_MODELS",
        0,
        _non_negative,
        "maximum number of loaded models, not counting sleeping ones; 0: three per GPU, or three on CPUs",
    ),
    Setting(
        "num_parallel",
        "OLLAMA_NUM_PARALLEL",
        0,
        _non_negative,
        "maximum number of requests that a model processes at once (a limit, not a reservation); 0: vLLM decides",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "max_queue",
        "OLLAMA_MAX_QUEUE",
        512,
        _non_negative,
        "maximum number of requests waiting for a model to load; beyond it clients get 503",
    ),
    Setting(
        "max_transfers",
        "VLLAMA_MAX_TRANSFERS",
        64,
        _positive,
        "maximum number of pulls and creations that run at once; beyond it clients get 503",
    ),
    Setting(
        "kept_logs",
        "VLLAMA_KEPT_LOGS",
        3,
        _non_negative,
        "number of earlier logs that are kept for each model: of earlier loads, and those that were full",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "max_log_size",
        "VLLAMA_MAX_LOG_SIZE",
        64 << 20,
        _amount,
        "size of a running worker's log after which it gets a new one; 0: no limit",
        shown="64MiB",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "max_converters",
        "VLLAMA_MAX_CONVERTERS",
        2,
        _positive,
        "maximum number of GGUF files that are converted at once; others wait",
    ),
    Setting(
        "converter_memory",
        "VLLAMA_CONVERTER_MEMORY",
        4 << 30,
        _amount,
        "maximum memory of the conversion of a GGUF file, such as 4GiB; 0: no limit",
        shown="4GiB",
    ),
    Setting(
        "converter_timeout",
        "VLLAMA_CONVERTER_TIMEOUT",
        from_seconds(600),
        parse_time_limit,
        "processor time that the conversion of a GGUF file may take without progress; 0: no limit",
    ),
    Setting(
        "template_timeout",
        "VLLAMA_TEMPLATE_TIMEOUT",
        from_seconds(10),
        parse_time_limit,
        "processor time that a chat template may take for one prompt; 0: no limit",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "template_output",
        "VLLAMA_TEMPLATE_OUTPUT",
        32 << 20,
        _positive,
        "maximum number of characters that a chat template may make of one request",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "template_length",
        "VLLAMA_TEMPLATE_LENGTH",
        256 << 10,
        _positive,
        "maximum number of characters of a chat template",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "drain_timeout",
        "VLLAMA_DRAIN_TIMEOUT",
        from_seconds(30),
        _parse_keep_alive,
        "how long running requests may continue when the server is stopped; 0: end them at once, -1: no limit",
    ),
    Setting(
        "pin",
        "VLLAMA_PIN",
        (),
        _listed,
        "models that are not unloaded after their keep-alive or for other models, comma-separated",
    ),
    Setting(
        "preload_models",
        "OLLAMA_PRELOAD_MODELS",
        (),
        parse_preloads,
        "models to load at startup, comma-separated; NAME?keepalive=30m sets how long an idle one stays loaded",
        takes_effect=AFTER_A_RESTART,
    ),
    Setting(
        "pull",
        "VLLAMA_PULL",
        True,
        parse_bool,
        "pull models that --model, OLLAMA_PRELOAD_MODELS or `vllama run` name and that are not stored",
        takes_effect=AFTER_A_RESTART,
    ),
    Setting(
        "min_residency",
        "VLLAMA_MIN_RESIDENCY",
        from_seconds(10),
        _parse_waiting_time,
        "how long a newly loaded model is kept while another model can be unloaded instead",
    ),
    Setting(
        "yield_after",
        "VLLAMA_YIELD_AFTER",
        from_seconds(10),
        _parse_waiting_time,
        "how long a model waits before it takes priority over new requests to busy models",
    ),
    Setting(
        "sleep_budget",
        "VLLAMA_SLEEP_BUDGET",
        0.5,
        parse_share,
        "maximum host memory for sleeping models, such as 50% or 16GiB; 0: models never sleep",
        shown="50%",
    ),
    Setting(
        "sleep_timeout",
        "VLLAMA_SLEEP_TIMEOUT",
        from_seconds(3600),
        parse_time_limit,
        "unload a model that has slept for this long; 0: never",
    ),
    Setting(
        "context_length",
        "OLLAMA_CONTEXT_LENGTH",
        0,
        _non_negative,
        "context length in tokens; 0: as long as the model and memory allow",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "spare_workers",
        "VLLAMA_SPARE_WORKERS",
        1,
        _non_negative,
        "number of spare workers, which have already imported vLLM to speed up loads; each takes 0.6 GB; 0: none",
        takes_effect=AFTER_A_RESTART,
    ),
    Setting(
        "untagged_calls",
        "VLLAMA_UNTAGGED_CALLS",
        True,
        parse_bool,
        "treat a reply that is only the JSON of a fitting tool call as that call, also if the model's format has tags",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "max_header_size",
        "VLLAMA_MAX_HEADER_SIZE",
        64 << 10,
        _amount,
        "maximum size of a request's headers, and of the trailers after its body; beyond it clients get 431",
        shown="64KiB",
    ),
    Setting(
        "max_headers",
        "VLLAMA_MAX_HEADERS",
        256,
        _positive,
        "maximum number of a request's headers; beyond it clients get 431",
    ),
    Setting(
        "header_timeout",
        "VLLAMA_HEADER_TIMEOUT",
        from_seconds(60),
        parse_time_limit,
        "how long a client may take to send a request's headers; then it gets 408; 0: no limit",
    ),
    Setting(
        "body_timeout",
        "VLLAMA_BODY_TIMEOUT",
        from_seconds(60),
        parse_time_limit,
        "how long less than 1 KiB of a request's body may arrive; then the client gets 408; 0: no limit",
    ),
    Setting(
        "max_connections",
        "VLLAMA_MAX_CONNECTIONS",
        0,
        _non_negative,
        "maximum number of clients' connections; idle ones are closed for new ones, else clients get 503; "
        "0: three quarters of the files that the process may open",
    ),
    Setting(
        "max_pipelined",
        "VLLAMA_MAX_PIPELINED",
        32,
        _non_negative,
        "maximum number of requests that a client may send on a connection before the reply to an earlier one ends",
    ),
    Setting(
        "max_body_size",
        "VLLAMA_MAX_BODY_SIZE",
        512 << 20,
        _amount,
        "maximum size of a request's body for generation, embedding and creation; beyond it clients get 413",
        shown="512MiB",
    ),
    Setting(
        "max_small_body_size",
        "VLLAMA_MAX_SMALL_BODY_SIZE",
        1 << 20,
        _amount,
        "maximum size of a request's body for show, pull, push, copy and delete; beyond it clients get 413",
        shown="1MiB",
    ),
    Setting(
        "max_bodies_size",
        "VLLAMA_MAX_BODIES_SIZE",
        0.25,
        parse_share,
        "maximum size of all large request bodies together, such as 25% or 4GiB; beyond it clients get 503",
        shown="25%",
    ),
    Setting(
        "max_json_values",
        "VLLAMA_MAX_JSON_VALUES",
        1_000_000,
        _positive,
        "maximum number of values in a request's JSON; objects and arrays count as 40; beyond it clients get 413",
    ),
    Setting(
        "max_choices",
        "VLLAMA_MAX_CHOICES",
        128,
        _positive,
        "maximum n of a request to /v1, and of all such requests that a model generates for at once",
    ),
    Setting(
        "max_schema_properties",
        "VLLAMA_MAX_SCHEMA_PROPERTIES",
        2_000,
        _positive,
        "maximum number of properties of a JSON Schema, half as many optional ones in an object, twice as many values "
        "of enum; beyond it clients get 400",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "schema_timeout",
        "VLLAMA_SCHEMA_TIMEOUT",
        from_seconds(5),
        parse_time_limit,
        "how long the preparation of a JSON Schema may take; 0: no limit",
    ),
    Setting(
        "grammar_timeout",
        "VLLAMA_GRAMMAR_TIMEOUT",
        from_seconds(10),
        parse_time_limit,
        "processor time that the compilation of a grammar may take before a request gets 400, in proportion longer for"
        " vocabularies of more than 131,072 tokens; 0: no limit",
        takes_effect=FOR_LATER_LOADS,
    ),
    Setting(
        "debug",
        "OLLAMA_DEBUG",
        False,
        parse_bool,
        "enable debug logging",
    ),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings in force.

    `keep_alive` and `drain_timeout` may be FOREVER; other durations are None for no limit;
    `sleep_budget` and `max_bodies_size` are bytes if an `int`, a fraction of the machine's memory if a `float`.
    """

    host: str
    origins: tuple[str, ...]
    keys: Path | None
    insecure: bool
    management: str
    key_slots: int
    usage: Path | None
    audit_log: Path | None
    keep_alive: Nanoseconds
    models: Path
    precision: str
    load_timeout: Nanoseconds | None
    hang_timeout: Nanoseconds | None
    max_loaded_models: int
    num_parallel: int
    max_queue: int
    max_transfers: int
    kept_logs: int
    max_log_size: int
    max_converters: int
    converter_memory: int
    converter_timeout: Nanoseconds | None
    template_timeout: Nanoseconds | None
    template_output: int
    template_length: int
    drain_timeout: Nanoseconds
    pin: tuple[str, ...]
    preload_models: tuple[Preload, ...]
    pull: bool
    min_residency: Nanoseconds
    yield_after: Nanoseconds
    sleep_budget: int | float
    sleep_timeout: Nanoseconds | None
    context_length: int
    spare_workers: int
    untagged_calls: bool
    max_header_size: int
    max_headers: int
    header_timeout: Nanoseconds | None
    body_timeout: Nanoseconds | None
    max_connections: int
    max_pipelined: int
    max_body_size: int
    max_small_body_size: int
    max_bodies_size: int | float
    max_json_values: int
    max_choices: int
    max_schema_properties: int
    schema_timeout: Nanoseconds | None
    grammar_timeout: Nanoseconds | None
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

    @property
    def keys_file(self) -> Path:
        """The file of API keys."""
        return self.keys or self.models / "keys.json"

    @property
    def usage_file(self) -> Path:
        """The database of the usage of keys."""
        return self.usage or self.models / "usage.sqlite3"

    def resident_limit(self, gpus: int = 1) -> int:
        """Return the maximum number of models that may be awake at once on a machine with this many GPUs."""
        return self.max_loaded_models or 3 * gpus


@dataclass(frozen=True, slots=True)
class Address:
    """The address that the server listens on, parsed from OLLAMA_HOST (contract §6.1)."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `[scheme://]host[:port][/path]`; missing or invalid parts get Ollama's defaults."""
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
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def url(self) -> str:
        """The base URL for clients; for an unspecified address (0.0.0.0, ::) it has the loopback address."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{host}:{self.port}{'/' + self.path if self.path else ''}"
