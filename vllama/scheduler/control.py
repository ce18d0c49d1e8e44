"""Sleep and wake requests to a running worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from vllama.errors import SleepFailed
from vllama.scheduler.probe import ask


async def tell(socket: Path, path: str, record: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Post a record to one of `vllama.protocol.paths`' paths; return the reply's.

    Raises SleepFailed with the worker's message, or if it does not answer within `timeout` seconds.
    """
    try:
        status, body = await ask(socket, b"POST", path.encode(), orjson.dumps(record), timeout)
    except TimeoutError:
        raise SleepFailed(f"the model's worker did not answer {path} within {timeout:.0f} s") from None
    except OSError as error:
        raise SleepFailed(f"cannot reach the model's worker: {error}") from error
    try:
        reply: dict[str, Any] = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise SleepFailed(
            f"the model's worker answered {path} with status {status} and a body that is not JSON"
        ) from None
    if status != 200:
        raise SleepFailed(str(reply.get("error", f"status {status}")))
    return reply
