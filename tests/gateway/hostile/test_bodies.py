"""Bodies that are not what their request promises: broken, nested, of wrong types, too large; batches, properties."""

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from tests.gateway.hostile.rig import (
    CREATE_TOPIC,
    HEARTBEAT,
    PULL,
    REGISTER_BROKER,
    REGISTRATION,
    SEND_V2,
    TOPIC,
    TOPIC_FIELDS,
    Received,
    Server,
    pull_fields,
    send_fields,
)
from tests.gateway.hostile.samples import SAMPLE_TOPIC, samples

ILLEGAL_MESSAGE = 13
SEND, SEND_BATCH = 10, 320
MESSAGE_LIMIT = 4 << 20

BROKEN: dict[str, bytes] = {
    "null": b"null",
    "a number": b"17",
    "a text": b'"text"',
    "a list": b"[]",
    "an object": b"{}",
    "cut off": b'{"clientID":"c","consumerDataSet":[{"gro',
    "two values": b"{}{}",
    "not UTF-8": b'{"clientID":"\xff\xfe"}',
    "zeros": bytes(1000),
    "nested lists": b"[" * 100_000,
    "nested lists, all closed": b"[" * 100_000 + b"]" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "nested keys": b'{"mqSet":' + b"{" * 100_000,
    "nested where a list belongs": b'{"clientID":"c","mqSet":' + b"[" * 100_000,
    "a long text without an end": b'{"clientID":"' + b"x" * 400_000,
    "many quotes": b'"' * 200_000,
    "many numeric keys": b"{" + b",".join(b"%d:1" % number for number in range(20_000)),
    "many members": b"{" + b",".join(b'"%d":1' % number for number in range(20_000)) + b"}",
    "a number of many digits": b'{"counter":' + b"9" * 100_000 + b"}",
    "a property of nothing": b"=\\u12",
    "properties": b"key=value\n" * 10_000,
}


def assert_meant(answer: Received, what: str) -> None:
    """An answer that somebody thought of: not the text of an exception."""
    assert answer.code == 0 or answer.remark, f"{what}: {answer}"
    assert "Error:" not in (answer.remark or ""), f"{what}: {answer}"


@pytest.mark.parametrize("kind", BROKEN)
async def test_every_request_survives_a_broken_body(server: Server, kind: str) -> None:
    async with server.client() as client:
        for each in samples(server):
            started = trio.current_time()
            assert_meant(await client.ask(each.code, each.fields, BROKEN[kind]), f"{each} with {kind}")
            assert trio.current_time() - started < 2, f"{each} with {kind}"


async def test_bodies_beyond_all_need_are_refused_unread(server: Server) -> None:
    huge = {
        "lines": b"a=b\n" * 4_000_000,
        "quotes": b'"' * 16_000_000,
        "topics": b'{"topicConfigList":[' + b",".join([b'{"topicName":"t"}'] * 500_000) + b"]}",
    }
    async with server.client() as client:
        for each in samples(server):
            if each.code in (SEND_V2, SEND_BATCH, SEND):
                continue
            for name, data in huge.items():
                started = trio.current_time()
                answer = await client.ask(each.code, each.fields, data)
                assert answer.code != 0 or each.code == REGISTER_BROKER, f"{each} with {name}: {answer}"
                assert_meant(answer, f"{each} with {name}")
                assert trio.current_time() - started < 2, f"{each} with {name}"


# ---- wrong types


