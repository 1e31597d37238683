"""Joining: every way in which two logs may stand to each other, with a master of our own make and an official one."""

from collections.abc import Callable

import pytest
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from gateway.client import CallFailed
from gateway.ha import joining
from gateway.ha.history import MAX_CHECK_BYTES, Parting
from gateway.ha.joining import Joiner, JoinRefused, Plan, TryLater, parting
from gateway.ha.link import SlaveLink
from gateway.ha.progress import Replica
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command, response
from protocol.requests.replication import QueryReplication
from tests.gateway.ha.fakes import (
    DeadClient,
    DirectClient,
    MemoryLog,
    MemoryStorage,
    OfficialClient,
    make_joiner,
    make_master,
    message,
    messages,
    options,
)

OTHER_TIME = 1_700_000_000_001
DATA = messages(0, 10_000)


def to_own(master: MemoryLog, slave: MemoryLog, **changes: object) -> Joiner:
    return make_joiner(DirectClient(make_master(master)[0]), slave, **changes)


def to_official(master: MemoryLog, slave: MemoryLog, **changes: object) -> Joiner:
    return make_joiner(OfficialClient(master), slave, **changes)


both_makes = pytest.mark.parametrize("to", [to_own, to_official], ids=["own", "official"])


def parted(at: int, end: int) -> bytes:
    """DATA up to a message's begin at or behind `at`, and other messages from there on."""
    begin = 0
    while begin < at:
        begin += int.from_bytes(DATA[begin : begin + 4], "big")
    return DATA[:begin] + messages(begin, end, store_timestamp=OTHER_TIME)


@both_makes
async def test_a_slave_whose_log_is_a_part_of_the_masters_goes_on_at_its_end(to: Callable[..., Joiner]) -> None:
    plan = await to(MemoryLog(DATA), MemoryLog(DATA[:5000])).join()
    assert plan.begin_offset == 5000
    assert (plan.first_report < 0) == plan.own_make


@both_makes
async def test_a_slave_that_has_everything_goes_on_at_the_end(to: Callable[..., Joiner]) -> None:
    assert (await to(MemoryLog(DATA), MemoryLog(DATA)).join()).begin_offset == len(DATA)


@both_makes
async def test_a_slave_with_another_end_is_refused(to: Callable[..., Joiner]) -> None:
    log = MemoryLog(parted(6000, 8000))
    with pytest.raises(JoinRefused, match=f"bytes before offset {log.end_offset} are not the master's"):
        await to(MemoryLog(DATA), log).join()


async def test_a_slave_whose_broker_id_another_one_has_is_told_so() -> None:
    master, _ = make_master(MemoryLog(DATA))
    first = Replica("broker-a-1", "10.0.0.7", len(DATA), 1, address="other:10911")
    link = SlaveLink(trio.testing.memory_stream_pair()[0], MemoryStorage(MemoryLog(DATA)), master.progress, options())
    master._attach(link, first)
    told = (
        "brokerId 1 is that of the slave at other:10911, which is linked;"
        " give the one at slave:10911 a brokerId of its own"
    )
    with pytest.raises(JoinRefused, match=f"^{told}$"):
        await make_joiner(DirectClient(master), MemoryLog(DATA[:5000])).join()


@both_makes
async def test_a_slave_that_is_ahead_is_refused_with_both_offsets(to: Callable[..., Joiner]) -> None:
    with pytest.raises(JoinRefused, match=r"slave's log ends at 9000, the master's at 8000.*1000 bytes"):
        await to(MemoryLog(DATA[:8000]), MemoryLog(DATA[:9000])).join()


@both_makes
async def test_a_slave_that_was_away_too_long_is_told_what_to_do(to: Callable[..., Joiner]) -> None:
    master = MemoryLog(DATA)
    master.forget_below(8192)
    with pytest.raises(JoinRefused, match=r"ends at 5000.*oldest byte is 8192.*haSyncWholeLog"):
        await to(master, MemoryLog(DATA[:5000])).join()


@both_makes
@pytest.mark.parametrize("change", [{"cluster": "other"}, {"broker": "other"}, {"file_size": 8192}])
async def test_a_slave_of_another_broker_is_refused_even_if_it_is_empty(
    to: Callable[..., Joiner], change: dict[str, object]
) -> None:
    with pytest.raises(JoinRefused):
        await to(MemoryLog(DATA), MemoryLog(), **change).join()


