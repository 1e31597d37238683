"""A remoting caller of a few lines, for the questions the harness itself has to ask.

It shares no code with the project on purpose: what looks at a server must not be made of the same parts as
the server. JSON headers only.
"""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final

V4_9_4: Final = 401

GET_ROUTEINFO_BY_TOPIC: Final = 105
GET_BROKER_CLUSTER_INFO: Final = 106


class Answer:
    """What came back: code, remark, extFields and body."""

    def __init__(self, header: Mapping[str, Any], body: bytes) -> None:
        self.code: int = header["code"]
        self.remark: str | None = header.get("remark")
        self.fields: dict[str, str] = header.get("extFields") or {}
        self.body = body

    def __repr__(self) -> str:
        return f"Answer(code={self.code}, remark={self.remark!r}, fields={self.fields}, body={len(self.body)} bytes)"


def frame(header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """One frame with a JSON header."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack(">ii", 4 + len(text) + len(body), len(text)) + text + body


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """`count` bytes from the socket; ConnectionError when it closes before."""
    data = bytearray()
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionError(f"closed after {len(data)} of {count} bytes")
        data += part
    return bytes(data)


def read_frame(sock: socket.socket) -> bytes:
    """One frame from the socket, its length field included."""
    head = read_exactly(sock, 4)
    return head + read_exactly(sock, int.from_bytes(head, "big"))


def call(
    address: str,
    code: int,
    fields: Mapping[str, object] | None = None,
    body: bytes = b"",
    *,
    version: int = V4_9_4,
    timeout: float = 5.0,
) -> Answer:
    """Asks the server at `host:port` on a connection of its own.

    OSError when it cannot be reached in `timeout` seconds.
    """
    host, _, port = address.rpartition(":")
    header = {
        "code": code,
        "flag": 0,
        "language": "JAVA",
        "opaque": 1,
        "version": version,
        "extFields": {key: str(value) for key, value in (fields or {}).items()},
    }
    with socket.create_connection((host, int(port)), timeout) as sock:
        sock.sendall(frame(header, body))
        data = read_frame(sock)
    length = int.from_bytes(data[4:8], "big") & 0xFFFFFF
    return Answer(json.loads(data[8 : 8 + length]), data[8 + length :])
