"""The windows in which tools see a broker's rates and totals."""

from datetime import datetime

from gateway.broker.stats import BrokerStats
from tests.gateway.broker.fakes import Clock


def pass_seconds(stats: BrokerStats, clock: Clock, seconds: int, stored_per_second: int = 0) -> None:
    for _ in range(seconds):
        stats.messages_stored(stored_per_second, stored_per_second * 100)
        clock.advance(1000)
        stats.sample()


def test_rates_have_three_windows() -> None:
    clock = Clock()
    stats = BrokerStats(clock)
    pass_seconds(stats, clock, 700, stored_per_second=10)
    pass_seconds(stats, clock, 10, stored_per_second=70)
    assert stats.stored_rates() == "70.0 20.0 11.0"


def test_a_young_broker_rates_what_it_has_seen() -> None:
    clock = Clock()
    stats = BrokerStats(clock)
    assert stats.stored_rates() == "0.0 0.0 0.0"
    pass_seconds(stats, clock, 2, stored_per_second=5)
    assert stats.stored_rates() == "5.0 5.0 5.0"


def test_pulls_count_as_found_or_missed() -> None:
    clock = Clock()
    stats = BrokerStats(clock)
    for _ in range(3):
        stats.pull_answered(32)
    stats.pull_answered(0)
    clock.advance(1000)
    stats.sample()
    assert stats.found_rates().split()[0] == "3.0"
    assert stats.missed_rates().split()[0] == "1.0"
    assert stats.pull_rates().split()[0] == "4.0"
    assert stats.delivered_rates().split()[0] == "96.0"


def test_midnight_moves_the_totals_on() -> None:
    before_midnight = datetime(2024, 5, 1, 23, 59, 58)
    clock = Clock(int(before_midnight.timestamp() * 1000))
    stats = BrokerStats(clock)
    pass_seconds(stats, clock, 5, stored_per_second=1)
    assert (stats.stored_this_morning, stats.stored_yesterday_morning) == (2, 0)
    clock.advance(24 * 3600 * 1000)
    stats.sample()
    assert (stats.stored_this_morning, stats.stored_yesterday_morning) == (5, 2)


def test_memory_of_the_past_is_bounded() -> None:
    clock = Clock()
    stats = BrokerStats(clock)
    pass_seconds(stats, clock, 5000)
    assert len(stats._samples) == 601
