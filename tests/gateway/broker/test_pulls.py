"""Parked pulls: woken by their message, by their deadline, or dropped with their connection."""

from typing import Any, NamedTuple

import pytest

from gateway.broker import pulls as pulls_module
from gateway.broker.pulls import ParkedPull, ParkedPulls


class Message(NamedTuple):
    topic: str
    queue_id: int
    tags_code: int = 0


class FakeConnection:
    def __init__(self) -> None:
        self.closed = False
        self.callbacks: list[Any] = []

    def on_close(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def end(self) -> None:
        self.closed = True
        for callback in self.callbacks:
            callback(self)


class Bench:
    """A table, and which of the parked pulls have run again."""

    def __init__(self) -> None:
        self.pulls = ParkedPulls()
        self.resumed: list[str] = []
        self.connection: Any = FakeConnection()

    def park(self, name: str, queue: int = 0, deadline: float = 10, matches: Any = None) -> bool:
        resume = lambda: self.resumed.append(name)  # noqa: E731 - the shortest way to say it
        return self.pulls.park(ParkedPull(self.connection, ("t", queue), matches, deadline, resume))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_message_wakes_the_pulls_of_its_queue_once(bench: Bench) -> None:
    bench.park("a", queue=0)
    bench.park("b", queue=1)
    bench.park("c", queue=0)
    bench.pulls.arrived([Message("t", 0), Message("t", 0), Message("other", 1)])
    assert bench.resumed == ["a", "c"]
    assert len(bench.pulls) == 1


def test_message_that_the_filter_refuses_wakes_nobody(bench: Bench) -> None:
    bench.park("a", matches={5}.__contains__)
    bench.pulls.arrived([Message("t", 0, 4)])
    assert bench.resumed == []
    bench.pulls.arrived([Message("t", 0, 5)])
    assert bench.resumed == ["a"]


def test_deadline_wakes_in_order(bench: Bench) -> None:
    bench.park("late", deadline=20)
    bench.park("soon", deadline=10)
    bench.pulls.expire(9)
    assert bench.resumed == []
    bench.pulls.expire(10)
    assert bench.resumed == ["soon"]
    bench.pulls.expire(30)
    assert bench.resumed == ["soon", "late"]
    assert len(bench.pulls) == 0


def test_woken_pull_does_not_wake_again_at_its_deadline(bench: Bench) -> None:
    bench.park("a", deadline=10)
    bench.pulls.arrived([Message("t", 0)])
    bench.pulls.expire(11)
    assert bench.resumed == ["a"]


def test_pull_may_park_anew_while_it_is_woken(bench: Bench) -> None:
    def resume() -> None:
        bench.resumed.append("first")
        bench.park("second")

    bench.pulls.park(ParkedPull(bench.connection, ("t", 0), None, 10, resume))
    bench.pulls.arrived([Message("t", 0)])
    assert bench.resumed == ["first"]
    assert len(bench.pulls) == 1


def test_pulls_end_with_their_connection(bench: Bench) -> None:
    bench.park("a")
    bench.park("b", queue=1)
    bench.connection.end()
    assert len(bench.pulls) == 0
    bench.pulls.arrived([Message("t", 0)])
    bench.pulls.expire(100)
    assert bench.resumed == []
    assert not bench.park("c"), "a closed connection parks nothing"


def test_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls_module, "MAX_PARKED", 2)
    assert [bench.park(name) for name in "abc"] == [True, True, False]
    bench.pulls.arrived([Message("t", 0)])
    assert bench.park("d")


def test_limit_of_one_queue_on_one_connection(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls_module, "MAX_PARKED_OF_QUEUE", 2)
    assert [bench.park(name) for name in "abc"] == [True, True, False]
    assert bench.park("d", queue=1)
    other = Bench()
    bench.connection = other.connection
    assert bench.park("e")
    bench.pulls.arrived([Message("t", 0)])
    assert [bench.park(name) for name in "fgh"] == [True, True, False]


def test_limit_of_one_connection(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls_module, "MAX_PARKED_OF_CONNECTION", 2)
    assert [bench.park("a", queue=queue) for queue in range(3)] == [True, True, False]
    bench.connection.end()
    bench.connection = FakeConnection()
    assert bench.park("b")


def test_many_deadlines_at_once_are_met_in_steps(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls_module, "EXPIRE_STEP", 2)
    for name in "abc":
        bench.park(name)
    assert bench.pulls.expire(10)
    assert bench.resumed == ["a", "b"]
    assert not bench.pulls.expire(10)
    assert bench.resumed == ["a", "b", "c"]


def test_answered_pulls_leave_no_trace(bench: Bench) -> None:
    for _ in range(5000):
        bench.park("a")
        bench.pulls.arrived([Message("t", 0)])
    assert len(bench.pulls._deadlines) <= pulls_module.MIN_DEADLINES + 1
    assert bench.pulls._by_queue == {}
