"""The message record: what the commitlog holds, what a pull answer carries, and the texts inside it.

Owns the record layout (declared once in ``RECORD``), the properties text, message ids, packed hosts and the
body of a batch send. The layout is the same on disk, on the HA wire and in pull answers, which is why it is
part of the protocol: the store writes these bytes and the broker hands them on unread.

``RECORD`` is the specification. ``PREFIX_*`` and ``decode_record`` are its twin for the path of every
message; a property test keeps both equal on good and on damaged bytes.

A record says nothing about its own integrity beyond lengths that add up, the magic number and a CRC of the
*body*: topic, properties and offsets are not covered.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import mul
from typing import Final, NamedTuple
from zlib import crc32

import construct as c
import msgspec

from protocol.codes import ResponseCode
from protocol.errors import LocalProtocolError, RemoteProtocolError

# Magic numbers. V2 is written by 5.x for topics above 127 bytes; it has a two-byte topic length.
MAGIC_V1: Final = -626843481  # 0xDAA320A7
MAGIC_V2: Final = -626843477  # 0xDAA320AB
MAGIC_BLANK: Final = -875286124  # 0xCBD43194: the rest of a commitlog file is filler

# Bits of sysFlag (MessageSysFlag).
COMPRESSED: Final = 0x1
MULTI_TAGS: Final = 0x2
TRANSACTION_MASK: Final = 0xC
TRANSACTION_NONE: Final = 0x0
TRANSACTION_PREPARED: Final = 0x4
TRANSACTION_COMMIT: Final = 0x8
TRANSACTION_ROLLBACK: Final = 0xC
BORN_HOST_V6: Final = 0x10
STORE_HOST_V6: Final = 0x20

CRC_MASK: Final = 0x7FFFFFFF  # the official broker keeps the CRC-32 of the body non-negative
MAX_TOPIC_BYTES: Final = 127  # a signed length byte
MAX_PROPERTIES_BYTES: Final = 32767  # a signed two-byte length


def _host(flag: int) -> c.Construct:
    return c.Bytes(lambda ctx: 20 if ctx.sys_flag & flag else 8)


def _fits(ctx: c.Container) -> bool:
    topic_length_size = 2 if ctx.magic == MAGIC_V2 else 1
    hosts = len(ctx.born_host) + len(ctx.store_host)
    texts = len(ctx.body) + len(ctx.topic) + len(ctx.properties)
    return bool(ctx.total_size == 74 + hosts + texts + topic_length_size)


# Offsets hold for two IPv4 hosts; n = length of the body, t = length of the topic.
RECORD: Final = c.Struct(
    "total_size" / c.Int32sb,  # 0: bytes of the whole record
    "magic" / c.OneOf(c.Int32sb, (MAGIC_V1, MAGIC_V2)),  # 4
    "body_crc" / c.Int32sb,  # 8: CRC-32 of the body, top bit cleared; not looked at for an empty body
    "queue_id" / c.Int32sb,  # 12
    "flag" / c.Int32sb,  # 16: the application's own
    "queue_offset" / c.Int64sb,  # 20: number of the message in its queue
    "physical_offset" / c.Int64sb,  # 28: commitlog offset of this record's first byte
    "sys_flag" / c.Int32sb,  # 36
    "born_timestamp" / c.Int64sb,  # 40: ms, the client's clock
    "born_host" / _host(BORN_HOST_V6),  # 48: address and a four-byte port
    "store_timestamp" / c.Int64sb,  # 56: ms, the broker's clock
    "store_host" / _host(STORE_HOST_V6),  # 64
    "reconsume_times" / c.Int32sb,  # 72
    "prepared_transaction_offset" / c.Int64sb,  # 76
    "body_length" / c.Int32sb,  # 84
    c.Check(lambda ctx: ctx.body_length >= 0),
    "body" / c.Bytes(c.this.body_length),  # 88
    "topic_length" / c.IfThenElse(c.this.magic == MAGIC_V2, c.Int16sb, c.Int8sb),  # 88 + n
    c.Check(lambda ctx: ctx.topic_length >= 0),
    "topic" / c.Bytes(c.this.topic_length),  # 89 + n
    "properties_length" / c.Int16sb,  # 89 + n + t
    c.Check(lambda ctx: ctx.properties_length >= 0),
    "properties" / c.Bytes(c.this.properties_length),  # 91 + n + t
    c.Check(_fits),
    c.Check(
        lambda ctx: not ctx.body or (crc32(ctx.body) & CRC_MASK) == ctx.body_crc,
    ),
)


def _prefix(born: int, store: int) -> struct.Struct:
    """Everything before the body, ending with its length."""
    return struct.Struct(f">iiiiiqqiq{born}sq{store}siqi")


PREFIX_V4: Final = _prefix(8, 8)
PREFIXES: Final[dict[int, struct.Struct]] = {
    0: PREFIX_V4,
    BORN_HOST_V6: _prefix(20, 8),
    STORE_HOST_V6: _prefix(8, 20),
    BORN_HOST_V6 | STORE_HOST_V6: _prefix(20, 20),
}
HOST_FLAGS: Final = BORN_HOST_V6 | STORE_HOST_V6
HEAD: Final = struct.Struct(">ii")  # total size and magic
MIN_RECORD_BYTES: Final = PREFIX_V4.size + 3
SYS_FLAG_POSITION: Final = 36
_SYS_FLAG = struct.Struct(">i")
_SHORT = struct.Struct(">h")


class RecordError(ValueError):
    """These bytes are not a message record; the text says what is wrong."""


class NewMessage(msgspec.Struct, gc=False):
    """A message on its way into the store. The last four fields are set by the append."""

    topic: str
    queue_id: int
    flag: int
    sys_flag: int
    born_timestamp: int  # ms, the client's clock
    born_host: bytes  # packed, see pack_host
    store_host: bytes
    body: bytes
    properties: bytes  # the properties text
    tags_code: int  # what the consume queue entry carries for filtering
    keys: tuple[str, ...] = ()  # index keys without the topic: the unique key first, then each of KEYS
    reconsume_times: int = 0
    prepared_transaction_offset: int = 0
    wait: bool = True  # False: the sender does not wait for the flush
    queue_offset: int = -1
    physical_offset: int = -1
    store_timestamp: int = 0  # ms, the broker's clock
    size: int = 0  # bytes of the record


class StoredMessage(msgspec.Struct, gc=False):
    """A record read back: the fields of ``RECORD``, with the texts still encoded."""

    total_size: int
    magic: int
    body_crc: int
    queue_id: int
    flag: int
    queue_offset: int
    physical_offset: int
    sys_flag: int
    born_timestamp: int
    born_host: bytes
    store_timestamp: int
    store_host: bytes
    reconsume_times: int
    prepared_transaction_offset: int
    body: bytes
    topic_data: bytes
    properties_data: bytes
    raw: bytes  # the whole record

    @property
    def topic(self) -> str:
        return self.topic_data.decode("utf-8", "replace")

    @property
    def properties(self) -> dict[str, str]:
        """Parsed at each access; keep the result."""
        return parse_properties(self.properties_data.decode("utf-8", "replace"))

    @property
    def message_id(self) -> str:
        return message_id(self.store_host, self.physical_offset)


def encode_record(message: NewMessage) -> bytes:
    """The record of a message whose four last fields are set (``size`` is computed here).

    The commitlog's append builds the same bytes in line, without a call for each message.
    """
    topic = message.topic.encode()
    body = message.body
    properties = message.properties
    prefix = PREFIXES[message.sys_flag & HOST_FLAGS]
    if len(topic) > MAX_TOPIC_BYTES or len(properties) > MAX_PROPERTIES_BYTES:
        raise LocalProtocolError("topic or properties too long for a record")
    head = prefix.pack(
        prefix.size + len(body) + len(topic) + len(properties) + 3,
        MAGIC_V1,
        crc32(body) & CRC_MASK,
        message.queue_id,
        message.flag,
        message.queue_offset,
        message.physical_offset,
        message.sys_flag,
        message.born_timestamp,
        message.born_host,
        message.store_timestamp,
        message.store_host,
        message.reconsume_times,
        message.prepared_transaction_offset,
        len(body),
    )
    return b"".join((head, body, bytes((len(topic),)), topic, _SHORT.pack(len(properties)), properties))


def decode_record(
    buffer: bytes | bytearray | memoryview, position: int = 0, *, check_crc: bool = True
) -> StoredMessage:
    """The record that starts at ``position``; bytes after it are not looked at.

    Raises RecordError. ``check_crc=False`` takes the body as it is.
    """
    if len(buffer) - position < MIN_RECORD_BYTES:
        raise RecordError("record is cut off")
    total_size, magic = HEAD.unpack_from(buffer, position)
    if magic not in (MAGIC_V1, MAGIC_V2):
        raise RecordError(f"magic number {magic & 0xFFFFFFFF:#010x} is not a message's")
    if not MIN_RECORD_BYTES <= total_size <= len(buffer) - position:
        raise RecordError(f"total size {total_size} does not fit, {len(buffer) - position} bytes are there")
    raw = bytes(buffer[position : position + total_size])
    (sys_flag,) = _SYS_FLAG.unpack_from(raw, SYS_FLAG_POSITION)
    prefix = PREFIXES[sys_flag & HOST_FLAGS]
    wide = 1 if magic == MAGIC_V1 else 2
    spare = total_size - prefix.size - wide - 2  # bytes for the three texts
    if spare < 0:
        raise RecordError(f"total size {total_size} is too small for its fields")
    fields = prefix.unpack_from(raw)
    body_length = fields[14]
    if not 0 <= body_length <= spare:
        raise RecordError(f"body length {body_length} does not fit into total size {total_size}")
    topic_at = prefix.size + body_length + wide
    topic_length = int.from_bytes(raw[topic_at - wide : topic_at], "big", signed=True)
    if not 0 <= topic_length <= spare - body_length:
        raise RecordError(f"topic length {topic_length} does not fit into total size {total_size}")
    properties_at = topic_at + topic_length + 2
    (properties_length,) = _SHORT.unpack_from(raw, properties_at - 2)
    if properties_at + properties_length != total_size or properties_length < 0:
        raise RecordError(f"lengths do not add up to total size {total_size}")
    body = raw[prefix.size : prefix.size + body_length]
    if check_crc and body_length and (crc32(body) & CRC_MASK) != fields[2]:
        raise RecordError("CRC of the body does not match")
    texts = (body, raw[topic_at : topic_at + topic_length], raw[properties_at:], raw)
    return StoredMessage(*(fields[:14] + texts))


def parse_properties(text: str) -> dict[str, str]:
    """``name U+0001 value U+0002 …``, with or without the last separator; pairs with an empty half are dropped."""
    found: dict[str, str] = {}
    for pair in text.split("\x02"):
        name, separator, value = pair.partition("\x01")
        if separator and name and value:
            found[name] = value
    return found


def format_properties(properties: Mapping[str, str]) -> str:
    """The text of the pairs in their order, without a last separator, as 4.9.x writes it."""
    return "\x02".join([f"{name}\x01{value}" for name, value in properties.items()])


_POWERS: Final = tuple(pow(31, n, 1 << 32) for n in range(256))
_POWERS_FOR: Final = tuple(_POWERS[n - 1 :: -1] if n else () for n in range(257))


def java_hash(text: str) -> int:
    """``String.hashCode()``: over UTF-16 units, wrapped to a signed 32-bit number."""
    units: Sequence[int]
    total: int
    if text.isascii():
        units = text.encode()
    else:
        data = text.encode("utf-16-le", "surrogatepass")
        units = memoryview(data).cast("H") if _LITTLE_ENDIAN else struct.unpack(f"<{len(data) // 2}H", data)
    if len(units) <= 256:
        total = sum(map(mul, units, _POWERS_FOR[len(units)]))
    else:
        total = 0
        for unit in units:
            total = (total * 31 + unit) & 0xFFFFFFFF
    return ((total + 0x80000000) & 0xFFFFFFFF) - 0x80000000


_LITTLE_ENDIAN: Final = struct.pack("=H", 1) == b"\x01\x00"


MAX_CACHED_TAGS: Final = 100
_known_hash = lru_cache(4096)(java_hash)


def tags_code(tags: str | None) -> int:
    """What a consume queue entry holds for the property TAGS: the hash of the whole text, 0 for none.

    That of a usual tag is remembered, of a text of 32 KB it is not.
    """
    if not tags:
        return 0
    return _known_hash(tags) if len(tags) <= MAX_CACHED_TAGS else java_hash(tags)


def pack_host(ip: str, port: int) -> bytes:
    """4 or 16 address bytes and a four-byte port. ValueError if ``ip`` is not an address."""
    return ipaddress.ip_address(ip).packed + port.to_bytes(4, "big")


def unpack_host(host: bytes) -> tuple[str, int]:
    """Address text and port of 8 or 20 packed bytes. ValueError for other lengths."""
    return str(ipaddress.ip_address(host[:-4])), int.from_bytes(host[-4:], "big", signed=True)


def message_id(host: bytes, physical_offset: int) -> str:
    """The offset message id: packed store host and commitlog offset in upper-case hex, 32 or 56 characters."""
    return (host + physical_offset.to_bytes(8, "big", signed=True)).hex().upper()


def parse_message_id(text: str) -> tuple[bytes, int]:
    """Packed store host and commitlog offset. ValueError if the text is not such an id."""
    data = bytes.fromhex(text) if len(text) in (32, 56) else b""
    if len(data) not in (16, 28):
        raise ValueError(f"not a message id: {text!r}")
    return data[:-8], int.from_bytes(data[-8:], "big", signed=True)


class BatchItem(NamedTuple):
    """One message in the body of a batch send."""

    flag: int
    body: bytes
    properties: bytes


# One item of a batch body. The first three fields are the client's and mean nothing to a broker.
BATCH_ITEM: Final = c.Struct(
    "total_size" / c.Int32sb,  # 0
    "magic" / c.Int32sb,  # 4
    "body_crc" / c.Int32sb,  # 8
    "flag" / c.Int32sb,  # 12
    "body_length" / c.Int32sb,  # 16
    c.Check(lambda ctx: ctx.body_length >= 0),
    "body" / c.Bytes(c.this.body_length),  # 20
    "properties_length" / c.Int16sb,
    c.Check(lambda ctx: ctx.properties_length >= 0),
    "properties" / c.Bytes(c.this.properties_length),
)
_BATCH_HEAD = struct.Struct(">iiiii")


def decode_batch(body: bytes) -> list[BatchItem]:
    """The messages of a batch send. RemoteProtocolError(MESSAGE_ILLEGAL) if the lengths do not fit the body."""
    items: list[BatchItem] = []
    position, end = 0, len(body)
    while position < end:
        if end - position < _BATCH_HEAD.size:
            raise _illegal_batch(len(items), "is cut off")
        _, _, _, flag, body_length = _BATCH_HEAD.unpack_from(body, position)
        body_at = position + _BATCH_HEAD.size
        properties_at = body_at + body_length + 2
        if body_length < 0 or properties_at > end:
            raise _illegal_batch(len(items), f"has body length {body_length}")
        (properties_length,) = _SHORT.unpack_from(body, properties_at - 2)
        position = properties_at + properties_length
        if properties_length < 0 or position > end:
            raise _illegal_batch(len(items), f"has properties length {properties_length}")
        items.append(BatchItem(flag, body[body_at : properties_at - 2], body[properties_at:position]))
    if not items:
        raise RemoteProtocolError("batch body is empty", ResponseCode.MESSAGE_ILLEGAL)
    return items


def _illegal_batch(number: int, what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"message {number} of the batch {what}", ResponseCode.MESSAGE_ILLEGAL)


def encode_batch(items: Sequence[BatchItem]) -> bytes:
    """The body of a batch send, as the official client builds it."""
    parts: list[bytes] = []
    for flag, body, properties in items:
        size = _BATCH_HEAD.size + len(body) + 2 + len(properties)
        parts += (_BATCH_HEAD.pack(size, 0, 0, flag, len(body)), body)
        parts += (_SHORT.pack(len(properties)), properties)
    return b"".join(parts)
