"""How long sends took, in the ranges that tools know."""

from gateway.broker.puttimes import BUCKETS_MS, RANGE_NAMES, PutTimes


def turned(*times: tuple[int, float]) -> PutTimes:
    """After a minute with these sends."""
    put_times = PutTimes()
    for count, seconds in times:
        put_times.note(count, seconds)
    put_times.turn()
    return put_times


def ranges(put_times: PutTimes) -> dict[str, int]:
    """As rocketmq-exporter takes the text apart."""
    pairs = [part.split(":") for part in put_times.distribution().split(" ") if part]
    return {name.strip("[]"): int(count) for name, count in pairs}


def test_the_buckets_are_official_ones() -> None:
    """20 of 1 ms, 15 of 2, 10 of 5, 10 of 10, 6 of 50, 5 of 100, 9 of 1 s."""
    assert len(BUCKETS_MS) == 75
    assert [BUCKETS_MS[index] for index in (0, 19, 34, 44, 54, 60, 65, 74)] == [1, 20, 50, 100, 200, 500, 1000, 10_000]


def test_nothing_is_known_in_the_first_minute() -> None:
    put_times = PutTimes()
    put_times.note(5, 0.5)
    assert put_times.distribution() == "null"
    assert put_times.percentile(0.99) == 0.0
    assert put_times.longest_ms == 500


def test_each_time_has_its_range() -> None:
    times = [0.0009, 0.001, 0.0099, 0.010, 0.0499, 0.050, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 9.999, 10, 3600]
    found = ranges(turned(*[(1, seconds) for seconds in times]))
    assert list(found) == list(RANGE_NAMES)
    assert list(found.values()) == [1, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2]


def test_a_minute_is_forgotten_with_the_next_one() -> None:
    put_times = turned((7, 0.0))
    assert ranges(put_times)["<=0ms"] == 7
    put_times.turn()
    assert set(ranges(put_times).values()) == {0}
    assert put_times.percentile(0.999) == 0.0


def test_percentiles_lie_between_the_bounds_of_a_bucket() -> None:
    put_times = turned((980, 0.0), (20, 0.200))
    assert put_times.percentile(0.5) == 500 / 980
    assert put_times.percentile(0.99) == 190 + 10 * 10 / 20
    assert put_times.percentile(0.999) == 190 + 10 * 19 / 20


def test_what_takes_longer_than_any_bucket() -> None:
    put_times = turned((100, 30.0))
    assert put_times.percentile(0.99) == 10_000 + 20_000 * 0.99