@both_makes
async def test_histories_are_compared_where_both_have_them(to: Callable[..., Joiner]) -> None:
    master = MemoryLog(DATA)
    master.forget_below(4096)
    assert (await to(master, MemoryLog(DATA[:5000])).join()).begin_offset == 5000
    slave = MemoryLog(parted(4300, 6000))
    with pytest.raises(JoinRefused, match="not the master's"):
        await to(master, slave).join()


@both_makes
async def test_an_empty_slave_of_an_empty_master_joins(to: Callable[..., Joiner]) -> None:
    plan = await to(MemoryLog(), MemoryLog(), whole_log=True).join()
    assert plan.begin_offset in (None, 0)


async def test_an_empty_slave_gets_the_last_file_or_all() -> None:
    assert (await to_own(MemoryLog(DATA), MemoryLog()).join()).begin_offset == 8192
    assert (await to_own(MemoryLog(DATA), MemoryLog(), whole_log=True).join()).begin_offset == 0


async def test_an_official_master_sends_the_last_file_to_who_has_nothing() -> None:
    assert await to_official(MemoryLog(DATA), MemoryLog()).join() == Plan(0, None, False)


async def test_the_whole_log_of_an_official_master_that_begins_above_0() -> None:
    master = MemoryLog(DATA)
    master.forget_below(4096)
    assert await to_official(master, MemoryLog(), whole_log=True).join() == Plan(4096, 4096, False)


async def test_the_whole_log_of_an_official_master_that_begins_at_0() -> None:
    slave = MemoryLog()
    first = len(message(0))
    assert await to_official(MemoryLog(DATA), slave, whole_log=True).join() == Plan(first, first, False)
    assert slave.data == DATA[:first]


async def test_an_official_master_that_does_not_give_its_first_message_is_asked_again() -> None:
    client = OfficialClient(MemoryLog(DATA))
    client.refuses = {RequestCode.VIEW_MESSAGE_BY_ID: ResponseCode.SYSTEM_ERROR}
    slave = MemoryLog()
    with pytest.raises(TryLater, match="first message"):
        await make_joiner(client, slave, whole_log=True).join()
    assert not slave.data


async def test_a_log_that_ends_inside_a_message_is_compared_as_far_as_it_goes() -> None:
    cut = len(DATA) - 3
    assert (await to_official(MemoryLog(DATA), MemoryLog(DATA[:cut])).join()).begin_offset == cut


@pytest.mark.parametrize("code", [RequestCode.GET_BROKER_CONFIG, RequestCode.VIEW_MESSAGE_BY_ID])
@pytest.mark.parametrize(
    ("answer", "remark"),
    [(ResponseCode.NO_PERMISSION, "no"), (ResponseCode.SYSTEM_ERROR, "org.apache.rocketmq.acl.common.AclException")],
)
async def test_a_master_that_may_not_tell_is_followed_unproved(
    code: RequestCode, answer: ResponseCode, remark: str
) -> None:
    client = OfficialClient(MemoryLog(DATA))
    client.refuses = {code: answer}
    client.remark = remark
    assert await make_joiner(client, MemoryLog(DATA[:5000])).join() == Plan(5000, 5000, False)


@pytest.mark.parametrize("code", [RequestCode.GET_BROKER_CONFIG, RequestCode.GET_BROKER_RUNTIME_INFO])
async def test_a_master_that_cannot_tell_yet_is_asked_again(code: RequestCode) -> None:
    client = OfficialClient(MemoryLog(DATA))
    client.refuses = {code: ResponseCode.SYSTEM_ERROR}
    with pytest.raises(TryLater):
        await make_joiner(client, MemoryLog(DATA[:5000])).join()
    client.refuses = {}
    del client.config["mappedFileSizeCommitLog"]
    with pytest.raises(TryLater, match="mappedFileSizeCommitLog"):
        await make_joiner(client, MemoryLog(DATA[:5000])).join()


async def test_a_dead_master_is_tried_later() -> None:
    with pytest.raises(TryLater, match="connection refused"):
        await make_joiner(DeadClient(), MemoryLog()).join()


