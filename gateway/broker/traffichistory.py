"""TrafficHistory: what VIEW_BROKER_STATS_DATA answers: how much went through in the last minute, hour and day.

`Metrics` and `BrokerStats` count; here their sums are kept as they were every 10 s for a minute, every 10 minutes for
an hour and every hour for a day, as official's StatsItem does for each of its counters. A sum that fell, or was not
there, began anew at 0: its topic or group was deleted.

Bound: SERIES_LIMIT topics, and as many pairs of topic and group; what was seen first is kept.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from gateway.broker.stats import BrokerStats
from gateway.metrics import Metrics
from protocol.bodies import BrokerStatsData, BrokerStatsItem

SAMPLE_SECONDS = 10.0
SAMPLES_OF_HOUR = 60  # every 10 minutes
SAMPLES_OF_DAY = 360  # every hour
SERIES_LIMIT = 10_000

Key = str | tuple[str, str]
Rows = Mapping[Any, Sequence[int]]


class _Statistic(NamedTuple):
    table: str
    column: int
    times: int | None  # the column that counts how often something was added


STATISTICS = {
    "TOPIC_PUT_NUMS": _Statistic("stored", 0, 0),
    "TOPIC_PUT_SIZE": _Statistic("stored", 1, 0),
    "GROUP_GET_NUMS": _Statistic("delivered", 0, 2),
    "GROUP_GET_SIZE": _Statistic("delivered", 1, 2),
    "SNDBCK_PUT_NUMS": _Statistic("sent_back", 0, 0),
    "BROKER_PUT_NUMS": _Statistic("broker_stored", 0, None),
    "BROKER_GET_NUMS": _Statistic("broker_delivered", 0, None),
}
_OF_GROUPS = ("delivered", "sent_back")


class TrafficHistory:
    """The history of one broker's counters; `now_ms` is the clock. Call `sample` every SAMPLE_SECONDS."""

    def __init__(self, metrics: Metrics, stats: BrokerStats, cluster: str, now_ms: Callable[[], int]) -> None:
        self._metrics = metrics
        self._stats = stats
        self._cluster = cluster
        self._now_ms = now_ms
        self._taken = 0
        self._minute, self._hour, self._day = _Window(7, now_ms()), _Window(7, now_ms()), _Window(25, now_ms())

    def sample(self) -> None:
        """Keeps the sums as they are now."""
        now, tables, newest = self._now_ms(), self._tables(), self._minute.newest
        kept = {name: _snapshot(rows, newest.get(name, {})) for name, rows in tables.items()}
        self._minute.add(now, kept)
        self._taken += 1
        if self._taken % SAMPLES_OF_HOUR == 0:
            self._hour.add(now, kept)
        if self._taken % SAMPLES_OF_DAY == 0:
            self._day.add(now, kept)

    def statistic(self, name: str, key: str) -> BrokerStatsData | None:
        """What a tool asks for by its names; None if nothing of the kind was ever counted.

        The key is a topic, `topic@group`, or the cluster's name for the whole broker.
        """
        known = STATISTICS.get(name)
        if known is None:
            return None
        topic, _, group = key.partition("@")
        of: Key = (topic, group) if known.table in _OF_GROUPS else key
        if of not in self._tables()[known.table]:
            return None
        return BrokerStatsData(
            stats_minute=self._minute.item(known, of),
            stats_hour=self._hour.item(known, of),
            stats_day=self._day.item(known, of),
        )

    def per_second(self, name: str, key: str) -> float:
        """The rate of the last minute; 0 if nothing of the kind was ever counted."""
        data = self.statistic(name, key)
        return 0.0 if data is None else data.stats_minute.tps

    def _tables(self) -> dict[str, Rows]:
        metrics, stats = self._metrics, self._stats
        return {
            "stored": metrics.stored,
            "delivered": metrics.delivered,
            "sent_back": metrics.sent_back,
            "broker_stored": {self._cluster: (stats.stored,)} if stats.stored else {},
            "broker_delivered": {self._cluster: (stats.delivered,)} if stats.delivered else {},
        }


def _snapshot(rows: Rows, before: Rows) -> Rows:
    """A copy that shares with the one before what has not changed."""
    copy: dict[Key, Sequence[int]] = {key: tuple(row) for key, row in islice(rows.items(), SERIES_LIMIT)}
    if copy == before:
        return before
    for key, row in copy.items():
        if before.get(key) == row:
            copy[key] = before[key]
    return copy


class _Window:
    """The sums as they were at the last so many looks."""

    def __init__(self, length: int, began_ms: int) -> None:
        self._samples: deque[tuple[int, dict[str, Rows]]] = deque([(began_ms, {})], maxlen=length)

    @property
    def newest(self) -> dict[str, Rows]:
        return self._samples[-1][1]

    def add(self, taken_ms: int, tables: dict[str, Rows]) -> None:
        self._samples.append((taken_ms, tables))

    def item(self, statistic: _Statistic, key: Key) -> BrokerStatsItem:
        """From the first look at this counter to the last one; zeros while there was none."""
        samples = reversed(self._samples)
        ended_ms, tables = next(samples)
        last = tables.get(statistic.table, {}).get(key)
        if last is None:
            return BrokerStatsItem()
        began_ms, first = ended_ms, last
        for taken_ms, tables in samples:
            row = tables.get(statistic.table, {}).get(key)
            began_ms = taken_ms
            if row is None or row[0] > first[0]:
                first = (0,) * len(last)
                break
            first = row
        rise = last[statistic.column] - first[statistic.column]
        times = 0 if statistic.times is None else last[statistic.times] - first[statistic.times]
        elapsed_ms = ended_ms - began_ms
        return BrokerStatsItem(
            sum=rise,
            tps=rise * 1000 / elapsed_ms if elapsed_ms > 0 else 0.0,
            avgpt=rise / times if times else 0.0,
        )
