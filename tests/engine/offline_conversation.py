"""Run inside a network namespace: serve a store, chat with it over loopback, and print what came of it as JSON."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import sys
from pathlib import Path

from engine.server import Server

FAR_AWAY = ("192.0.2.1", 80)
"""An address that is nobody's (RFC 5737); without a route the kernel refuses it at once."""


def main(store: Path, model: str, question: str) -> None:
    """Print the record of the answer, the interfaces that there are, and why no other host can be reached."""
    _bring_loopback_up()
    with socket.socket() as outwards:
        outwards.settimeout(5)
        refusal = os.strerror(outwards.connect_ex(FAR_AWAY))
    server = Server(store, "--model", model)
    try:
        body = {"model": model, "messages": [{"role": "user", "content": question}], "options": {"temperature": 0}}
        reply = server.ask("/api/chat", body)
    finally:
        server.close()
    print(json.dumps({"reply": reply, "interfaces": [name for _, name in socket.if_nameindex()], "refusal": refusal}))


def _bring_loopback_up() -> None:
    """What `ip link set lo up` does (netdevice(7)); that program need not be installed."""
    set_flags, is_up = 0x8914, 1
    with socket.socket(type=socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", is_up))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