def first_difference(slave: bytes, master: bytes = DATA) -> int:
    return next(at for at, (ours, theirs) in enumerate(zip(slave, master, strict=False)) if ours != theirs)


@pytest.mark.parametrize("step", [64, 1024, joining.STEP_BYTES])
@pytest.mark.parametrize("at", [0, 2500, 6000])
async def test_the_place_where_histories_part_is_named(monkeypatch: pytest.MonkeyPatch, step: int, at: int) -> None:
    monkeypatch.setattr(joining, "STEP_BYTES", step)
    slave = parted(at, 8000)
    with pytest.raises(JoinRefused, match=f"equal up to offset {first_difference(slave)}\\."):
        await to_own(MemoryLog(DATA), MemoryLog(slave)).join()


async def test_equal_bodies_behind_the_place_do_not_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "STEP_BYTES", 64)
    body = bytes(3000)
    head = messages(0, 9000, body=body)
    slave = head + messages(len(head), 40_000, body=body, store_timestamp=OTHER_TIME)
    master = messages(0, 50_000, body=body)
    with pytest.raises(JoinRefused, match=f"equal up to offset {first_difference(slave, master)}\\."):
        await to_own(MemoryLog(master), MemoryLog(slave)).join()


async def test_a_slave_that_is_ahead_and_differs_is_told_so() -> None:
    slave = parted(2500, 9000)
    with pytest.raises(JoinRefused, match=f"different masters.* equal up to offset {first_difference(slave)}\\."):
        await to_own(MemoryLog(DATA[:8000]), MemoryLog(slave)).join()
    with pytest.raises(JoinRefused, match=r"1000 bytes that the master lacks.* equal up to offset 8000\."):
        await to_own(MemoryLog(DATA[:8000]), MemoryLog(DATA[:9000])).join()


async def test_a_place_that_may_lie_below_what_both_have_is_not_called_exact() -> None:
    master = MemoryLog(DATA)
    master.forget_below(4096)
    slave = parted(2500, 8000)
    latest = 4096 + first_difference(slave[4096:], DATA[4096:])
    with pytest.raises(JoinRefused, match=f"They part between offset 0 and {latest}\\."):
        await to_own(master, MemoryLog(slave)).join()


async def test_without_an_answer_the_masters_reason_stands() -> None:
    class Tired(DirectClient):
        async def call(self, command: Command, timeout: float) -> Command:
            if isinstance(command.header, QueryReplication) and command.header.length:
                return response(command, ResponseCode.SYSTEM_BUSY)
            return await super().call(command, timeout)

    joiner = make_joiner(Tired(make_master(MemoryLog(DATA))[0]), MemoryLog(parted(6000, 8000)))
    with pytest.raises(JoinRefused, match=r"different masters\. Keep"):
        await joiner.join()


async def ask(low: int, high: int, parts_at: int, answers: int = 64) -> Parting:
    """`parting` of two logs that differ from `parts_at` on, with a master that gives up after some answers."""

    async def same(equal: int, until: int) -> bool:
        nonlocal answers
        assert low <= equal < until <= high
        assert equal <= parts_at
        answers -= 1
        if answers < 0:
            raise CallFailed("gone")
        return until <= parts_at

    return await parting(low, high, same)


@given(st.integers(0, 50), st.integers(0, 1 << 40), st.data())
async def test_the_parting_is_found_to_the_byte(low: int, length: int, data: st.DataObject) -> None:
    high = low + length
    parts_at = data.draw(st.integers(low, high))
    assert await ask(low, high, parts_at) == (parts_at, parts_at)
    earliest, latest = await ask(low, high, parts_at, answers=data.draw(st.integers(0, 20)))
    assert earliest <= parts_at <= latest


@pytest.mark.parametrize(
    ("offset", "length"), [(len(DATA) - 10, 11), (-1, 5), (0, -1), (0, MAX_CHECK_BYTES + 1)]
)
async def test_an_offset_the_master_does_not_hold_is_not_compared(offset: int, length: int) -> None:
    client = DirectClient(make_master(MemoryLog(DATA))[0])
    header = QueryReplication(offset=offset, length=length)
    answer = await client.call(Command(header.code, header=header), 1)
    assert answer.code == ResponseCode.SYSTEM_BUSY
