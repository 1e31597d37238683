"""Which files may go, when the disk counts as full, and which queues nobody needs any more."""

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.consumequeue import ConsumeQueues
from store.files import FileSystem
from store.options import StoreOptions
from store.retention import (
    MANUAL_ROUNDS,
    MAX_FILES_A_ROUND,
    NOTHING,
    Retention,
    Verdict,
    delete_hours,
    expired_queues,
    unused_queues,
)

HOUR = 3_600_000
NOON = int(datetime(2026, 3, 1, 12, 30).timestamp() * 1000)
FOUR = int(datetime(2026, 3, 1, 4, 0).timestamp() * 1000)


def ages(now: int, *hours: float) -> list[int]:
    return [now - int(age * HOUR) for age in hours]


class TestHours:
    @pytest.mark.parametrize(
        ("text", "hours"),
        [("04", {4}), ("4;16", {4, 16}), (" 04 ; 16; ", {4, 16}), ("", set()), ("25;x;-1;23", {23})],
    )
    def test_they_are_read_as_written(self, text: str, hours: set[int]) -> None:
        assert delete_hours(text) == hours


class TestAge:
    def test_expired_files_go_at_the_hour(self) -> None:
        assert Retention(StoreOptions()).decide(FOUR, ages(FOUR, 100, 73, 72, 71, 1), 10, 10) == Verdict(3, "hour")

    def test_and_stay_at_other_hours(self) -> None:
        assert Retention(StoreOptions()).decide(NOON, ages(NOON, 100, 73, 1), 10, 10) == NOTHING

    def test_the_newest_file_stays_however_old(self) -> None:
        assert Retention(StoreOptions()).decide(FOUR, ages(FOUR, 900, 800), 10, 10) == Verdict(1, "hour")
        assert Retention(StoreOptions()).decide(FOUR, ages(FOUR, 900), 99, 99) == Verdict(0, "forced")
        assert Retention(StoreOptions()).decide(FOUR, [], 10, 10) == Verdict(0, "hour")

    def test_a_young_file_keeps_the_older_ones_behind_it(self) -> None:
        """A copied directory has such times: deleting from the middle would tear a hole."""
        assert Retention(StoreOptions()).decide(FOUR, ages(FOUR, 100, 1, 100, 1), 10, 10) == Verdict(1, "hour")

    def test_a_round_has_an_end(self) -> None:
        verdict = Retention(StoreOptions()).decide(FOUR, ages(FOUR, *range(500, 100, -1)), 10, 10)
        assert verdict == Verdict(MAX_FILES_A_ROUND, "hour")

    def test_an_operator_may_ask_at_any_hour(self) -> None:
        retention = Retention(StoreOptions(file_reserved_time=48))
        retention.request_manual()
        rounds = [retention.decide(NOON, ages(NOON, 49, 47, 1), 10, 10) for _ in range(MANUAL_ROUNDS + 1)]
        assert rounds == [Verdict(1, "manual")] * MANUAL_ROUNDS + [NOTHING]


class TestSpace:
    @pytest.mark.parametrize("queues", [False, True])
    @pytest.mark.parametrize(
        ("percent", "verdict"),
        [
            (75, NOTHING),
            (76, Verdict(1, "space")),
            (85, Verdict(1, "space")),
            (86, Verdict(3, "forced")),
            (95, Verdict(3, "forced")),
        ],
    )
    def test_the_fuller_disk_decides(self, queues: bool, percent: int, verdict: Verdict) -> None:
        use = (20, percent) if queues else (percent, 20)
        assert Retention(StoreOptions()).decide(NOON, ages(NOON, 100, 9, 8, 7), *use) == verdict

    def test_force_can_be_forbidden(self) -> None:
        retention = Retention(StoreOptions(clean_file_forcibly_enable=False))
        assert retention.decide(NOON, ages(NOON, 100, 9, 8), 99, 99) == Verdict(1, "space")

    def test_the_ratio_is_configured(self) -> None:
        retention = Retention(StoreOptions(disk_max_used_space_ratio=50))
        assert retention.decide(NOON, ages(NOON, 100, 9), 51, 1) == Verdict(1, "space")

    def test_a_full_disk_is_remembered_until_it_is_clearly_better(self) -> None:
        retention = Retention(StoreOptions())
        seen = []
        for percent in (90, 91, 90, 86, 85, 90, 91):
            retention.decide(NOON, [], percent, 1)
            seen.append(retention.disk_full)
        assert seen == [False, True, True, True, False, False, True]

    def test_the_probe_has_one_limit(self) -> None:
        retention = Retention(StoreOptions())
        assert [retention.probe(percent) for percent in (90, 91, 90)] == [False, True, False]

    @given(
        st.lists(st.integers(0, 200), max_size=30),
        st.integers(0, 100),
        st.integers(0, 100),
        st.booleans(),
        st.integers(0, 23),
    )
    def test_never_the_newest_never_more_than_ten_never_a_hole(
        self, hours: list[int], log: int, queues: int, forcibly: bool, hour: int
    ) -> None:
        now = int(datetime(2026, 3, 1, hour, 30).timestamp() * 1000)
        options = StoreOptions(clean_file_forcibly_enable=forcibly)
        verdict = Retention(options).decide(now, ages(now, *hours), log, queues)
        assert 0 <= verdict.files <= min(10, max(0, len(hours) - 1))
        if verdict.reason != "forced":
            assert all(age >= 72 for age in hours[: verdict.files])
        if verdict.reason == "":
            assert verdict.files == 0
            assert max(log, queues) <= 75
            assert hour != 4


class TestQueues:
    @pytest.fixture
    def queues(self, tmp_path: Path) -> ConsumeQueues:
        queues = ConsumeQueues(tmp_path, 6_000_000, FileSystem())
        names = ["A", "B", "SCHEDULE_TOPIC_XXXX", "RMQ_SYS_TRANS_OP_HALF_TOPIC", "%LMQ%x"]
        for n, topic in enumerate(names):
            queues.put(topic, 0, 0, n * 100, 100, 0)
        queues.queue("EMPTY", 0, create=True)
        return queues

    def test_expired_are_those_without_a_record_left(self, queues: ConsumeQueues) -> None:
        def topics(commitlog_min: int) -> list[str]:
            return [queue.topic for queue in expired_queues(queues, commitlog_min)]

        assert topics(0) == topics(99) == []
        assert topics(100) == ["A"]
        assert topics(1000) == ["A", "B", "RMQ_SYS_TRANS_OP_HALF_TOPIC", "%LMQ%x"]

    def test_unused_are_those_nobody_configures(self, queues: ConsumeQueues) -> None:
        assert [queue.topic for queue in unused_queues(queues, {"A"})] == ["B", "EMPTY"]
