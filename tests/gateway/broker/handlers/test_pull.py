"""Pulls: what is answered, who waits, and which broker is suggested for the next one."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from protocol import bodies
from protocol.codes import (
    PULL_COMMIT_OFFSET,
    PULL_SUBSCRIPTION,
    PULL_SUSPEND,
    RequestCode,
    ResponseCode,
)
from protocol.command import Command
from protocol.message import decode_record
from protocol.requests.pull import PullMessage
from store.files import FileSystem
from store.options import BrokerRole
from tests.gateway.broker.handlers.rig import Rig

Make = Callable[..., Rig]

MASTER = {"broker_role": BrokerRole.ASYNC_MASTER}
SLAVE = {"broker_role": BrokerRole.SLAVE}
TOPIC = "T"


def with_topic(rig: Rig, count: int = 5, **group: Any) -> Rig:
    """Queue 0 of the topic gets messages, queue 1 none; the group `g` its settings."""
    rig.broker.topics.update([bodies.TopicConfig(topic_name=TOPIC, read_queue_nums=2, write_queue_nums=2)])
    rig.broker.groups.update([bodies.SubscriptionGroupConfig(group_name="g", **group)])
    rig.store_messages(TOPIC, 0, count)
    return rig


async def pull(rig: Rig, offset: int = 0, **fields: Any) -> Command:
    """One pull of everything in queue 0 from `offset` on, answered at once."""
    return await rig.ask(RequestCode.PULL_MESSAGE, request(offset, **fields))


def request(offset: int, **fields: Any) -> PullMessage:
    defaults = {
        "consumer_group": "g",
        "topic": TOPIC,
        "queue_id": 0,
        "queue_offset": offset,
        "max_msg_nums": 32,
        "sys_flag": PULL_SUBSCRIPTION,
        "commit_offset": 0,
        "suspend_timeout_millis": 15_000,
        "sub_version": 0,
        "subscription": "*",
    }
    return PullMessage(**{**defaults, **fields})


def suggested(answer: Command) -> int:
    return int(answer.fields["suggestWhichBrokerId"])


def next_offset(answer: Command) -> int:
    return int(answer.fields["nextBeginOffset"])


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which ten percent of the memory hold two of our messages and a bit."""
    monkeypatch.setattr(FileSystem, "physical_memory", lambda self: 10 * 280)


# ---- which broker is suggested: slow or not, switched on or not, what the group says

GROUP = {"broker_id": 7, "which_broker_when_consume_slowly": 9}


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("store", [MASTER, SLAVE], ids=["master", "slave"])
@pytest.mark.parametrize(
    ("reads_slaves", "max_msg_nums", "ratio", "expected"),
    [
        pytest.param(True, 1, 10, 9, id="far behind"),
        pytest.param(True, 2, 10, 9, id="the message after the last is just out of memory"),
        pytest.param(True, 3, 10, 7, id="the message after the last is in memory"),
        pytest.param(True, 1, 100, 7, id="all messages are in memory"),
        pytest.param(True, 5, 0, 9, id="nothing counts as in memory"),
        pytest.param(False, 1, 10, 0, id="switched off"),
        pytest.param(False, 5, 10, 0, id="switched off, caught up"),
    ],
)
async def test_suggestion(
    make_rig: Make, store: dict[str, Any], reads_slaves: bool, max_msg_nums: int, ratio: int, expected: int
) -> None:
    """The distance from the last message that was looked at, taken or not, to the end of the log decides."""
    make_messages(make_rig)
    store = {**store, "access_message_in_memory_max_ratio": ratio}
    rig = make_rig(store=store, slave_read_enable=reads_slaves)
    with_topic(rig, 0, **GROUP)
    answer = await pull(rig, max_msg_nums=max_msg_nums)
    assert answer.code == ResponseCode.SUCCESS
    assert next_offset(answer) == max_msg_nums
    assert suggested(answer) == expected


def make_messages(make_rig: Make) -> None:
    """Leaves five messages of 98 bytes in the directory that the next broker opens."""
    messages = with_topic(make_rig()).broker.store.get(TOPIC, 0, 0, 5)
    assert messages.size == 5 * 98


@pytest.mark.usefixtures("small_memory")
async def test_messages_of_others_count_as_distance(make_rig: Make) -> None:
    """It is the log that memory holds, not one queue of it."""
    rig = make_rig(store={"access_message_in_memory_max_ratio": 10}, slave_read_enable=True)
    with_topic(rig, 1, **GROUP)
    assert suggested(await pull(rig)) == 7
    rig.store_messages(TOPIC, 1, 5)
    assert suggested(await pull(rig)) == 9


@pytest.mark.usefixtures("small_memory")
async def test_a_filter_that_lets_nothing_through_leaves_the_consumer_slow(make_rig: Make) -> None:
    """What was examined counts, not what was found."""
    rig = make_rig(store={"access_message_in_memory_max_ratio": 0}, slave_read_enable=True)
    with_topic(rig, **GROUP)
    answer = await pull(rig, subscription="other")
    assert answer.code == ResponseCode.PULL_RETRY_IMMEDIATELY
    assert (suggested(answer), next_offset(answer)) == (9, 5)


