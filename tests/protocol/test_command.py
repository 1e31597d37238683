"""Both header forms: good, random and damaged; the twins against the declaration."""

import json
import struct
from contextlib import suppress

import construct
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codes import FLAG_RESPONSE, LanguageCode, RequestCode, SerializeType
from protocol.command import MAX_FRAME_BYTES, MAX_REMARK, ROCKETMQ_HEADER, Command, decode, encode, response
from protocol.errors import FrameError, LocalProtocolError, RemoteProtocolError
from protocol.requests.offsets import QueryConsumerOffset
from protocol.requests.send import SendMessageV2

int32 = st.integers(-(2**31), 2**31 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
commands = st.builds(
    Command,
    st.integers(0, 2**15 - 1),
    int32,
    flag=st.integers(0, 3),
    fields=st.dictionaries(texts, texts, max_size=6),
    body=st.binary(max_size=50),
    remark=st.none() | texts,
    version=st.integers(0, 2**15 - 1),
    language=st.sampled_from([language.value for language in LanguageCode]),
    serialize_type=st.sampled_from(SerializeType),
)


def split(frame: bytes) -> tuple[int, bytes, bytes]:
    """Serialize type, header and body of one frame."""
    length, word = struct.unpack_from(">iI", frame)
    assert length == len(frame) - 4
    header_end = 8 + (word & 0xFFFFFF)
    return word >> 24, frame[8:header_end], frame[header_end:]


def values(command: Command) -> tuple[object, ...]:
    return (
        command.code,
        command.opaque,
        command.flag,
        command.fields,
        command.body,
        command.remark,
        command.version,
        command.language,
        command.serialize_type,
    )


@given(commands)
def test_what_is_encoded_is_decoded(command: Command) -> None:
    assert values(command) == values(decode(*split(encode(command))))


@given(commands.filter(lambda command: command.serialize_type is SerializeType.ROCKETMQ))
def test_twin_writes_what_the_declaration_reads(command: Command) -> None:
    parsed = ROCKETMQ_HEADER.parse(split(encode(command))[1])
    assert (parsed.code, parsed.language, parsed.version) == (command.code, command.language, command.version)
    assert (parsed.opaque, parsed.flag) == (command.opaque, command.flag)
    assert parsed.remark.decode() == (command.remark or "")
    assert {entry.key.decode(): entry.value.decode() for entry in parsed.ext} == command.fields


@given(commands.filter(lambda c: c.serialize_type is SerializeType.ROCKETMQ), st.data())
def test_twin_and_declaration_agree_on_damaged_headers(command: Command, data: st.DataObject) -> None:
    header = bytearray(split(encode(command))[1])
    for _ in range(data.draw(st.integers(1, 3))):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(header)[: data.draw(st.integers(0, len(header)))]
    try:
        twin = decode(SerializeType.ROCKETMQ, damaged, b"")
    except FrameError:
        return  # the twin is the stricter one: UTF-8, entries that end exactly at the block's end
    parsed = ROCKETMQ_HEADER.parse(damaged)
    assert (parsed.code, parsed.opaque, parsed.flag) == (twin.code, twin.opaque, twin.flag)
    assert {e.key.decode(): e.value.decode() for e in parsed.ext if e.key and e.value} == twin.fields


@given(st.sampled_from([0, 1, 2, 255]), st.binary(max_size=200))
def test_random_headers_are_refused_or_read(serialize_type: int, header: bytes) -> None:
    with suppress(FrameError):
        decode(serialize_type, header, b"")


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (b"", "JSON"),
        (b"[]", "object"),
        (b'{"code":"x"}', "code"),
        (b'{"opaque":1}', "code"),
        (b'{"code":10,"extFields":{"a":{}}}', "extFields.a"),
        (b'{"code":10,"extFields":{"a":"\xff"}}', "JSON"),
        (b'{"code":99999999999}', "code"),
        (b'{"code":10,"extFields":' + b'{"a":' * 100_000, "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"code":310,"extFields":{"a":"\xff"}}', "(?i)utf-8"),
        (b'{"code":310,"extFields":{"a":' + b"[" * 100_000, "recursion"),
    ],
)
def test_broken_json_header_says_what_is_wrong(header: bytes, word: str) -> None:
    with pytest.raises(FrameError, match=word):
        decode(SerializeType.JSON, header, b"")


def test_unknown_serialization_is_named() -> None:
    with pytest.raises(FrameError, match="serialization 7"):
        decode(7, b"{}", b"")


