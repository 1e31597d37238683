"""Queue locks of orderly consumers."""

import pytest

from gateway.broker import locks
from gateway.broker.locks import LockTable
from protocol.bodies import MessageQueue
from tests.gateway.broker.fakes import Clock


def queue(queue_id: int, topic: str = "T") -> MessageQueue:
    return MessageQueue(broker_name="broker-a", queue_id=queue_id, topic=topic)


def test_the_first_client_gets_the_lock_and_others_do_not() -> None:
    table = LockTable(Clock())
    assert table.lock("g", "one", [queue(0), queue(1)]) == [queue(0), queue(1)]
    assert table.lock("g", "two", [queue(1), queue(2)]) == [queue(2)]
    assert table.lock("other group", "two", [queue(1)]) == [queue(1)]


def test_locking_again_renews() -> None:
    clock = Clock()
    table = LockTable(clock)
    table.lock("g", "one", [queue(0)])
    clock.advance(59_000)
    assert table.lock("g", "one", [queue(0)]) == [queue(0)]
    clock.advance(59_000)
    assert table.lock("g", "two", [queue(0)]) == []


def test_a_lock_ends_after_60_seconds() -> None:
    clock = Clock()
    table = LockTable(clock)
    table.lock("g", "one", [queue(0)])
    clock.advance(60_000)
    assert table.lock("g", "two", [queue(0)]) == []
    clock.advance(1)
    assert table.lock("g", "two", [queue(0)]) == [queue(0)]
    assert table.lock("g", "one", [queue(0)]) == []


def test_unlocking_frees_own_locks_only() -> None:
    table = LockTable(Clock())
    table.lock("g", "one", [queue(0)])
    table.unlock("g", "two", [queue(0)])
    table.unlock("unknown", "one", [queue(0)])
    assert table.lock("g", "two", [queue(0)]) == []
    table.unlock("g", "one", [queue(0), queue(9)])
    assert table.lock("g", "two", [queue(0)]) == [queue(0)]


def test_expired_locks_are_forgotten() -> None:
    clock = Clock()
    table = LockTable(clock)
    table.lock("g", "one", [queue(0), queue(1)])
    clock.advance(30_000)
    table.lock("g", "one", [queue(1)])
    clock.advance(31_000)
    assert table.expire() == 1
    assert len(table) == 1
    clock.advance(60_001)
    assert table.expire() == 1
    assert len(table) == 0


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "MAX_LOCKS", 3)
    table = LockTable(Clock())
    assert table.lock("g", "one", [queue(i) for i in range(5)]) == [queue(0), queue(1), queue(2)]
    assert table.lock("h", "one", [queue(9)]) == []
    assert table.lock("g", "one", [queue(0)]) == [queue(0)]
    table.unlock("g", "one", [queue(0)])
    assert table.lock("h", "one", [queue(9), queue(9)]) == [queue(9)]
    assert len(table) == 3