@pytest.mark.usefixtures("small_memory")
async def test_a_consumer_at_the_end_goes_back(make_rig: Make) -> None:
    rig = make_rig(store={**SLAVE, "access_message_in_memory_max_ratio": 0}, slave_read_enable=True)
    with_topic(rig, **GROUP)
    assert suggested(await pull(rig, 4)) == 9
    answer = await pull(rig, 5)
    assert answer.code == ResponseCode.PULL_NOT_FOUND
    assert suggested(answer) == 7


async def test_defaults_send_to_the_first_slave_and_back_to_the_master(make_rig: Make) -> None:
    """A group that nobody has set up names broker 1 for slow reading, 0 otherwise."""
    rig = make_rig(store={"access_message_in_memory_max_ratio": 0}, slave_read_enable=True)
    with_topic(rig)
    assert suggested(await pull(rig)) == 1
    assert suggested(await pull(rig, 5)) == 0


# ---- offsets that are not there, by role

TOO_SMALL = (0, "OFFSET_TOO_SMALL", 3)
TOO_LARGE = (99, "OFFSET_OVERFLOW_BADLY", 5)


def with_deleted_beginning(rig: Rig) -> Rig:
    """Queue 0 holds the offsets 3 and 4 only."""
    with_topic(rig, **GROUP)
    queue = rig.broker.store._queues.queue(TOPIC, 0)
    assert queue is not None
    third = queue.unit(3)
    assert third is not None
    queue.correct_min(third[0])
    assert rig.broker.store.min_offset(TOPIC, 0) == 3
    return rig


@pytest.mark.parametrize(("offset", "remark", "corrected"), [TOO_SMALL, TOO_LARGE])
@pytest.mark.parametrize("reads_slaves", [False, True])
async def test_a_master_corrects_the_offset(
    make_rig: Make, offset: int, remark: str, corrected: int, reads_slaves: bool
) -> None:
    rig = with_deleted_beginning(make_rig(slave_read_enable=reads_slaves))
    answer = await pull(rig, offset)
    assert (answer.code, answer.remark) == (ResponseCode.PULL_OFFSET_MOVED, remark)
    assert next_offset(answer) == corrected
    assert suggested(answer) == (7 if reads_slaves else 0)


@pytest.mark.parametrize(("offset", "remark"), [TOO_SMALL[:2], TOO_LARGE[:2]])
@pytest.mark.parametrize("reads_slaves", [False, True])
async def test_a_slave_sends_the_consumer_to_the_groups_broker(
    make_rig: Make, offset: int, remark: str, reads_slaves: bool
) -> None:
    """It may lack what the master has, so it corrects nothing, whatever slaveReadEnable says."""
    rig = with_deleted_beginning(make_rig(store=SLAVE, slave_read_enable=reads_slaves))
    answer = await pull(rig, offset)
    assert (answer.code, answer.remark) == (ResponseCode.PULL_RETRY_IMMEDIATELY, remark)
    assert (next_offset(answer), suggested(answer)) == (offset, 7)


@pytest.mark.parametrize(("offset", "remark", "corrected"), [TOO_SMALL, TOO_LARGE])
async def test_a_slave_that_checks_offsets_corrects_them(
    make_rig: Make, offset: int, remark: str, corrected: int
) -> None:
    rig = with_deleted_beginning(make_rig(store={**SLAVE, "offset_check_in_slave": True}))
    end = rig.broker.store.end_offset
    answer = await pull(rig, offset)
    assert (answer.code, answer.remark) == (ResponseCode.PULL_OFFSET_MOVED, remark)
    assert (next_offset(answer), suggested(answer)) == (corrected, 0)
    assert rig.broker.store.end_offset == end, "a slave's log is its master's to write"


@pytest.mark.parametrize("store", [MASTER, SLAVE], ids=["master", "slave"])
async def test_an_empty_queue(make_rig: Make, store: dict[str, Any]) -> None:
    """From 0 on it has nothing yet; any other offset is not there."""
    rig = with_topic(make_rig(store=store), **GROUP)
    answer = await pull(rig, 0, queue_id=1)
    assert (answer.code, next_offset(answer), suggested(answer)) == (ResponseCode.PULL_NOT_FOUND, 0, 0)
    answer = await pull(rig, 3, queue_id=1)
    if store is MASTER:
        assert (answer.code, next_offset(answer), suggested(answer)) == (ResponseCode.PULL_OFFSET_MOVED, 0, 0)
    else:
        assert (answer.code, next_offset(answer), suggested(answer)) == (ResponseCode.PULL_RETRY_IMMEDIATELY, 3, 7)


