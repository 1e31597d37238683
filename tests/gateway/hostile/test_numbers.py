"""Negative and huge queue ids, offsets, counts and times: refused or answered sensibly, never by an accident."""

from collections.abc import Iterator
from itertools import product

import pytest

from tests.gateway.hostile.rig import (
    CREATE_TOPIC,
    PULL,
    SEND_V2,
    TOPIC_FIELDS,
    Client,
    Received,
    Server,
    pull_fields,
    send_fields,
)
from tests.gateway.hostile.samples import SAMPLE_TOPIC, Sample, samples

EXTREMES = (-(2**63), -(2**31), -1, 0, 1, 2**31 - 1, 2**31, 2**63 - 1)
COMMIT, QUERY_OFFSET, SEARCH, MAX_OFFSET, MIN_OFFSET, VIEW, EARLIEST = 15, 14, 29, 30, 31, 33, 32


async def with_messages(client: Client, count: int = 5) -> None:
    assert (await client.ask(CREATE_TOPIC, TOPIC_FIELDS | {"topic": SAMPLE_TOPIC})).code == 0
    for number in range(count):
        assert (await client.ask(SEND_V2, send_fields(SAMPLE_TOPIC), b"sample %d" % number)).code == 0


def extremes(each: Sample) -> Iterator[dict[str, str]]:
    """The sample's fields with each number at each extreme, and with all of them there."""
    numbers = [field.name for field in each.declared if field.kind is int]
    for name, value in product(numbers, EXTREMES):
        yield each.fields | {name: str(value)}
    for value in EXTREMES:
        yield each.fields | dict.fromkeys(numbers, str(value))


def assert_meant(answer: Received, what: str) -> None:
    """An answer that somebody thought of: not the text of an exception."""
    assert answer.code == 0 or answer.remark, f"{what}: {answer}"
    assert "Error:" not in (answer.remark or ""), f"{what}: {answer}"


async def test_every_number_at_its_extremes(server: Server) -> None:
    async with server.client() as client:
        if server.kind == "broker":
            await with_messages(client)
        for each in samples(server):
            for fields in extremes(each):
                assert_meant(await client.ask(each.code, fields), f"{each} {fields}")


@pytest.mark.parametrize("offset", [-(2**63), -1, 6, 2**31, 2**62, 2**63 - 1])
async def test_pulls_outside_the_queue_are_told_where_to_go_on(broker: Server, offset: int) -> None:
    async with broker.client() as client:
        await with_messages(client)
        for count in (-(2**31), -1, 0, 1, 2**31 - 1):
            fields = pull_fields(SAMPLE_TOPIC, offset=offset, maxMsgNums=count, suspendTimeoutMillis=0)
            answer = await client.ask(PULL, fields)
            assert answer.code == 21
            assert 0 <= int(answer.fields["nextBeginOffset"]) <= 5
            assert (answer.fields["minOffset"], answer.fields["maxOffset"]) == ("0", "5")
            assert answer.body == b""


@pytest.mark.parametrize("count", [-(2**31), -1, 0, 1, 2**31 - 1])
async def test_pulls_of_odd_counts_bring_whole_messages_or_none(broker: Server, count: int) -> None:
    async with broker.client() as client:
        await with_messages(client)
        for most in (-(2**31), -1, 0, 1, 2**31 - 1):
            fields = pull_fields(SAMPLE_TOPIC, maxMsgNums=count, maxMsgBytes=most, suspendTimeoutMillis=2**63 - 1)
            answer = await client.ask(PULL, fields)
            assert answer.code == 0
            assert 1 <= int(answer.fields["nextBeginOffset"]) <= 5


