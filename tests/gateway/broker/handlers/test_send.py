"""What one read of a socket brings to a master whose producers wait for a slave."""

from collections.abc import Callable
from functools import partial

import pytest
import trio

from gateway.broker.handlers.send import OVERLAPPED_REQUESTS
from gateway.broker.pulls import ParkedPull
from gateway.ha.progress import Replica
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command
from protocol.requests.send import SendMessageReply, SendMessageV2
from store.options import BrokerRole, FlushDiskType
from tests.gateway.broker.handlers.rig import Rig

Make = Callable[..., Rig]
SYNC_MASTER = {"broker_role": BrokerRole.SYNC_MASTER}
MANY = OVERLAPPED_REQUESTS + 1


def send(rig: Rig, count: int, properties: str = "", body: bytes = b"x") -> list[int]:
    """As if one read had brought so many requests; returns where the log ended after each append."""
    header = SendMessageV2(
        producer_group="p",
        topic="TopicTest",
        default_topic="TBW102",
        default_topic_queue_nums=1,
        queue_id=0,
        sys_flag=0,
        born_timestamp=rig.clock.ms,
        flag=0,
        properties=properties,
    )
    commands = [Command(RequestCode.SEND_MESSAGE_V2, number, header=header, body=body) for number in range(count)]
    ends: list[int] = []
    grew = rig.broker.store.log_grew

    def note(end: int) -> None:
        ends.append(end)
        grew(end)

    rig.broker.store.log_grew = note
    handler = rig.router.batch_handler(RequestCode.SEND_MESSAGE_V2)
    assert handler is not None
    rig.router.run_batch(handler, rig.tool, commands)  # type: ignore[arg-type]
    rig.broker.store.log_grew = grew
    return ends


def answered(rig: Rig) -> list[Command]:
    """The answers that have left."""
    answers = []
    while True:
        try:
            answers.append(rig.tool.answers.receive_nowait())
        except trio.WouldBlock:
            return answers


def linked(rig: Rig) -> Replica:
    """A slave that has everything."""
    end = rig.broker.store.end_offset
    replica = Replica("broker-a-1", "10.0.0.7", end, 1)
    assert rig.broker.replication.master is not None
    rig.broker.replication.master.progress.attach(replica)
    return replica


def acknowledge(rig: Rig, replica: Replica, offset: int) -> None:
    assert rig.broker.replication.master is not None
    replica.sent = rig.broker.store.end_offset
    rig.broker.replication.master.progress.reported(replica, offset)


def offsets(answers: list[Command]) -> list[int]:
    assert {answer.code for answer in answers} == {ResponseCode.SUCCESS}
    assert [answer.opaque for answer in answers] == list(range(len(answers)))
    return [answer.typed_header(SendMessageReply).queue_offset for answer in answers]


async def test_a_new_limit_of_bodies_counts_for_the_next_send(make_rig: Make) -> None:
    rig = make_rig()
    send(rig, 1, body=b"x" * 1001)
    rig.broker.store_options.change({"maxMessageSize": "1000"})
    send(rig, 1, body=b"x" * 1001)
    send(rig, 1, body=b"x" * 1000)
    codes = [answer.code for answer in answered(rig)]
    assert codes == [ResponseCode.SUCCESS, ResponseCode.MESSAGE_ILLEGAL, ResponseCode.SUCCESS]


@pytest.mark.parametrize(
    ("role", "count", "appends"),
    [
        (BrokerRole.SYNC_MASTER, OVERLAPPED_REQUESTS - 1, 1),
        (BrokerRole.SYNC_MASTER, MANY, 2),
        (BrokerRole.ASYNC_MASTER, MANY, 1),
    ],
)
async def test_a_large_read_becomes_two_appends_where_a_slave_can_use_the_first(
    make_rig: Make, role: BrokerRole, count: int, appends: int
) -> None:
    rig = make_rig(store={"broker_role": role})
    replica = linked(rig)
    assert len(send(rig, count)) == appends
    acknowledge(rig, replica, rig.broker.store.end_offset)
    assert offsets(answered(rig)) == list(range(count))


async def test_each_half_is_answered_when_the_slave_has_it(make_rig: Make) -> None:
    rig = make_rig(store=SYNC_MASTER)
    replica = linked(rig)
    first, second = send(rig, MANY)
    assert answered(rig) == []
    acknowledge(rig, replica, first - 1)
    assert answered(rig) == []
    acknowledge(rig, replica, first)
    half = answered(rig)
    assert len(half) == MANY // 2 + 1
    acknowledge(rig, replica, second)
    assert offsets(half + answered(rig)) == list(range(MANY))
    assert rig.tool.waiting == 0


async def test_a_report_that_arrives_meanwhile_is_answered_before_the_work_is_done(make_rig: Make) -> None:
    rig = make_rig(store=SYNC_MASTER)
    replica = linked(rig)
    assert rig.broker.replication.master is not None
    progress = rig.broker.replication.master.progress
    progress.hear = lambda: acknowledge(rig, replica, rig.broker.store.end_offset)
    send(rig, MANY)
    assert offsets(answered(rig)) == list(range(MANY))


async def test_producers_whose_slave_is_quick_do_not_wait_for_the_queues(make_rig: Make) -> None:
    rig = make_rig(store=SYNC_MASTER)
    replica = linked(rig)
    store = rig.broker.store
    assert rig.broker.replication.master is not None
    rig.broker.replication.master.progress.hear = lambda: acknowledge(rig, replica, store.end_offset)
    events: list[tuple[str, int]] = []

    def note(event: str) -> None:
        events.append((event, store.max_offset("TopicTest", 0)))

    rig.tool.post_now = lambda *buffers: note("answered")  # type: ignore[method-assign]
    pull = ParkedPull(rig.tool, ("TopicTest", 0), None, trio.current_time() + 15, partial(note, "arrived"))  # type: ignore[arg-type]
    assert rig.broker.pulls.park(pull)
    send(rig, 3)
    assert events == [("answered", 0), ("arrived", 3)]


@pytest.mark.parametrize("flush", list(FlushDiskType))
async def test_what_waits_for_a_slave_is_visible_without_it(make_rig: Make, flush: FlushDiskType) -> None:
    rig = make_rig(store=SYNC_MASTER | {"flush_disk_type": flush})
    linked(rig)
    send(rig, 3)
    assert rig.broker.store.max_offset("TopicTest", 0) == (3 if flush is FlushDiskType.ASYNC_FLUSH else 0)
    await rig.broker.storage.flush()
    assert rig.broker.store.max_offset("TopicTest", 0) == 3
    assert answered(rig) == []


@pytest.mark.parametrize("text", ["false", "FALSE", "0"])
async def test_what_does_not_wait_is_answered_at_once_among_what_does(make_rig: Make, text: str) -> None:
    rig = make_rig(store=SYNC_MASTER)
    replica = linked(rig)
    send(rig, 3, f"WAIT\x01{text}")
    assert offsets(answered(rig)) == [0, 1, 2]
    send(rig, 3)
    assert answered(rig) == []
    acknowledge(rig, replica, rig.broker.store.end_offset)
    assert offsets(answered(rig)) == [3, 4, 5]