SUBSCRIPTION = {
    "topic": TOPIC,
    "subString": "a || b",
    "subVersion": 1,
    "expressionType": "TAG",
    "tagsSet": ["a", "b"],
    "codeSet": [97, 98],
    "classFilterMode": False,
}
CONSUMER = {
    "groupName": "g",
    "consumeType": "CONSUME_PASSIVELY",
    "messageModel": "CLUSTERING",
    "consumeFromWhere": "CONSUME_FROM_LAST_OFFSET",
    "subscriptionDataSet": [SUBSCRIPTION],
    "unitMode": False,
}
QUEUE = {"brokerName": "broker-a", "queueId": 0, "topic": TOPIC}
VERSION = {"counter": 1, "timestamp": 1, "stateVersion": 0}
GROUP_CONFIG = {"groupName": "g", "retryQueueNums": 1, "retryMaxTimes": 16, "brokerId": 0, "consumeEnable": True}
TOPIC_CONFIG = {
    "topicName": "t",
    "readQueueNums": 1,
    "writeQueueNums": 1,
    "perm": 6,
    "topicFilterType": "SINGLE_TAG",
    "topicSysFlag": 0,
    "order": False,
    "attributes": {"+message.type": "NORMAL"},
}
BROKER_BODIES: dict[int, Any] = {
    HEARTBEAT: {"clientID": "c", "consumerDataSet": [CONSUMER], "producerDataSet": [{"groupName": "p"}]},
    41: {"clientId": "c", "consumerGroup": "g", "mqSet": [QUEUE]},
    42: {"clientId": "c", "consumerGroup": "g", "mqSet": [QUEUE]},
    46: {"clientId": "c", "group": "g", "subscriptionData": SUBSCRIPTION},
    200: GROUP_CONFIG,
    225: {"groupConfigList": [GROUP_CONFIG]},
    18: {"topicConfigList": [TOPIC_CONFIG]},
}
NAMESRV_BODIES: dict[int, Any] = {
    REGISTER_BROKER: {
        "topicConfigSerializeWrapper": {"dataVersion": VERSION, "topicConfigTable": {"t": TOPIC_CONFIG}},
        "filterServerList": ["127.0.0.1:1"],
    },
    322: VERSION,
    217: {"queueDatas": [{"brokerName": "x", "perm": 6, "readQueueNums": 1, "writeQueueNums": 1, "topicSysFlag": 0}]},
}
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**31,
    2**63,
    10**400,
    1.5,
    -1e308,
    "",
    "text",
    "9" * 400,
    [],
    {},
    [[]],
    [None],
    {"a": {}},
)


def wrong(value: Any) -> Iterator[Any]:
    """The value with each of its parts replaced by each odd one, and with each member left out."""
    yield from ODD
    if isinstance(value, dict):
        for name, member in value.items():
            yield {other: kept for other, kept in value.items() if other != name}
            yield from ({**value, name: changed} for changed in wrong(member))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from ([*value[:index], changed, *value[index + 1 :]] for changed in wrong(item))


async def test_every_member_of_every_body_may_have_a_wrong_type(server: Server) -> None:
    bodies = BROKER_BODIES if server.kind == "broker" else NAMESRV_BODIES
    fields = {each.code: each.fields for each in samples(server)}
    async with server.client() as client:
        for code, body in bodies.items():
            for changed in wrong(body):
                data = json.dumps(changed).encode()
                assert_meant(await client.ask(code, fields[code], data), f"{code} with {data[:300]!r}")


