"""The record twin equals its declaration; the small texts follow the official parsers."""

from __future__ import annotations

import struct
from typing import Any
from zlib import crc32

import construct
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol import message
from protocol.codes import ResponseCode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.message import (
    BATCH_ITEM,
    BatchItem,
    NewMessage,
    RecordError,
    StoredMessage,
    decode_batch,
    decode_record,
    encode_batch,
    encode_record,
    format_properties,
    java_hash,
    pack_host,
    parse_message_id,
    parse_properties,
    tags_code,
    unpack_host,
)

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
RAW = ("topic_data", "properties_data", "raw")
FIELDS = [name for name in StoredMessage.__struct_fields__ if name not in RAW]


@st.composite
def new_messages(draw: st.DrawFn) -> NewMessage:
    sys_flag = draw(INT32)
    return NewMessage(
        topic=draw(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=127)),
        queue_id=draw(INT32),
        flag=draw(INT32),
        sys_flag=sys_flag,
        born_timestamp=draw(INT64),
        born_host=draw(st.binary(min_size=20, max_size=20))[: 20 if sys_flag & 0x10 else 8],
        store_host=draw(st.binary(min_size=20, max_size=20))[: 20 if sys_flag & 0x20 else 8],
        body=draw(st.binary(max_size=300)),
        properties=draw(st.binary(max_size=200)),
        tags_code=0,
        reconsume_times=draw(INT32),
        prepared_transaction_offset=draw(INT64),
        queue_offset=draw(INT64),
        physical_offset=draw(INT64),
        store_timestamp=draw(INT64),
    )


def by_declaration(data: bytes) -> dict[str, Any] | None:
    try:
        parsed = message.RECORD.parse(data)
    except construct.ConstructError:
        return None
    wanted = {name: parsed[name] for name in FIELDS}
    return wanted | {"topic_data": parsed.topic, "properties_data": parsed.properties}


def by_twin(data: bytes) -> dict[str, Any] | None:
    try:
        stored = decode_record(data)
    except RecordError:
        return None
    return {name: getattr(stored, name) for name in [*FIELDS, "topic_data", "properties_data"]}


@given(new_messages(), st.binary(max_size=8))
def test_twin_reads_what_the_declaration_reads(new: NewMessage, rest: bytes) -> None:
    """A good record parses to the same fields both ways, whatever follows it."""
    data = encode_record(new)
    found = by_twin(data + rest)
    assert found is not None
    assert found == by_declaration(data + rest)
    assert found["body"] == new.body
    assert found["topic_data"] == new.topic.encode()
    assert decode_record(b"xx" + data, 2).raw == data


@given(new_messages(), st.data())
def test_twin_refuses_what_the_declaration_refuses(new: NewMessage, data: st.DataObject) -> None:
    """One changed byte, or a cut at any place, is judged alike by both."""
    record = encode_record(new)
    at = data.draw(st.integers(0, len(record) - 1))
    value = data.draw(st.integers(0, 255))
    damaged = record[:at] + bytes((value,)) + record[at + 1 :]
    assert by_twin(damaged) == by_declaration(damaged)
    assert by_twin(record[:at]) is None
    assert by_declaration(record[:at]) is None


@given(st.binary(max_size=200))
def test_twin_refuses_random_bytes(data: bytes) -> None:
    """Noise, also behind a good magic number, is judged alike by both."""
    assert by_twin(data) == by_declaration(data)
    framed = struct.pack(">ii", len(data) + 8, message.MAGIC_V1) + data
    assert by_twin(framed) == by_declaration(framed)


@given(new_messages())
def test_declaration_builds_what_the_encoder_builds(new: NewMessage) -> None:
    """Built from the parsed fields, the declaration gives the encoder's bytes."""
    data = encode_record(new)
    assert message.RECORD.build(message.RECORD.parse(data)) == data


def sample(**changes: Any) -> NewMessage:
    fields: dict[str, Any] = {
        "topic": "TopicTest",
        "queue_id": 3,
        "flag": 0,
        "sys_flag": 0,
        "born_timestamp": 1700000000000,
        "born_host": pack_host("10.0.0.1", 5000),
        "store_host": pack_host("127.0.0.1", 10911),
        "body": b"hello",
        "properties": b"TAGS\x01A",
        "tags_code": 65,
        "queue_offset": 7,
        "physical_offset": 4096,
        "store_timestamp": 1700000000001,
    }
    return NewMessage(**(fields | changes))


def test_layout_of_a_plain_record() -> None:
    """The official offsets: body at 88, 91 fixed bytes for two IPv4 hosts, 12 more for each IPv6 host."""
    data = encode_record(sample())
    assert len(data) == 91 + 5 + 9 + 6
    assert data[:8] == bytes.fromhex("0000006fdaa320a7")
    assert data[88:93] == b"hello"
    assert data[8:12] == (crc32(b"hello") & 0x7FFFFFFF).to_bytes(4, "big")
    assert data[20:28] == (7).to_bytes(8, "big")
    assert data[28:36] == (4096).to_bytes(8, "big")
    wide = sample(sys_flag=0x30, born_host=pack_host("::1", 1), store_host=pack_host("fe80::2", 2))
    assert len(encode_record(wide)) == 91 + 24 + 5 + 9 + 6
    assert decode_record(encode_record(wide)).store_host == pack_host("fe80::2", 2)


def test_record_of_5x_with_a_long_topic() -> None:
    """The V2 magic has a two-byte topic length."""
    topic = b"t" * 200
    head = bytearray(encode_record(sample(topic="")))
    head[0:8] = struct.pack(">iI", 91 + 1 + 5 + 200 + 6, 0xDAA320AB)
    data = bytes(head[:93]) + struct.pack(">h", 200) + topic + bytes(head[94:])
    assert decode_record(data).topic_data == topic
    assert by_twin(data) == by_declaration(data)


