"""Which half messages are decided, and what is to be done with the others."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.broker import transactions
from gateway.broker.transactions import HalfMessages, Limits, Verdict, check_times, decided_offsets, judge
from protocol.message import StoredMessage
from tests.gateway.broker.golden import VERSIONS, golden_records

SECOND = 1000
NOW = 1_700_000_000_000
LIMITS = Limits(time_out_ms=6 * SECOND, check_max=15, reserved_ms=72 * 3600 * SECOND)


def test_progress_follows_decisions_in_any_order() -> None:
    halves = HalfMessages()
    halves.decided(0, [1])
    halves.decided(1, [2])
    assert (halves.progress, halves.op_progress, len(halves)) == (0, 0, 2)
    assert [halves.is_decided(offset) for offset in range(4)] == [False, True, True, False]
    halves.decided(2, [0])
    assert (halves.progress, halves.op_progress, len(halves)) == (3, 3, 0)


def test_an_undecided_one_that_is_passed_lets_the_others_go() -> None:
    halves = HalfMessages()
    halves.decided(0, [1])
    halves.passed(1)
    assert (halves.progress, halves.op_progress) == (2, 1)


def test_a_decision_is_one_about_the_repetition_too() -> None:
    halves = HalfMessages()
    halves.repeated(0, 7)
    halves.passed(1)
    halves.repeated(7, 9)
    assert (halves.latest(0), halves.latest(7), halves.latest(9)) == (9, 9, 9)
    assert not halves.is_decided(0)
    halves.decided(0, [9])
    assert halves.is_decided(0)
    assert halves.is_decided(7)
    halves.passed(10)
    assert halves.is_decided(0)


def test_what_was_given_up_can_still_be_decided() -> None:
    halves = HalfMessages()
    halves.repeated(0, 1)
    halves.given_up(1)
    halves.passed(2)
    assert not halves.is_decided(0)
    assert halves.latest(0) == -1
    halves.decided(0, [0])
    assert halves.is_decided(0)
    assert halves.op_progress == 1


def test_memory_of_repetitions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "MAX_REMEMBERED", 3)
    halves = HalfMessages(progress=100)
    for offset in range(5):
        halves.repeated(offset, 200 + offset)
        halves.decided(offset, [offset])
    assert [halves.latest(offset) for offset in range(5)] == [0, 1, 202, 203, 204]
    assert [halves.is_decided(offset) for offset in range(5)] == [False, False, True, True, True]


def test_a_crowd_behind_one() -> None:
    halves = HalfMessages()
    seen = []
    halves.decided(0, range(1, transactions.CROWD + 1))
    seen.append(halves.is_crowded)
    halves.decided(1, [transactions.CROWD + 1])
    seen.append(halves.is_crowded)
    halves.passed(1)
    seen.append(halves.is_crowded)
    assert seen == [False, True, False]


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_random_decisions_leave_nothing_behind(seed: int) -> None:
    chance = random.Random(seed)
    halves = HalfMessages()
    offsets = list(range(50))
    chance.shuffle(offsets)
    decided: set[int] = set()
    for op_offset, offset in enumerate(offsets):
        halves.decided(op_offset, [offset])
        decided.add(offset)
        expected = next(number for number in range(51) if number not in decided)
        assert halves.progress == expected
        assert all(halves.is_decided(number) for number in decided if number >= expected)
    assert (halves.progress, halves.op_progress, len(halves)) == (50, 50, 0)


def op_message(body: bytes, properties: bytes = b"TAGS\x01d") -> StoredMessage:
    (record, *_) = golden_records("4.9.4")
    record.body, record.properties_data = body, properties
    return record


def test_op_messages() -> None:
    assert decided_offsets(op_message(b"17")) == (17,)
    assert decided_offsets(op_message(b"17,18,")) == (17, 18)
    assert decided_offsets(op_message(b"17", b"TAGS\x01x")) == ()
    assert decided_offsets(op_message(b"-1,x,\xff," + b"9" * 5000)) == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_official_op_messages(version: str) -> None:
    records = [record for record in golden_records(version) if record.topic == "RMQ_SYS_TRANS_OP_HALF_TOPIC"]
    assert len([offset for record in records for offset in decided_offsets(record)]) == 3


def half(age_s: float, stored_s_ago: float | None = None) -> StoredMessage:
    (record, *_) = golden_records("4.9.4")
    record.born_timestamp = NOW - round(age_s * SECOND)
    record.store_timestamp = NOW - round((age_s if stored_s_ago is None else stored_s_ago) * SECOND)
    return record


@pytest.mark.parametrize(
    ("age_s", "properties", "verdict"),
    [
        (5.999, {}, Verdict.WAIT),
        (6, {}, Verdict.ASK),
        (6, {"TRANSACTION_CHECK_TIMES": "14"}, Verdict.ASK),
        (6, {"TRANSACTION_CHECK_TIMES": "15"}, Verdict.GIVE_UP),
        (1, {"TRANSACTION_CHECK_TIMES": "15"}, Verdict.GIVE_UP),
        (72 * 3600, {}, Verdict.ASK),
        (72 * 3600 + 1, {}, Verdict.GIVE_UP),
        (29, {"CHECK_IMMUNITY_TIME_IN_SECONDS": "30"}, Verdict.POSTPONE),
        (30, {"CHECK_IMMUNITY_TIME_IN_SECONDS": "30"}, Verdict.ASK),
        (3, {"CHECK_IMMUNITY_TIME_IN_SECONDS": "2"}, Verdict.ASK),
        (5, {"CHECK_IMMUNITY_TIME_IN_SECONDS": "-1"}, Verdict.POSTPONE),
        (5, {"CHECK_IMMUNITY_TIME_IN_SECONDS": "soon"}, Verdict.POSTPONE),
        (7, {"CHECK_IMMUNITY_TIME_IN_SECONDS": "9" * 99}, Verdict.ASK),
    ],
)
def test_verdicts(age_s: float, properties: dict[str, str], verdict: Verdict) -> None:
    assert judge(half(age_s), properties, NOW, NOW, LIMITS) is verdict


def test_clocks_that_differ() -> None:
    """A producer whose clock is ahead is asked at once, as official brokers do."""
    assert judge(half(-60, stored_s_ago=1), {}, NOW, NOW, LIMITS) is Verdict.ASK


def test_what_came_during_the_round_is_the_next_ones() -> None:
    assert judge(half(60, stored_s_ago=0), {}, NOW, NOW, LIMITS) is Verdict.WAIT
    assert judge(half(60, stored_s_ago=0.001), {}, NOW, NOW, LIMITS) is Verdict.ASK


def test_check_times() -> None:
    assert [check_times({"TRANSACTION_CHECK_TIMES": text}) for text in ("3", "x", "", "9" * 5000)] == [3, 0, 0, 0]
    assert check_times({}) == 0
