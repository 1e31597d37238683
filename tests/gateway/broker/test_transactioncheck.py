"""Rounds of checks: who is asked, who is given up, and how far they have come."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
import trio.testing

from gateway.broker import offsets, transactions
from gateway.broker.names import HALF_TOPIC, OP_HALF_TOPIC, TRANS_CHECK_MAX_TIME_TOPIC, TRANSACTION_GROUP
from gateway.broker.transactioncheck import TransactionCheck
from gateway.broker.transactions import HalfMessages
from gateway.routing import Refused
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command
from protocol.message import decode_record
from protocol.requests.transactions import CheckTransactionState, EndTransaction
from store.errors import StoreFull
from tests.gateway.broker.golden import golden_records, golden_request
from tests.gateway.broker.handlers.rig import FakeConnection, Rig
from tests.gateway.broker.handlers.test_transactions import COMMIT, ROLLBACK, end, half
from tests.gateway.broker.producing import bodies, stored

Make = Callable[..., Rig]

TIME_OUT_MS = 6000


def producer(rig: Rig, group: str = "p") -> FakeConnection:
    """A producer that has sent its heartbeat."""
    connection = rig.connect()
    rig.broker.clients.heartbeat(connection, "client", 0, 401, [], [group])
    return connection


def questions(connection: FakeConnection) -> list[tuple[CheckTransactionState, Command]]:
    """What the producer was asked."""
    asked = [command for command in connection.notices if command.code == RequestCode.CHECK_TRANSACTION_STATE]
    return [(command.typed_header(CheckTransactionState), command) for command in asked]


async def answer(rig: Rig, question: CheckTransactionState, verdict: int) -> None:
    """The producer's END_TRANSACTION about what it was asked."""
    header = EndTransaction(
        producer_group="p",
        tran_state_table_offset=question.tran_state_table_offset,
        commit_log_offset=question.commit_log_offset,
        commit_or_rollback=verdict,
        msg_id=question.msg_id or "",
        from_transaction_check=True,
    )
    assert (await rig.ask(RequestCode.END_TRANSACTION, header)).code == ResponseCode.SUCCESS


def progress(rig: Rig) -> tuple[int, int]:
    """What the offset table knows of half and op queue."""
    query = rig.broker.offsets.query
    return query(TRANSACTION_GROUP, HALF_TOPIC, 0), query(TRANSACTION_GROUP, OP_HALF_TOPIC, 0)


async def test_an_undecided_half_message_is_asked_about(rig: Rig) -> None:
    connection = producer(rig)
    reply = await half(rig, queue_id=2, body=b"money", UNIQ_KEY="u", TAGS="a")
    check = TransactionCheck(rig.broker)
    rig.clock.advance(TIME_OUT_MS - 6)  # the rig's producer was 5 ms older than its message
    await check.round()
    assert questions(connection) == []
    rig.clock.advance(1)
    await check.round()
    ((header, command),) = questions(connection)
    first, again = stored(rig, HALF_TOPIC)
    assert again.properties == first.properties | {"TRANSACTION_CHECK_TIMES": "1"}
    assert (header.tran_state_table_offset, header.commit_log_offset) == (1, again.physical_offset)
    assert (header.msg_id, header.transaction_id, header.offset_msg_id) == ("u", "u", again.message_id)
    asked = decode_record(command.body)
    assert (asked.topic, asked.queue_id, asked.body, asked.properties) == ("T", 2, b"money", again.properties)
    assert reply.queue_offset == 0
    await answer(rig, header, COMMIT)
    (record,) = stored(rig, queue_id=2)
    assert record.prepared_transaction_offset == again.physical_offset
    assert rig.broker.half_messages.progress == 2
    rig.clock.advance(60_000)
    await check.round()
    assert len(questions(connection)) == 1


async def test_decisions_that_are_late_are_not_made_twice(rig: Rig) -> None:
    """The first END_TRANSACTION was lost or slow: it and the answer to the check are one decision."""
    for first, second in (("original", "repetition"), ("repetition", "original")):
        rig.broker.pulls.expire(0)
        connection = producer(rig)
        before = len(bodies(rig))
        reply = await half(rig)
        check = TransactionCheck(rig.broker)
        for _ in range(2):
            rig.clock.advance(60_000)
            await check.round()
        header, _ = questions(connection)[-1]
        for which in (first, second):
            if which == "original":
                await end(rig, reply, COMMIT)
            else:
                await answer(rig, header, COMMIT)
        assert len(bodies(rig)) == before + 1
        rig.broker.clients.disconnect(connection)
        rig.clock.advance(60_000)
        await check.round()
        assert rig.broker.half_messages.progress == rig.broker.store.max_offset(HALF_TOPIC, 0)


