"""A remoting caller of a few lines, for the questions the harness itself has to ask.

It shares no code with the project on purpose: what looks at a server must not be made of the same parts as
the server. It asks with JSON headers and reads answers in either serialization.
"""

import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

V4_9_4: Final = 401

PULL_MESSAGE: Final = 11
QUERY_CONSUMER_OFFSET: Final = 14
GET_MIN_OFFSET: Final = 31
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


def nonce() -> str:
    """Eight hex digits that make a name one of its own."""
    return os.urandom(4).hex()


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


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a frame; a binary header in the shape of a JSON one."""
    word = int.from_bytes(data[4:8], "big")
    end = 8 + (word & 0xFFFFFF)
    if word >> 24 == 0:
        return json.loads(data[8:end]), data[end:]
    code, _language, version, opaque, flag, remark_size = struct.unpack_from(">hBhiii", data, 8)
    at = 8 + 17 + remark_size
    header = {"code": code, "version": version, "opaque": opaque, "flag": flag}
    header["remark"] = data[25:at].decode() if remark_size else None
    fields: dict[str, str] = {}
    stop = at + 4 + int.from_bytes(data[at : at + 4], "big")
    at += 4
    while at < stop:
        key_end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        value_end = key_end + 4 + int.from_bytes(data[key_end : key_end + 4], "big")
        fields[data[at + 2 : key_end].decode()] = data[key_end + 4 : value_end].decode()
        at = value_end
    return {**header, "extFields": fields}, data[end:]


def java_json(text: str) -> Any:
    """What fastjson writes: JSON in which the keys of objects may be numbers and objects, too.

    Such a key comes back as text: that of the number, or of the object with its keys sorted.
    """
    value, end = _java_value(text, 0)
    if text[end:].strip():
        raise ValueError(f"{text[end:][:40]!r} after the value")
    return value


def _java_value(text: str, at: int) -> tuple[Any, int]:
    at = _skip(text, at)
    if text[at] not in "{[":
        return json.JSONDecoder().raw_decode(text, at)
    items: list[Any] = []
    keys: list[str] = []
    close = "}" if text[at] == "{" else "]"
    at = _skip(text, at + 1)
    while text[at] != close:
        item, at = _java_value(text, at)
        at = _skip(text, at)
        if close == "}":
            if text[at] != ":":
                raise ValueError(f"no colon after a key at {at}")
            keys.append(item if isinstance(item, str) else json.dumps(item, sort_keys=True))
            item, at = _java_value(text, at + 1)
            at = _skip(text, at)
        items.append(item)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return (dict(zip(keys, items, strict=True)) if close == "}" else items), at + 1


def _skip(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


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
    with socket.create_connection((host, int(port)), timeout) as sock:
        return ask(sock, code, fields, body, version=version)


def ask(
    sock: socket.socket,
    code: int,
    fields: Mapping[str, object] | None = None,
    body: bytes = b"",
    *,
    version: int = V4_9_4,
) -> Answer:
    """Asks on a connection that carries nothing else."""
    asked = {
        "code": code,
        "flag": 0,
        "language": "JAVA",
        "opaque": 1,
        "version": version,
        "extFields": {key: str(value) for key, value in (fields or {}).items()},
    }
    sock.sendall(frame(asked, body))
    return Answer(*split(read_frame(sock)))


class Record(NamedTuple):
    """What a stored message says, without its times and hosts (both IPv4)."""

    size: int
    magic: int
    crc: int
    queue: int
    flag: int
    offset: int
    at: int
    sys_flag: int
    body: bytes
    topic: str
    properties: dict[str, str]


def records(body: bytes) -> Iterator[Record]:
    """The records of an answer's body."""
    at = 0
    while at < len(body):
        numbers = struct.unpack_from(">iiiiiqqi", body, at)
        body_end = at + 88 + int.from_bytes(body[at + 84 : at + 88], "big")
        topic_end = body_end + 1 + body[body_end]
        topic = body[body_end + 1 : topic_end].decode()
        pairs = body[topic_end + 2 : at + numbers[0]].decode().split("\x02")
        properties = dict(pair.split("\x01", 1) for pair in pairs if pair)
        yield Record._make([*numbers, body[at + 88 : body_end], topic, properties])
        at += numbers[0]


def committed(address: str, group: str, topic: str, queues: int) -> int:
    """How many messages of the topic's queues the group has behind it, as far as this broker knows."""
    offsets = (
        call(address, QUERY_CONSUMER_OFFSET, {"consumerGroup": group, "topic": topic, "queueId": queue}).fields
        for queue in range(queues)
    )
    return sum(int(fields.get("offset", 0)) for fields in offsets)


def read_queue(address: str, topic: str, queue: int, begin: int = 0) -> list[Record]:
    """All messages of a queue, from its minimum offset or from `begin` on, by PULL_MESSAGE on one connection."""
    offset = max(begin, int(call(address, GET_MIN_OFFSET, {"topic": topic, "queueId": queue}).fields["offset"]))
    found: list[Record] = []
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as sock:
        while True:
            fields = {
                **{"consumerGroup": "harness", "topic": topic, "queueId": queue, "queueOffset": offset},
                **{"maxMsgNums": 32, "sysFlag": 4, "commitOffset": 0, "suspendTimeoutMillis": 0, "subVersion": 0},
                **{"subscription": "*", "expressionType": "TAG"},
            }
            answer = ask(sock, PULL_MESSAGE, fields)
            if answer.code != 0:
                return found
            found += records(answer.body)
            offset = int(answer.fields["nextBeginOffset"])
