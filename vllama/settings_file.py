"""The settings file: TOML with the names of the settings table; environment variables take precedence.

keep_alive = "10m"
max_loaded_models = 2
pin = ["smollm2:135m"]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllama.errors import RequestError, SettingsError
from vllama.settings import SETTINGS, Settings

VARIABLE = "VLLAMA_SETTINGS"
"""Environment variable that names the file; if it is not set, DEFAULT is read if it exists."""

DEFAULT = Path("~/.vllama/settings.toml")


def load(environ: Mapping[str, str]) -> Settings:
    """Return the settings in force; variables take precedence over the file. Raises SettingsError if it is invalid."""
    stated = environ.get(VARIABLE, "").strip()
    path = Path(stated or DEFAULT).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if stated:
            raise SettingsError(f"{VARIABLE}: no such file: {path}") from None
        return Settings.from_environment(environ)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from error
    given = {name: value for name, value in environ.items() if value.strip()}
    return Settings.from_environment({**_variables(text, path), **given})


def _variables(text: str, path: Path) -> dict[str, str]:
    """Return the settings of the file as environment variables."""
    import tomllib  # imported late, because most commands find no file

    try:
        stated = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers that are too long, and deep lists
        raise SettingsError(f"{path}: {error}") from None
    rows = {row.name: row for row in SETTINGS}
    variables = {}
    for name, value in stated.items():
        if name not in rows:
            raise SettingsError(f"{path}: unknown setting '{name}'; the settings are {', '.join(rows)}")
        try:
            variables[rows[name].env] = spelled = _spelled(value)
            rows[name].parse(spelled)
        except (ValueError, RequestError) as error:
            raise SettingsError(f"{path}: {name} = {value!r}: {error}") from None
    return variables


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    message = "must be a string, a number, true or false, or a list of strings"
    raise ValueError(message)