async def test_nobody_is_there_to_be_asked(rig: Rig) -> None:
    """The check counts, as official does."""
    await half(rig)
    rig.clock.advance(TIME_OUT_MS)
    await TransactionCheck(rig.broker).round()
    assert [record.properties.get("TRANSACTION_CHECK_TIMES") for record in stored(rig, HALF_TOPIC)] == [None, "1"]


async def test_what_was_asked_too_often_is_put_aside(make_rig: Make) -> None:
    rig = make_rig(transaction_check_max=2)
    connection = producer(rig)
    reply = await half(rig, body=b"money")
    check = TransactionCheck(rig.broker)
    for _ in range(5):
        rig.clock.advance(60_000)
        await check.round()
    assert len(questions(connection)) == 2
    (record,) = stored(rig, TRANS_CHECK_MAX_TIME_TOPIC)
    assert (record.body, record.properties["TRANSACTION_CHECK_TIMES"]) == (b"money", "2")
    assert rig.broker.topics.get(TRANS_CHECK_MAX_TIME_TOPIC).write_queue_nums == 1  # type: ignore[union-attr]
    assert rig.broker.half_messages.progress == 3
    await end(rig, reply, COMMIT)  # its producer may still decide
    assert bodies(rig) == [b"money"]


async def test_a_round_ends_at_the_first_that_is_too_young(rig: Rig) -> None:
    connection = producer(rig)
    await half(rig)
    rig.clock.advance(TIME_OUT_MS)
    await half(rig)
    await TransactionCheck(rig.broker).round()
    assert len(questions(connection)) == 1
    assert rig.broker.half_messages.progress == 1


async def test_decided_ones_are_passed_over(rig: Rig) -> None:
    connection = producer(rig)
    replies = [await half(rig) for _ in range(100)]
    for number, reply in enumerate(replies):
        if number not in (0, 50, 99):
            await end(rig, reply, ROLLBACK)
    rig.clock.advance(TIME_OUT_MS)
    await TransactionCheck(rig.broker).round()
    assert len(questions(connection)) == 3
    assert rig.broker.half_messages.progress == 100
    assert len(rig.broker.half_messages) == 0


async def test_a_producer_that_wants_more_time(rig: Rig) -> None:
    connection = producer(rig)
    reply = await half(rig, CHECK_IMMUNITY_TIME_IN_SECONDS="150")
    check = TransactionCheck(rig.broker)
    for _ in range(2):
        rig.clock.advance(60_000)
        await check.round()
    assert questions(connection) == []
    *_, latest = stored(rig, HALF_TOPIC)
    assert latest.properties["TRAN_PREPARED_QUEUE_OFFSET"] == "0"
    assert "TRANSACTION_CHECK_TIMES" not in latest.properties
    rig.clock.advance(60_000)
    await check.round()
    assert len(questions(connection)) == 1
    await end(rig, reply, COMMIT)
    rig.clock.advance(60_000)
    await check.round()
    assert len(questions(connection)) == 1
    assert len(bodies(rig)) == 1


async def test_decided_before_a_restart_under_its_first_offset(make_rig: Make) -> None:
    """The mark of the first offset tells that the repetition is decided, too."""
    rig = make_rig()
    reply = await half(rig, CHECK_IMMUNITY_TIME_IN_SECONDS="600")
    rig.clock.advance(60_000)
    await TransactionCheck(rig.broker).round()
    connection = producer(rig)
    rig.broker = replace(rig.broker, half_messages=HalfMessages(progress=1))  # repetitions are forgotten
    rig.router._state = rig.broker
    await end(rig, reply, COMMIT)
    rig.clock.advance(60_000)
    await TransactionCheck(rig.broker).round()
    assert len(stored(rig, HALF_TOPIC)) == 2
    assert questions(connection) == []


async def test_a_half_message_for_no_topic_is_given_up(rig: Rig) -> None:
    connection = producer(rig)
    await half(rig)
    (record,) = stored(rig, HALF_TOPIC)
    (message,) = rig.store_messages(HALF_TOPIC, 0, 1)
    rig.clock.advance(TIME_OUT_MS)
    await TransactionCheck(rig.broker).round()
    assert len(questions(connection)) == 1
    assert [each.body for each in stored(rig, TRANS_CHECK_MAX_TIME_TOPIC)] == [message.body]
    assert record.body == b"x"


async def test_no_room_for_the_mark_of_a_check(rig: Rig) -> None:
    connection = producer(rig)
    await half(rig, long="v")
    (record,) = stored(rig, HALF_TOPIC)
    await half(rig, long="v" * (32767 - len(record.properties_data)))
    rig.clock.advance(TIME_OUT_MS)
    await TransactionCheck(rig.broker).round()
    assert len(questions(connection)) == 1
    assert len(stored(rig, TRANS_CHECK_MAX_TIME_TOPIC)) == 1


