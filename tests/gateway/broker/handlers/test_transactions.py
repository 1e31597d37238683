"""END_TRANSACTION and RESUME_CHECK_HALF_MESSAGE: what becomes of half messages."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from gateway.broker.delivery import Delivery
from gateway.broker.gauges import register_gauges
from gateway.broker.names import HALF_TOPIC, OP_HALF_TOPIC, TRANS_CHECK_MAX_TIME_TOPIC
from gateway.ha.progress import Replica
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command
from protocol.message import StoredMessage, parse_message_id
from protocol.requests.send import SendMessageReply
from protocol.requests.transactions import EndTransaction, ResumeCheckHalfMessage
from store.errors import ColdRead, StoreFull
from store.options import BrokerRole, FlushDiskType
from tests.gateway.broker.golden import VERSIONS, golden_records
from tests.gateway.broker.handlers.rig import Rig, samples
from tests.gateway.broker.producing import bodies, send, sent, stored

Make = Callable[..., Rig]

COMMIT, ROLLBACK, UNKNOWN = 8, 12, 0


async def half(rig: Rig, **arguments: Any) -> SendMessageReply:
    """Sends a half message of the group `p`."""
    return await sent(rig, sys_flag=4, TRAN_MSG="true", PGROUP="p", **arguments)


def decision(reply: SendMessageReply, verdict: int, **changes: Any) -> EndTransaction:
    """What the producer says of it."""
    fields: dict[str, Any] = {
        "producer_group": "p",
        "tran_state_table_offset": reply.queue_offset,
        "commit_log_offset": parse_message_id(reply.msg_id)[1],
        "commit_or_rollback": verdict,
        "msg_id": "u",
    }
    return EndTransaction(**fields | changes)


async def end(rig: Rig, reply: SendMessageReply, verdict: int, **changes: Any) -> Command:
    return await rig.ask(RequestCode.END_TRANSACTION, decision(reply, verdict, **changes))


async def test_a_half_message_is_seen_when_it_is_committed(rig: Rig) -> None:
    reply = await half(rig, queue_id=3, body=b"money", TAGS="a", KEYS="k", UNIQ_KEY="u")
    assert (reply.queue_id, reply.queue_offset) == (3, 0)
    assert bodies(rig, queue_id=3) == []
    (waiting,) = stored(rig, HALF_TOPIC)
    rig.tell(RequestCode.END_TRANSACTION, decision(reply, COMMIT))
    (record,) = stored(rig, queue_id=3)
    assert (record.body, record.sys_flag) == (b"money", COMMIT)
    assert record.prepared_transaction_offset == waiting.physical_offset
    assert record.properties == waiting.properties
    assert record.properties["REAL_TOPIC"] == "T"
    for field in ("flag", "born_timestamp", "born_host", "store_host", "reconsume_times"):
        assert getattr(record, field) == getattr(waiting, field), field
    assert len(rig.broker.store.query_keys("T", "k", 10, 0, 1 << 60).records) == 1
    (op,) = stored(rig, OP_HALF_TOPIC)
    assert (op.body, op.properties["TAGS"]) == (b"0", "d")
    assert rig.broker.half_messages.progress == 1


async def test_an_end_is_answered_when_the_slave_has_it(make_rig: Make) -> None:
    rig = make_rig(store={"broker_role": BrokerRole.SYNC_MASTER})
    reply = await half(rig, WAIT="false")
    assert rig.broker.replication.master is not None
    progress = rig.broker.replication.master.progress
    replica = Replica("broker-a-1", "10.0.0.7", rig.broker.store.end_offset, 1)
    progress.attach(replica)
    answers: list[Command] = []

    async def commit() -> None:
        answers.append(await end(rig, reply, COMMIT))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit)
        await trio.testing.wait_all_tasks_blocked()
        assert answers == []
        replica.sent = rig.broker.store.end_offset
        progress.reported(replica, replica.sent)
    assert [answer.code for answer in answers] == [ResponseCode.SUCCESS]


async def test_a_half_message_that_is_rolled_back_is_never_seen(rig: Rig) -> None:
    reply = await half(rig)
    assert (await end(rig, reply, ROLLBACK)).code == ResponseCode.SUCCESS
    assert bodies(rig) == []
    assert bodies(rig, OP_HALF_TOPIC) == [b"0"]
    assert rig.broker.half_messages.progress == 1


async def test_ends_are_counted_by_topic_and_undecided_ones_together(rig: Rig) -> None:
    register_gauges(rig.broker.metrics, rig.broker)
    replies = [await half(rig, topic="A"), await half(rig, topic="A"), await half(rig, topic="B")]
    replies += [await half(rig, topic="B"), await half(rig, topic="B")]
    assert samples(rig, "rocketmq_half_messages") == {(): 5}
    await end(rig, replies[1], COMMIT)
    await end(rig, replies[1], COMMIT)
    await end(rig, replies[2], ROLLBACK)
    await end(rig, replies[3], COMMIT)
    assert samples(rig, "rocketmq_commit_messages_total", "topic") == {("A",): 1, ("B",): 1}
    assert samples(rig, "rocketmq_rollback_messages_total", "topic") == {("B",): 1}
    assert samples(rig, "rocketmq_half_messages") == {(): 2}
    await end(rig, replies[0], ROLLBACK)
    assert samples(rig, "rocketmq_half_messages") == {(): 1}
    rig.broker.metrics.forget_topics({"B"})
    assert samples(rig, "rocketmq_commit_messages_total", "topic") == {("A",): 1}


async def test_not_knowing_yet_changes_nothing(rig: Rig) -> None:
    reply = await half(rig)
    log_end = rig.broker.store.end_offset
    for verdict in (UNKNOWN, 4, 99, -1):
        await end(rig, reply, verdict)
    assert rig.broker.store.end_offset == log_end


@pytest.mark.parametrize("verdicts", [(COMMIT, COMMIT), (COMMIT, ROLLBACK), (ROLLBACK, COMMIT)])
async def test_the_first_decision_holds(rig: Rig, verdicts: tuple[int, int]) -> None:
    await half(rig)  # undecided, so that nothing in front is done with
    reply = await half(rig)
    for verdict in verdicts:
        assert (await end(rig, reply, verdict)).code == ResponseCode.SUCCESS
    assert len(bodies(rig)) == (1 if verdicts[0] == COMMIT else 0)
    assert bodies(rig, OP_HALF_TOPIC) == [b"1"]


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"producer_group": "q"}, "The producer group wrong"),
        ({"tran_state_table_offset": 1}, "The transaction state table offset wrong"),
        ({"commit_log_offset": 1}, "Find prepared transaction message failed"),
        ({"commit_log_offset": -1}, "Find prepared transaction message failed"),
        ({"commit_log_offset": 1 << 40}, "Find prepared transaction message failed"),
    ],
)
async def test_decisions_about_something_else(rig: Rig, changes: dict[str, Any], remark: str) -> None:
    reply = await half(rig)
    answer = await end(rig, reply, COMMIT, **changes)
    assert (answer.code, answer.remark) == (ResponseCode.SYSTEM_ERROR, remark)
    assert bodies(rig) == []


async def test_only_half_messages_are_committed(rig: Rig) -> None:
    reply = await sent(rig, PGROUP="p", REAL_TOPIC="T", REAL_QID="0")
    answer = await end(rig, reply, COMMIT)
    assert answer.remark == "Find prepared transaction message failed"
    assert len(bodies(rig)) == 1


async def test_a_delayed_half_message_begins_its_delay_with_the_commit(rig: Rig) -> None:
    reply = await half(rig, DELAY="1")
    rig.clock.advance(60_000)
    await end(rig, reply, COMMIT)
    await Delivery(rig.broker).round()
    assert bodies(rig) == []
    rig.clock.advance(1000)
    await Delivery(rig.broker).round()
    (record,) = stored(rig)
    assert record.sys_flag == COMMIT


async def test_slave(make_rig: Make) -> None:
    reply = await half(make_rig())
    rig = make_rig(store={"broker_role": BrokerRole.SLAVE}, broker_id=1)
    assert (await end(rig, reply, COMMIT)).code == ResponseCode.SLAVE_NOT_AVAILABLE


async def test_full_disk(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be committed can be committed later."""
    reply = await half(rig)

    def full(*args: Any, **kwargs: Any) -> int:
        raise StoreFull("no space")

    with monkeypatch.context() as patch:
        patch.setattr(rig.broker.store, "append", full)
        assert (await end(rig, reply, COMMIT)).code == ResponseCode.SYSTEM_ERROR
    assert (await end(rig, reply, COMMIT)).code == ResponseCode.SUCCESS
    assert len(bodies(rig)) == 1


