"""The audit log: changes to the model store, and requests that were refused. It never has a secret."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import orjson

from vllama.gateway.routing import Request
from vllama.log_lines import escaped
from vllama.settings import Settings

log = logging.getLogger(__name__)
audit = logging.getLogger("vllama.audit")


class Audit:
    """Writer of the audit log: lines of the server's log, or lines of JSON in a file of their own."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: int | None = None

    def adopt(self, settings: Settings) -> None:
        """Write where these settings say. The file is opened anew, so that it can be rotated before a reload."""
        self.close()
        self._path = settings.audit_log
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(self._path, flags, 0o600)
        except OSError as error:
            log.error("the audit log goes to the server's log: %s", error)  # noqa: TRY400 - for the user

    def record(self, request: Request, status: int, reason: str = "") -> None:
        """Record a request; `status` is that of the reply, 0 if there was none; `reason` says why it was refused."""
        key = request.key.name if request.key is not None else ""
        client = request.scope.get("client")
        address = str(client[0]) if client else ""
        if self._file is None:
            about = f" {escaped(request.subject)}" if request.subject else ""
            why = f": {reason}" if reason else ""
            who = f"key {key}" if key else "no key"
            path = escaped(request.path)
            audit.info("audit: %s (%s) %s %s%s: %d%s", who, address, request.method, path, about, status, why)
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "key": key,
            "client": address,
            "method": request.method,
            "path": request.path,
            "model": request.subject,
            "status": status,
            "reason": reason,
        }
        try:
            os.write(self._file, orjson.dumps(line) + b"\n")
        except (OSError, orjson.JSONEncodeError) as error:
            log.error("cannot write to the audit log %s: %s", self._path, error)  # noqa: TRY400 - for the user

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