# ---- restarts


async def test_what_was_decided_is_known_after_a_restart(make_rig: Make) -> None:
    rig = make_rig()
    replies = [await half(rig) for _ in range(70)]
    for reply in replies[1:-1]:
        await end(rig, reply, ROLLBACK)
    rig = make_rig()
    connection = producer(rig)
    check = TransactionCheck(rig.broker)
    await check.recall()
    rig.clock.advance(TIME_OUT_MS)
    await check.round()
    assert len(questions(connection)) == 2


async def test_progress_is_kept_when_it_is_safe(make_rig: Make, nursery: trio.Nursery) -> None:
    """If power is lost, an undecided half message is still to be found, in its place or repeated."""
    rig = make_rig()
    await half(rig)
    rig.clock.advance(TIME_OUT_MS)
    check = TransactionCheck(rig.broker)
    await check.round()
    nursery.start_soon(check.note_progress)
    await trio.testing.wait_all_tasks_blocked()
    assert progress(rig) == (-1, -1)
    await rig.broker.storage.flush()
    await trio.testing.wait_all_tasks_blocked()
    assert progress(rig) == (1, 0)
    rig.broker.offsets.file.save_if_dirty()
    rig = make_rig()
    again = TransactionCheck(rig.broker)
    await again.recall()
    assert (rig.broker.half_messages.progress, rig.broker.half_messages.op_progress) == (1, 0)


async def test_progress_is_kept_in_a_full_offset_table(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "MAX_ENTRIES", 1)
    rig.broker.offsets.commit("g", "T", 0, 1, ceiling=1)
    await half(rig)
    check = TransactionCheck(rig.broker)
    await check.recall()
    await rig.broker.storage.flush()
    await check.note_progress()
    assert progress(rig) == (0, 0)


async def test_progress_outside_the_queues_is_corrected(rig: Rig) -> None:
    await half(rig)
    rig.broker.offsets.commit(TRANSACTION_GROUP, HALF_TOPIC, 0, 50, ceiling=50)
    rig.broker.offsets.commit(TRANSACTION_GROUP, OP_HALF_TOPIC, 0, 50, ceiling=50)
    await TransactionCheck(rig.broker).recall()
    assert (rig.broker.half_messages.progress, rig.broker.half_messages.op_progress) == (1, 0)


# ---- the service as it runs


@pytest.mark.parametrize("error", [StoreFull("no space"), Refused(ResponseCode.SYSTEM_BUSY, "too many topics")])
async def test_rounds_come_by_the_interval(
    rig: Rig,
    nursery: trio.Nursery,
    mock_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    check = TransactionCheck(rig.broker)
    rounds: list[float] = []

    async def full() -> None:
        rounds.append(round(trio.current_time()))
        raise error  # ends a round, not the service

    monkeypatch.setattr(check, "round", full)
    nursery.start_soon(check.run)
    for _ in range(130):
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1)
    await trio.testing.wait_all_tasks_blocked()
    assert rounds == [60, 120]
    monkeypatch.setattr(transactions, "CROWD", 0)
    rig.broker.half_messages.decided(5, [5])
    for _ in range(6):
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1)
    await trio.testing.wait_all_tasks_blocked()
    assert len(rounds) > 2


# ---- beside the official broker


@pytest.mark.parametrize("folder", ["4.8.0-json", "4.9.4-json", "4.9.4-rocketmq"])
async def test_official_questions(rig: Rig, folder: str) -> None:
    """Asked about the half message that an official broker asked about, ours says the same."""
    official = golden_request(folder, "check-transaction-state")
    wanted = decode_record(official.body)
    connection = producer(rig, "golden-transactions")
    version = folder.partition("-")[0]
    waiting = next(
        record for record in golden_records(version) if record.topic == HALF_TOPIC and record.body == b"unknown"
    )
    rig.clock.ms = waiting.store_timestamp + TIME_OUT_MS + 10_000
    check = TransactionCheck(rig.broker)
    limits = transactions.Limits(TIME_OUT_MS, 15, 72 * 3_600_000)
    check._treat(waiting, rig.clock.ms, limits)
    ((header, command),) = questions(connection)
    asked = decode_record(command.body)
    if version == folder.removesuffix("-json"):  # both were recorded in one life of that broker
        assert header.msg_id == official.fields["msgId"]
        assert asked.properties | {"WAIT": "false"} == wanted.properties
        for field in ("body", "born_timestamp", "born_host", "store_timestamp", "queue_id", "flag", "sys_flag"):
            assert getattr(asked, field) == getattr(wanted, field), field
    assert command.fields.keys() == official.fields.keys()
    assert asked.topic == wanted.topic