def test_json_numbers_of_the_cpp_client_become_text() -> None:
    header = b'{"code":14,"extFields":{"queueId":3,"consumerGroup":"g","topic":"t","x":true,"y":null}}'
    command = decode(SerializeType.JSON, header, b"")
    assert command.fields == {"queueId": "3", "consumerGroup": "g", "topic": "t", "x": "true"}
    assert command.typed_header(QueryConsumerOffset).queue_id == 3


def test_typed_header_names_the_bad_field() -> None:
    command = Command(14, fields={"consumerGroup": "g", "topic": "t", "queueId": "three"})
    with pytest.raises(RemoteProtocolError, match="queueId"):
        command.typed_header(QueryConsumerOffset)
    with pytest.raises(RemoteProtocolError, match="topic"):
        Command(14, fields={"consumerGroup": "g", "queueId": "1"}).typed_header(QueryConsumerOffset)


SEND_FIELDS = {
    "a": "group",
    "b": "topic",
    "c": "TBW102",
    "d": "4",
    "e": "1",
    "f": "0",
    "g": "1700000000000",
    "h": "0",
    "i": "TAGS\x01a",
    "m": "false",
}


def test_send_in_one_pass_equals_the_general_path() -> None:
    header = {"code": 310, "extFields": SEND_FIELDS, "flag": 0, "language": "JAVA", "opaque": 5, "version": 401}
    compact = json.dumps(header, separators=(",", ":")).encode()
    one_pass = decode(SerializeType.JSON, compact, b"body")
    general = decode(SerializeType.JSON, json.dumps(header).encode(), b"body")
    assert isinstance(one_pass.header, SendMessageV2)
    assert general.header is None
    assert one_pass.header == general.typed_header(SendMessageV2)
    assert values(one_pass) == values(general)


def test_bad_send_is_read_by_the_general_path_and_then_refused() -> None:
    fields = SEND_FIELDS | {"e": "first"}
    header = json.dumps({"code": 310, "extFields": fields, "opaque": 5}, separators=(",", ":")).encode()
    command = decode(SerializeType.JSON, header, b"")
    assert command.opaque == 5
    with pytest.raises(RemoteProtocolError, match="e"):
        command.typed_header(SendMessageV2)


@pytest.mark.parametrize("serialize_type", list(SerializeType))
def test_answers_come_in_the_serialization_of_the_request(serialize_type: SerializeType) -> None:
    request = Command(RequestCode.GET_MAX_OFFSET, 77, serialize_type=serialize_type)
    answer = decode(*split(encode(response(request, 1, remark="why"))))
    assert (answer.code, answer.opaque, answer.flag, answer.remark) == (1, 77, FLAG_RESPONSE, "why")
    assert answer.serialize_type is serialize_type


def test_long_remark_is_cut() -> None:
    answer = response(Command(RequestCode.GET_MAX_OFFSET), 1, remark="why" * MAX_REMARK)
    assert answer.remark is not None
    assert len(answer.remark) == MAX_REMARK


def test_what_is_longer_than_a_frame_has_no_form() -> None:
    command = Command(1, body=bytes(MAX_FRAME_BYTES))
    command.body = command.body[len(encode(Command(1))) :]
    assert len(encode(command)) == MAX_FRAME_BYTES
    command.body += b"x"
    with pytest.raises(LocalProtocolError, match="16777217"):
        encode(command)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({f"name{number}": "v" for number in range(13)}, True),
        ({f"name{number}": "v" for number in range(100)}, False),
        ({"n" * 30_000: "v"}, False),
        ({"name": "v" * 30_000}, True),
    ],
)
def test_only_small_shapes_of_binary_headers_are_remembered(
    fields: dict[str, str], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: dict[int, object] = {}
    monkeypatch.setattr("protocol.command._shapes", shapes)
    frame = encode(Command(1, fields=dict(fields), serialize_type=SerializeType.ROCKETMQ))
    for _ in range(2):
        assert decode(*split(frame)).fields == fields
    assert bool(shapes) is kept


def test_code_beyond_16_bits_has_no_rocketmq_form() -> None:
    with pytest.raises(LocalProtocolError, match="200050"):
        encode(Command(200_050, serialize_type=SerializeType.ROCKETMQ))


def test_declaration_refuses_a_cut_header() -> None:
    header = split(encode(Command(1, serialize_type=SerializeType.ROCKETMQ)))[1]
    with pytest.raises(construct.StreamError):
        ROCKETMQ_HEADER.parse(header[:10])