def item(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


async def test_compressed_registrations_of_wrong_lengths(namesrv: Server) -> None:
    version = item(json.dumps(VERSION).encode())
    contents = {
        "nothing": b"",
        "no version": struct.pack(">i", 0),
        "negative length": struct.pack(">i", -1),
        "length of 2 GiB": struct.pack(">i", 2**31 - 1),
        "negative number of topics": version + struct.pack(">i", -5),
        "2 billion topics": version + struct.pack(">i", 2**31 - 1),
        "topic of wrong words": version + struct.pack(">i", 1) + item(b"a b c d e"),
        "topic not UTF-8": version + struct.pack(">i", 1) + item(b"\xff 1 1 6 SINGLE_TAG"),
        "topic of huge numbers": version + struct.pack(">i", 1) + item(b"t 99999999999 1 6 SINGLE_TAG"),
        "100 MB of zeros": bytes(100_000_000),
    }
    fields = REGISTRATION | {"brokerName": "other", "brokerAddr": "127.0.0.1:9", "compressed": "true"}
    async with namesrv.client() as client:
        for name, content in contents.items():
            answer = await client.ask(REGISTER_BROKER, fields, zlib.compress(content))
            assert answer.code == 1, name
            assert (answer.remark or "").startswith(("RegisterBrokerBody", "DataVersion")), answer
        for data in (b"not zlib", zlib.compress(b"x" * 1000)[:10]):
            assert (await client.ask(REGISTER_BROKER, fields, data)).code == 1


# ---- messages


async def test_bodies_above_the_limit(broker: Server) -> None:
    async with broker.client() as client:
        for code in (SEND_V2, SEND_BATCH):
            for size in (MESSAGE_LIMIT + 1, 3 * MESSAGE_LIMIT):
                answer = await client.ask(code, send_fields(), b"x" * size)
                assert answer.code == ILLEGAL_MESSAGE
                assert str(MESSAGE_LIMIT) in (answer.remark or "")
        assert (await client.ask(SEND_V2, send_fields(), b"x" * MESSAGE_LIMIT)).code == 0
        assert (await client.ask(SEND_V2, send_fields(), b"")).code == 0


async def test_malformed_properties_harm_nobody(broker: Server) -> None:
    odd = {
        "separators only": "\x01\x02" * 100,
        "no value": "KEYS",
        "no name": "\x01value\x02",
        "a name twice": "TAGS\x01a\x02TAGS\x01b",
        "zeros": "a\x01\x00\x02\x00\x01b",
        "many": "".join(f"k{number}\x01v\x02" for number in range(3000)),
        "many keys": "KEYS\x01" + "k " * 10_000,
        "numbers that are none": "DELAY\x01x\x02TRAN_MSG\x01x\x02RECONSUME_TIME\x01x\x02WAIT\x01x",
        "huge numbers": f"DELAY\x01{'9' * 300}\x02MAX_RECONSUME_TIMES\x01{'9' * 300}",
        "beyond the plane": "TAGS\x01\U0001f600\x02KEYS\x01\U0001f600",
    }
    async with broker.client() as client:
        assert (await client.ask(CREATE_TOPIC, TOPIC_FIELDS | {"topic": SAMPLE_TOPIC})).code == 0
        for number, (name, text) in enumerate(odd.items()):
            answer = await client.ask(SEND_V2, send_fields(SAMPLE_TOPIC, i=text), name.encode())
            assert_meant(answer, name)
            sent = await client.ask(SEND_V2, send_fields(SAMPLE_TOPIC, 1), b"next %d" % number)
            assert (sent.code, sent.fields["queueOffset"]) == (0, str(number))
        too_long = await client.ask(SEND_V2, send_fields(SAMPLE_TOPIC, i="a\x01" + "b" * 32_768))
        assert too_long.code == ILLEGAL_MESSAGE
        pulled = await client.ask(PULL, pull_fields(SAMPLE_TOPIC, 1))
        assert pulled.body.count(b"next ") == len(odd)


def batch_item(body: bytes = b"b", properties: bytes = b"", **wrong: int) -> bytes:
    body_length = wrong.get("body_length", len(body))
    properties_length = wrong.get("properties_length", len(properties))
    total = wrong.get("total", 22 + len(body) + len(properties))
    head = struct.pack(">iiiii", total, 0, 0, 0, body_length)
    return head + body + struct.pack(">h", properties_length) + properties


BROKEN_BATCHES: dict[str, bytes] = {
    "nothing": b"",
    "one byte": b"x",
    "a cut item": batch_item()[:-1],
    "a cut item after a good one": batch_item() + batch_item()[:10],
    "negative body": batch_item(body_length=-1),
    "lowest body": batch_item(body_length=-(2**31)),
    "body beyond the end": batch_item(body_length=100),
    "body of 2 GiB": batch_item(body_length=2**31 - 1),
    "negative properties": batch_item(properties_length=-1),
    "properties beyond the end": batch_item(properties_length=100),
    "properties that are not UTF-8": batch_item(properties=b"\xff\xfe\xfd"),
    "text": b"this is no batch at all, but it is long enough to be one",
    "zeros and a bit": bytes(45),
}


@pytest.mark.parametrize("code", [SEND_V2, SEND_BATCH])
async def test_malformed_batches_are_refused_whole(broker: Server, code: int) -> None:
    async with broker.client() as client:
        assert (await client.ask(CREATE_TOPIC, TOPIC_FIELDS | {"topic": SAMPLE_TOPIC})).code == 0
        for name, body in BROKEN_BATCHES.items():
            answer = await client.ask(code, send_fields(SAMPLE_TOPIC, m="true"), body)
            assert answer.code == ILLEGAL_MESSAGE, f"{name}: {answer}"
            assert "batch" in (answer.remark or ""), f"{name}: {answer}"
        good = await client.ask(code, send_fields(SAMPLE_TOPIC, m="true"), batch_item() + batch_item(b"c"))
        assert (good.code, good.fields["queueOffset"]) == (0, "0")


async def test_batches_that_would_take_far_more_than_they_bring_are_refused(broker: Server) -> None:
    async with broker.client() as client:
        for many, properties in ((MESSAGE_LIMIT // 22, ""), (1000, "a\x01" + "b" * 30_000)):
            answer = await client.ask(SEND_BATCH, send_fields(m="true", i=properties), batch_item(b"") * many)
            assert answer.code == ILLEGAL_MESSAGE
            assert str(many) in (answer.remark or "")