async def test_half_message_that_is_not_in_memory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = await half(rig)
    message_at = rig.broker.store.message_at

    def cold(offset: int, *, allow_cold: bool = True) -> StoredMessage | None:
        if not allow_cold:
            raise ColdRead
        return message_at(offset)

    monkeypatch.setattr(rig.broker.store, "message_at", cold)
    assert (await end(rig, reply, COMMIT)).code == ResponseCode.SUCCESS
    assert len(bodies(rig)) == 1
    answer = await end(rig, reply, COMMIT, producer_group="q")
    assert answer.remark == "The producer group wrong"


async def test_decision_that_overtakes_the_flush(make_rig: Make, nursery: trio.Nursery) -> None:
    """The producer need not wait for the flush of its half message; the commit does."""
    rig = make_rig(store={"flush_disk_type": FlushDiskType.SYNC_FLUSH})
    send(rig, sys_flag=4, TRAN_MSG="true", PGROUP="p", WAIT="false")
    reply = (await rig.tool.answers.receive()).typed_header(SendMessageReply)
    rig.tell(RequestCode.END_TRANSACTION, decision(reply, COMMIT))
    for _ in range(2):
        await trio.testing.wait_all_tasks_blocked()
        await rig.broker.storage.flush()
    assert len(bodies(rig)) == 1


