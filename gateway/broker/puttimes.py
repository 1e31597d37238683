"""PutTimes: how long sends took, as GET_BROKER_RUNTIME_INFO shows it.

The longest since the start; and of the last whole minute how many fell into which range, and percentiles. Ranges and
buckets are those of official's StoreStatsService, whose text rocketmq-exporter takes apart.
"""

from bisect import bisect_left, bisect_right
from itertools import pairwise

RANGES_MS = (1, 10, 50, 100, 200, 500, 1000, 2000, 3000, 4000, 5000, 10_000)
"""Where the next range begins."""
RANGE_NAMES = (
    *("<=0ms", "0~10ms", "10~50ms", "50~100ms", "100~200ms", "200~500ms", "500ms~1s"),
    *("1~2s", "2~3s", "3~4s", "4~5s", "5~10s", "10s~"),
)
BUCKETS_MS = (
    *range(1, 21),
    *range(22, 51, 2),
    *range(55, 101, 5),
    *range(110, 201, 10),
    *range(250, 501, 50),
    *range(600, 1001, 100),
    *range(2000, 10_001, 1000),
)
"""What belongs to a bucket at most; what takes longer has one more."""


class PutTimes:
    """The times of one broker's sends; `turn` is called once a minute."""

    def __init__(self) -> None:
        self.longest_ms = 0
        self._ranges, self._buckets = _zeros()
        self._last_ranges: list[int] | None = None
        self._last_buckets: list[int] = []

    def note(self, count: int, seconds: float) -> None:
        """`count` sends were answered, each after `seconds`."""
        milliseconds = int(seconds * 1000)
        if milliseconds > self.longest_ms:
            self.longest_ms = milliseconds
        self._ranges[bisect_right(RANGES_MS, milliseconds)] += count
        self._buckets[bisect_left(BUCKETS_MS, milliseconds)] += count

    def turn(self) -> None:
        """A minute is over."""
        self._last_ranges, self._last_buckets = self._ranges, self._buckets
        self._ranges, self._buckets = _zeros()

    def distribution(self) -> str:
        """`[<=0ms]:5 [0~10ms]:1 …`; `null` in the first minute, as official says."""
        if self._last_ranges is None:
            return "null"
        return "".join([f"[{name}]:{count} " for name, count in zip(RANGE_NAMES, self._last_ranges, strict=True)])

    def percentile(self, share: float) -> float:
        """The time in ms within which this share of the sends was answered; between two buckets, in proportion."""
        wanted = int(sum(self._last_buckets) * share)
        passed = 0
        bounds = (0, *BUCKETS_MS, max(self.longest_ms, BUCKETS_MS[-1]))
        for (low, high), count in zip(pairwise(bounds), self._last_buckets, strict=False):
            if wanted <= passed + count:
                return low + (high - low) * (wanted - passed) / count if count else float(low)
            passed += count
        return 0.0


def _zeros() -> tuple[list[int], list[int]]:
    return [0] * len(RANGE_NAMES), [0] * (len(BUCKETS_MS) + 1)