async def test_a_slave_without_its_master_lets_nobody_spin(
    make_rig: Make, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """A consumer that is ahead of what was replicated would come back at once, again and again."""
    rig = with_topic(make_rig(store=SLAVE), **GROUP)
    nursery.start_soon(rig.broker.pulls.expire_forever)
    started = trio.current_time()
    answer = await pull(rig, 99, sys_flag=PULL_SUBSCRIPTION | PULL_SUSPEND)
    assert answer.code == ResponseCode.PULL_RETRY_IMMEDIATELY
    assert suggested(answer) == 7
    assert 0.9 < trio.current_time() - started < 2


async def test_a_slave_with_its_master_sends_there_at_once(make_rig: Make) -> None:
    rig = with_topic(make_rig(store=SLAVE), **GROUP)
    rig.broker.replication.locator.linked = True
    answer = await pull(rig, 99, sys_flag=PULL_SUBSCRIPTION | PULL_SUSPEND)
    assert answer.code == ResponseCode.PULL_RETRY_IMMEDIATELY
    assert len(rig.broker.pulls) == 0


async def test_a_slave_whose_log_is_not_its_masters_gives_nothing(make_rig: Make) -> None:
    rig = with_topic(make_rig(store=SLAVE), **GROUP)
    rig.broker.replication.locator.refused = True
    assert (await pull(rig, 0)).code == ResponseCode.SYSTEM_BUSY
    rig.broker.replication.locator.refused = False
    assert (await pull(rig, 0)).code != ResponseCode.SYSTEM_BUSY


# ---- the event of a moved offset


async def test_a_master_notes_a_moved_offset_as_official_does(make_rig: Make) -> None:
    rig = with_topic(make_rig())
    await pull(rig, 99)
    found = rig.broker.store.get("OFFSET_MOVED_EVENT", 0, 0, 32)
    (data,) = found.data
    event = decode_record(bytes(data))
    assert event.body == (
        b'{"consumerGroup":"g","messageQueue":{"brokerName":"broker-a","queueId":0,"topic":"T"},'
        b'"offsetNew":5,"offsetRequest":99}'
    )
    assert event.properties_data == b"KEYS\x01g\x02DELAY\x010\x02TAGS\x01g"
    assert event.born_host == event.store_host == rig.broker.incoming.store_host


async def test_one_event_a_second_for_each_queue_of_a_group(make_rig: Make, mock_clock: MockClock) -> None:
    rig = with_topic(make_rig())

    def noted() -> int:
        return rig.broker.store.max_offset("OFFSET_MOVED_EVENT", 0)

    for _ in range(3):
        await pull(rig, 99)
    assert noted() == 1
    await pull(rig, 99, queue_id=1)
    await pull(rig, 99, consumer_group="h")
    assert noted() == 3
    mock_clock.jump(1.01)
    await pull(rig, 99)
    assert noted() == 4


# ---- waiting


def begin_waiting(rig: Rig) -> None:
    """A pull at the end of queue 0 that may be parked."""
    header = request(5, sys_flag=PULL_SUBSCRIPTION | PULL_SUSPEND)
    fields = Command(RequestCode.PULL_MESSAGE, header=header).fields
    rig.router.run(rig.tool, Command(RequestCode.PULL_MESSAGE, 1, fields=fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("polling", "seconds"), [({}, 15), ({"long_polling_enable": False, "short_polling_time_mills": 2000}, 2)]
)
async def test_a_pull_at_the_end_waits(
    make_rig: Make, autojump_clock: MockClock, nursery: trio.Nursery, polling: dict[str, Any], seconds: float
) -> None:
    rig = with_topic(make_rig(**polling))
    nursery.start_soon(rig.broker.pulls.expire_forever)
    started = trio.current_time()
    begin_waiting(rig)
    with trio.fail_after(100):
        answer = await rig.tool.answers.receive()
    assert answer.code == ResponseCode.PULL_NOT_FOUND
    assert seconds <= trio.current_time() - started < seconds + 1


async def test_a_message_ends_the_wait(make_rig: Make) -> None:
    rig = with_topic(make_rig())
    begin_waiting(rig)
    assert len(rig.broker.pulls) == 1
    rig.broker.pulls.arrived(rig.store_messages(TOPIC, 0, 1))
    with trio.fail_after(5):
        answer = await rig.tool.answers.receive()
    assert (answer.code, next_offset(answer)) == (ResponseCode.SUCCESS, 6)


# ---- committing on the way


@pytest.mark.parametrize(("store", "committed"), [(MASTER, 3), (SLAVE, -1)], ids=["master", "slave"])
async def test_only_a_master_takes_an_offset_from_a_pull(make_rig: Make, store: dict[str, Any], committed: int) -> None:
    """A slave's copy of the offsets comes from its master."""
    rig = with_topic(make_rig(store=store))
    await pull(rig, 3, sys_flag=PULL_SUBSCRIPTION | PULL_COMMIT_OFFSET, commit_offset=3)
    assert rig.broker.offsets.query("g", TOPIC, 0) == committed
