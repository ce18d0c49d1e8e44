"""Settings in a file, beneath those of the environment: TOML, by the names of the table.

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
"""Names the file; where it is not set, DEFAULT is read if it is there."""

DEFAULT = Path("~/.vllama/settings.toml")


def load(environ: Mapping[str, str]) -> Settings:
    """The settings in force: a variable wins over the file. Raises SettingsError where the file is wrong."""
    stated = environ.get(VARIABLE, "").strip()
    path = Path(stated or DEFAULT).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if stated:
            raise SettingsError(f"{VARIABLE}: there is no file {path}") from None
        return Settings.from_environment(environ)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from error
    given = {name: value for name, value in environ.items() if value.strip()}
    return Settings.from_environment({**_variables(text, path), **given})


def _variables(text: str, path: Path) -> dict[str, str]:
    """What the file says, as the variables that would say the same."""
    import tomllib  # here, because most commands find no file

    try:
        stated = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: {error}") from None
    rows = {row.name: row for row in SETTINGS}
    variables = {}
    for name, value in stated.items():
        if name not in rows:
            raise SettingsError(f"{path}: there is no setting '{name}'; there are {', '.join(rows)}")
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
    message = "must be a text, a number, true or false, or a list of texts"
    raise ValueError(message)