# ---- half messages that were given up


async def resume(rig: Rig, message_id: str | None) -> Command:
    return await rig.ask(RequestCode.RESUME_CHECK_HALF_MESSAGE, ResumeCheckHalfMessage(msg_id=message_id))


async def test_resuming_counts_the_checks_anew(rig: Rig) -> None:
    await half(rig, TRANSACTION_CHECK_TIMES="15")
    (record,) = stored(rig, HALF_TOPIC)
    assert (await resume(rig, record.message_id)).code == ResponseCode.SUCCESS
    _, again = stored(rig, HALF_TOPIC)
    assert again.properties == record.properties | {"TRANSACTION_CHECK_TIMES": "0"}
    assert again.body == record.body


@pytest.mark.parametrize("message_id", [None, "", "xyz", "0" * 32, "F" * 32])
async def test_resuming_nothing(rig: Rig, message_id: str | None) -> None:
    answer = await resume(rig, message_id)
    assert (answer.code, answer.remark) == (
        ResponseCode.SYSTEM_ERROR,
        "Put message back to RMQ_SYS_TRANS_HALF_TOPIC failed.",
    )


async def test_other_messages_do_not_become_half_messages(rig: Rig) -> None:
    reply = await sent(rig)
    assert (await resume(rig, reply.msg_id)).code == ResponseCode.SYSTEM_ERROR
    assert stored(rig, HALF_TOPIC) == []
    assert stored(rig, TRANS_CHECK_MAX_TIME_TOPIC) == []


# ---- beside the official broker


def pick(half_message: StoredMessage, offset: int, *, allow_cold: bool = True) -> StoredMessage:
    """A store that holds one message."""
    assert offset == half_message.physical_offset
    return half_message


@pytest.mark.parametrize("version", VERSIONS)
async def test_official_commits(rig: Rig, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """From the half messages that an official broker committed, ours makes what that broker made."""
    records = golden_records(version)
    halves = {record.physical_offset: record for record in records if record.topic == HALF_TOPIC}
    commits = [record for record in records if record.prepared_transaction_offset]
    assert len(commits) == 2
    monkeypatch.setattr(type(rig.broker.store), "dispatched_offset", 1 << 60)
    for official in commits:
        waiting = halves[official.prepared_transaction_offset]
        monkeypatch.setattr(rig.broker.store, "message_at", partial(pick, waiting))
        request = EndTransaction(
            producer_group="golden-transactions",
            tran_state_table_offset=waiting.queue_offset,
            commit_log_offset=waiting.physical_offset,
            commit_or_rollback=COMMIT,
            msg_id="u",
        )
        before = len(stored(rig, "golden", official.queue_id))
        assert (await rig.ask(RequestCode.END_TRANSACTION, request)).code == ResponseCode.SUCCESS
        ours = stored(rig, "golden", official.queue_id)[before]
        assert ours.properties == official.properties
        for field in ("flag", "sys_flag", "body", "born_timestamp", "born_host", "store_host"):
            assert getattr(ours, field) == getattr(official, field), field
    ours_ops = stored(rig, OP_HALF_TOPIC)
    if version.startswith("4"):
        official_ops = [record for record in records if record.topic == OP_HALF_TOPIC]
        committed = {str(halves[record.prepared_transaction_offset].queue_offset).encode() for record in commits}
        expected = [(record.body, record.properties) for record in official_ops if record.body in committed]
        assert [(record.body, record.properties) for record in ours_ops] == expected