@pytest.mark.parametrize("queue_id", [-(2**31), -1, 4, 1000, 2**31 - 1])
async def test_queues_that_do_not_exist(broker: Server, queue_id: int) -> None:
    async with broker.client() as client:
        await with_messages(client)
        before = broker.names_on_disk()
        assert (await client.ask(PULL, pull_fields(SAMPLE_TOPIC, queue_id))).code == 1
        for code in (MAX_OFFSET, MIN_OFFSET):
            answer = await client.ask(code, {"topic": SAMPLE_TOPIC, "queueId": queue_id})
            assert (answer.code, answer.fields) == (0, {"offset": "0"})
        answer = await client.ask(SEARCH, {"topic": SAMPLE_TOPIC, "queueId": queue_id, "timestamp": 2**63 - 1})
        assert (answer.code, answer.fields) == (0, {"offset": "0"})
        answer = await client.ask(EARLIEST, {"topic": SAMPLE_TOPIC, "queueId": queue_id})
        assert (answer.code, answer.fields) == (0, {"timestamp": "-1"})
        if queue_id >= 0:  # below it the broker chooses
            assert (await client.ask(SEND_V2, send_fields(SAMPLE_TOPIC, queue_id))).code == 1
        commit = {"consumerGroup": "g", "topic": SAMPLE_TOPIC, "queueId": queue_id, "commitOffset": 3}
        assert (await client.ask(COMMIT, commit)).code == 1
        assert (await client.ask(QUERY_OFFSET, commit | {"setZeroIfNotFound": "false"})).code == 22
        assert broker.names_on_disk() == before


async def test_commits_beyond_the_queue_are_kept_within_it(broker: Server) -> None:
    async with broker.client() as client:
        await with_messages(client)
        place = {"consumerGroup": "g", "topic": SAMPLE_TOPIC, "queueId": 0}
        for offset, code, kept in ((3, 0, "3"), (-1, 1, "3"), (-(2**63), 1, "3"), (6, 0, "5"), (2**63 - 1, 0, "5")):
            assert (await client.ask(COMMIT, place | {"commitOffset": offset})).code == code, offset
            assert (await client.ask(QUERY_OFFSET, place)).fields == {"offset": kept}
            assert (await client.ask(COMMIT, place | {"commitOffset": 3})).code == 0
        for offset in (-1, -(2**63), 2**63 - 1):
            pull = pull_fields(SAMPLE_TOPIC, consumerGroup="g", sysFlag=5, commitOffset=offset)
            assert_meant(await client.ask(PULL, pull), f"pull with {offset}")
            assert int((await client.ask(QUERY_OFFSET, place)).fields["offset"]) in range(6)


async def test_messages_are_viewed_only_where_one_begins(broker: Server) -> None:
    async with broker.client() as client:
        await with_messages(client, count=2)
        for offset in (-(2**63), -1, 1, 4, 50, 2**31, 2**63 - 1):
            answer = await client.ask(VIEW, {"offset": offset})
            assert (answer.code, answer.body) == (1, b""), offset
        assert (await client.ask(VIEW, {"offset": 0})).code == 0


@pytest.mark.parametrize("sys_flag", [-(2**31), -1, 0x4, 0x8, 0xC, 0x10, 0x20, 0x30, 0x301, 2**31 - 1])
async def test_any_flags_of_a_send_leave_a_log_that_can_be_read(broker: Server, sys_flag: int) -> None:
    async with broker.client() as client:
        await with_messages(client, count=1)
        sent = await client.ask(SEND_V2, send_fields(SAMPLE_TOPIC, f=sys_flag, h=-(2**31), g=-(2**63), j=-1), b"odd")
        assert sent.code == 0
        assert (await client.ask(SEND_V2, send_fields(SAMPLE_TOPIC), b"even")).code == 0
        offset = int(sent.fields["msgId"][16:], 16)
        viewed = await client.ask(VIEW, {"offset": offset})
        assert b"odd" in viewed.body
        born_at = 48
        assert viewed.body[born_at : born_at + 4] == bytes((127, 0, 0, 1))
        stored_at = born_at + 16
        assert viewed.body[stored_at : stored_at + 4] == bytes((127, 0, 0, 1))
        pulled = await client.ask(PULL, pull_fields(SAMPLE_TOPIC))
        assert b"even" in pulled.body
