"""What a broker registers with: its topics, as JSON or in the compressed form (spec/remoting.md 4.2).

compressed = zlib of    I4 length, DataVersion as JSON
                        I4 number of topics
                        each: I4 length, "topicName readQueueNums writeQueueNums perm topicFilterType"
                        I4 length, list of filter servers as JSON
                        from V5_0_0 on: I4 count, each: I4 length, queue mapping as JSON (not read)
"""

import struct
import zlib
from typing import Final, Self

import msgspec
from msgspec import field

from protocol.bodies.base import Body
from protocol.bodies.topics import DataVersion, TopicConfig, TopicFilterType, TopicTableBody
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.javajson import Reader
from protocol.jsonwriter import dumps

MAX_INFLATED_BYTES: Final = 16 << 20  # as much as a frame; 100,000 topics take less

_LENGTH: Final = struct.Struct(">i")
_COMPRESSION_LEVEL: Final = 9
_filter_servers: Final = Reader(list[str], "filterServerList")


def crc32(data: bytes) -> int:
    """CRC-32 without its sign bit, as REGISTER_BROKER and message records carry it (UtilAll.crc32)."""
    return zlib.crc32(data) & 0x7FFFFFFF


class RegisterBrokerBody(Body):
    """Topics and filter servers of a broker. The compressed form loses `order`, `topicSysFlag` and attributes."""

    topic_config_serialize_wrapper: TopicTableBody = field(default_factory=TopicTableBody)
    filter_server_list: list[str] = field(default_factory=list)

    @classmethod
    def decode(cls, data: bytes, *, compressed: bool = False) -> Self:
        """The body in `data`; raises RemoteProtocolError naming what is wrong."""
        return super().decode(data) if not compressed else cls._inflate(data)

    def encode(self, standard: bool = False, *, pretty: bool = False, compressed: bool = False) -> bytes:
        """The body; raises LocalProtocolError for a topic name that the compressed form cannot carry."""
        return super().encode(standard, pretty=pretty) if not compressed else self._deflate()

    @classmethod
    def _inflate(cls, data: bytes) -> Self:
        items = _Items(_inflated(data))
        version = DataVersion.decode(items.take("dataVersion"))
        table = {}
        for _ in range(items.number("number of topics")):
            config = _parse_topic(items.take("topic"))
            table[config.topic_name] = config
        return cls(
            topic_config_serialize_wrapper=TopicTableBody(data_version=version, topic_config_table=table),
            filter_server_list=_filter_servers.decode(items.take("filterServerList")),
        )

    def _deflate(self) -> bytes:
        table = self.topic_config_serialize_wrapper
        parts: list[bytes] = []
        _put(parts, table.data_version.encode())
        parts.append(_LENGTH.pack(len(table.topic_config_table)))
        for config in table.topic_config_table.values():
            _put(parts, _format_topic(config))
        _put(parts, dumps(self.filter_server_list))
        return zlib.compress(b"".join(parts), _COMPRESSION_LEVEL)


def _put(parts: list[bytes], item: bytes) -> None:
    parts.append(_LENGTH.pack(len(item)))
    parts.append(item)


def _format_topic(config: TopicConfig) -> bytes:
    name = config.topic_name
    if not name or " " in name:
        raise LocalProtocolError(f"topic name {name!r} in a compressed registration")
    numbers = f"{config.read_queue_nums} {config.write_queue_nums} {config.perm}"
    return f"{name} {numbers} {config.topic_filter_type}".encode()


def _parse_topic(item: bytes) -> TopicConfig:
    """The topic in `item`. A sixth word, the attributes of 5.x, is not read: the routes do not show them."""
    try:
        name, read, write, perm, filter_type, *_ = item.decode().split(" ")
        fields = {
            "topicName": name,
            "readQueueNums": read,
            "writeQueueNums": write,
            "perm": perm,
            "topicFilterType": TopicFilterType(filter_type),
        }
        return msgspec.convert(fields, TopicConfig, strict=False)
    except (ValueError, msgspec.ValidationError) as error:
        raise RemoteProtocolError(f"RegisterBrokerBody: topic {item[:200]!r}: {error}") from None


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(data, MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise RemoteProtocolError(f"RegisterBrokerBody: {error}") from None
    if not inflater.eof:
        size = len(content)
        reason = "ends early" if size < MAX_INFLATED_BYTES else f"has more than {MAX_INFLATED_BYTES} bytes"
        raise RemoteProtocolError(f"RegisterBrokerBody: the compressed content {reason}")
    return content


class _Items:
    """A cursor over numbers and length-prefixed items."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    def number(self, name: str) -> int:
        try:
            (number,) = _LENGTH.unpack_from(self._content, self._position)
        except struct.error:
            raise RemoteProtocolError(f"RegisterBrokerBody: {name}: the content ends here") from None
        if number < 0:
            raise RemoteProtocolError(f"RegisterBrokerBody: {name}: {number} is negative")
        self._position += _LENGTH.size
        return int(number)

    def take(self, name: str) -> bytes:
        size = self.number(f"length of {name}")
        item = self._content[self._position : self._position + size]
        if len(item) < size:
            raise RemoteProtocolError(f"RegisterBrokerBody: {name}: {size} bytes, but {len(item)} are left")
        self._position += size
        return item