def test_crc_is_checked_unless_told_otherwise() -> None:
    """A changed body is refused; without the check it is handed out as it is."""
    data = bytearray(encode_record(sample()))
    data[88] ^= 1
    with pytest.raises(RecordError, match="CRC"):
        decode_record(data)
    assert decode_record(data, check_crc=False).body == b"iello"


def test_encoder_refuses_lengths_that_do_not_fit() -> None:
    """128 bytes of topic cannot be said in a signed length byte."""
    encode_record(sample(topic="t" * 127))
    with pytest.raises(LocalProtocolError):
        encode_record(sample(topic="t" * 128))
    encode_record(sample(properties=b"p" * 32767))
    with pytest.raises(LocalProtocolError):
        encode_record(sample(properties=b"p" * 32768))


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("", {}),
        ("a\x01b", {"a": "b"}),
        ("a\x01b\x02", {"a": "b"}),
        ("a\x01b\x02c\x01d", {"a": "b", "c": "d"}),
        ("\x01b\x02a\x01\x02c\x01d", {"c": "d"}),
        ("ab\x02c\x01d", {"c": "d"}),
        ("a\x01b\x01c", {"a": "b\x01c"}),
        ("a\x01b\x02a\x01c", {"a": "c"}),
    ],
)
def test_properties_text(text: str, parsed: dict[str, str]) -> None:
    """Both endings are read; pairs with an empty half are dropped; the last of equal names wins."""
    assert parse_properties(text) == parsed


@given(st.dictionaries(*[st.text(st.characters(exclude_characters="\x01\x02"), min_size=1)] * 2))
def test_properties_round_trip(pairs: dict[str, str]) -> None:
    """What is formatted is read back."""
    assert parse_properties(format_properties(pairs)) == pairs


@given(st.text(max_size=400))
@example("a" * 256)
@example("a" * 257)
@example("\U0001d11e中")
def test_java_hash_equals_its_definition(text: str) -> None:
    """s[0]*31^(n-1) + … over UTF-16 units, as a signed 32-bit number."""
    expected = 0
    for (unit,) in struct.iter_unpack(">H", text.encode("utf-16-be", "surrogatepass")):
        expected = (31 * expected + unit) & 0xFFFFFFFF
    assert java_hash(text) == struct.unpack(">i", struct.pack(">I", expected))[0]


def test_known_java_hashes() -> None:
    """Values that a JVM gives."""
    assert java_hash("hello") == 99162322
    assert java_hash("polygenelubricants") == -(2**31)
    assert tags_code("TagA") == java_hash("TagA") == 2598919
    assert tags_code("") == tags_code(None) == 0


def test_hashes_of_long_tags_are_right_and_not_kept() -> None:
    for tags in ("a", "TagA || TagB", "x" * 30_000, "é" * 101):
        assert tags_code(tags) == tags_code(tags) == java_hash(tags)
    held = message._known_hash.cache_info().currsize
    tags_code("y" * 30_000)
    assert message._known_hash.cache_info().currsize == held


def test_message_ids() -> None:
    """32 upper-case hex digits for IPv4, 56 for IPv6, and back."""
    assert message.message_id(pack_host("192.168.0.1", 10911), 0x1234) == "C0A8000100002A9F0000000000001234"
    assert parse_message_id("C0A8000100002A9F0000000000001234") == (pack_host("192.168.0.1", 10911), 0x1234)
    wide = message.message_id(pack_host("::1", 10911), 5)
    assert len(wide) == 56
    assert parse_message_id(wide) == (pack_host("::1", 10911), 5)
    assert unpack_host(pack_host("::1", 10911)) == ("::1", 10911)
    assert decode_record(encode_record(sample())).message_id == "7F00000100002A9F0000000000001000"


@pytest.mark.parametrize("text", ["", "abc", "0" * 31, "zz" * 16, "0" * 40])
def test_bad_message_ids(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match=r".*"):
        parse_message_id(text)


ITEMS = st.lists(st.builds(BatchItem, INT32, st.binary(max_size=50), st.binary(max_size=20)), min_size=1)


@given(ITEMS, st.data())
def test_batch_round_trip_and_cut(items: list[BatchItem], data: st.DataObject) -> None:
    """A batch reads back; cut at any byte that is no boundary it is refused with MESSAGE_ILLEGAL."""
    body = encode_batch(items)
    assert decode_batch(body) == items
    parsed = construct.GreedyRange(BATCH_ITEM).parse(body)
    assert [(item.flag, item.body, item.properties) for item in parsed] == items
    cut = data.draw(st.integers(0, len(body) - 1))
    boundaries = {len(encode_batch(items[:n])) for n in range(1, len(items))}
    if cut in boundaries:
        assert decode_batch(body[:cut]) == items[: len(decode_batch(body[:cut]))]
    else:
        with pytest.raises(RemoteProtocolError) as caught:
            decode_batch(body[:cut])
        assert caught.value.response_code == ResponseCode.MESSAGE_ILLEGAL


@pytest.mark.parametrize(
    "body",
    [
        struct.pack(">iiiii", 0, 0, 0, 0, -1) + bytes(40),
        struct.pack(">iiiii", 0, 0, 0, 0, 2**31 - 1) + bytes(40),
        struct.pack(">iiiiih", 0, 0, 0, 0, 0, -1) + bytes(40),
        struct.pack(">iiiiih", 0, 0, 0, 0, 0, 41) + bytes(40),
    ],
)
def test_batch_with_impossible_lengths(body: bytes) -> None:
    """Negative and overlong lengths are refused, not followed."""
    with pytest.raises(RemoteProtocolError, match="message 0"):
        decode_batch(body)
