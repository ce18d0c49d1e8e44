"""Settings files of a snapshot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, record: Any) -> None:
    """Write a settings file of the snapshot; the same record gives the same bytes."""
    path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
