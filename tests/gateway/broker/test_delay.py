"""What is put aside, and how far delivery is: the table and its official file."""

import json
from pathlib import Path

import pytest
import trio
import trio.testing

from gateway.broker import delay
from gateway.broker.delay import DelayTable
from gateway.routing import Refused
from protocol.codes import ResponseCode
from store.dispatch import DelayLevels

GOLDEN = Path(__file__).parents[2] / "data" / "store"


class Queues:
    """The ends of the schedule topic's queues."""

    def __init__(self, **ends: tuple[int, int]) -> None:
        self.ends = {int(name[1:]): pair for name, pair in ends.items()}

    def min_offset(self, topic: str, queue_id: int) -> int:
        assert topic == "SCHEDULE_TOPIC_XXXX"
        return self.ends.get(queue_id, (0, 0))[0]

    def max_offset(self, topic: str, queue_id: int) -> int:
        assert topic == "SCHEDULE_TOPIC_XXXX"
        return self.ends.get(queue_id, (0, 0))[1]


@pytest.fixture
def table(tmp_path: Path) -> DelayTable:
    return make(tmp_path)


def make(path: Path, levels: str = "1s 5s 10s") -> DelayTable:
    return DelayTable(DelayLevels(levels), path / "delayOffset.json", lambda: 1000)


def test_levels(table: DelayTable) -> None:
    assert table.level({}) == 0
    assert table.level({"DELAY": "2"}) == 2
    assert table.level({"DELAY": "+2"}) == 2
    assert table.level({"DELAY": "-1"}) == -1
    assert table.level({"DELAY": "99"}) == 3


@pytest.mark.parametrize("text", ["x", "1.0", "", " ", "2147483648", "9" * 5000, "1_0", "²"])
def test_other_texts_are_refused(table: DelayTable, text: str) -> None:
    with pytest.raises(Refused, match="DELAY") as caught:
        table.level({"DELAY": text})
    assert caught.value.code == ResponseCode.MESSAGE_ILLEGAL


def test_a_message_that_is_put_aside_keeps_its_place(table: DelayTable) -> None:
    properties = {"a": "b", "DELAY": "99"}
    assert table.schedule(properties, "T", 7, 3) == ("SCHEDULE_TOPIC_XXXX", 2)
    assert properties == {"a": "b", "DELAY": "3", "REAL_TOPIC": "T", "REAL_QID": "7"}


async def test_delivery_is_woken_for_queues_that_it_does_not_know(table: DelayTable) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.wait_scheduled)
        await trio.testing.wait_all_tasks_blocked()
        table.schedule({}, "T", 0, 1)
    table.heads[0] = 5000
    table.schedule({}, "T", 0, 1)
    with trio.move_on_after(0) as scope:
        await table.wait_scheduled()
    assert scope.cancelled_caught


def test_the_file_is_official(tmp_path: Path) -> None:
    for version, offset in (("4.8.0", 14), ("4.9.4", 14), ("5.3.3", 14)):
        golden = (GOLDEN / version / "config" / "delayOffset.json").read_bytes()
        (tmp_path / "delayOffset.json").write_bytes(golden)
        table = make(tmp_path)
        assert [table.offset(queue_id) for queue_id in range(2)] == [offset, 0]
        if version.startswith("4"):
            assert table.encode() == golden
    assert json.loads(table.encode().replace(b"{1:", b'{"1":')) == {"offsetTable": {"1": 14}}


def test_offsets_survive(tmp_path: Path, table: DelayTable) -> None:
    assert table.snapshot() is None
    table.delivered(1, 6)
    job = table.snapshot()
    assert job is not None
    job.run()
    table.saved(job, None)
    assert table.snapshot() is None
    assert make(tmp_path).offset(1) == 6


def test_what_changes_during_a_write_is_written_next(table: DelayTable) -> None:
    table.delivered(0, 1)
    job = table.snapshot()
    assert job is not None
    table.delivered(0, 2)
    table.saved(job, None)
    assert table.snapshot() is not None


def test_a_failed_write_is_due_again(table: DelayTable) -> None:
    table.delivered(0, 1)
    job = table.snapshot()
    assert job is not None
    table.saved(job, OSError(28, "no space"))
    assert table.snapshot() is not None


def test_offsets_outside_their_queues_are_corrected(table: DelayTable) -> None:
    table.delivered(0, 5)
    table.delivered(1, 50)
    table.delivered(2, 7)
    table.correct(Queues(q0=(8, 20), q1=(0, 9), q2=(0, 9)))
    assert [table.offset(queue_id) for queue_id in range(3)] == [8, 9, 7]


def test_all_queues_that_a_configuration_could_name_are_corrected(table: DelayTable) -> None:
    table.delivered(delay.MAX_LEVELS - 1, 50)
    table.correct(Queues())
    assert table.offset(delay.MAX_LEVELS - 1) == 0
