"""What went through in the last minute, hour and day."""

import pytest

from gateway.broker import traffichistory
from gateway.broker.stats import BrokerStats
from gateway.broker.traffichistory import TrafficHistory
from gateway.metrics import Metrics
from protocol.bodies import BrokerStatsItem
from protocol.message import NewMessage, pack_host
from tests.gateway.broker.fakes import Clock

HOST = pack_host("10.0.0.1", 10911)
SECOND_MS = 1000
NOTHING = BrokerStatsItem()


class Traffic:
    """A history with what it looks at."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.stats = BrokerStats(self.clock)
        self.history = TrafficHistory(self.metrics, self.stats, "DefaultCluster", self.clock)

    def store(self, topic: str, count: int, size: int = 100) -> None:
        message = NewMessage(topic, 0, 0, 0, 0, HOST, HOST, b"", b"", 0)
        message.size = size
        self.stats.messages_stored(count, self.metrics.messages_stored([message] * count))

    def pass_seconds(self, seconds: int) -> None:
        for _ in range(seconds // 10):
            self.clock.advance(10 * SECOND_MS)
            self.history.sample()

    def minute(self, name: str, key: str) -> BrokerStatsItem:
        data = self.history.statistic(name, key)
        assert data is not None
        return data.stats_minute


@pytest.fixture
def traffic() -> Traffic:
    return Traffic()


def test_what_was_never_counted_is_not_there(traffic: Traffic) -> None:
    traffic.store("T", 1)
    assert traffic.history.statistic("TOPIC_PUT_NUMS", "other") is None
    assert traffic.history.statistic("GROUP_GET_NUMS", "T@g") is None
    assert traffic.history.statistic("BROKER_GET_NUMS", "DefaultCluster") is None
    assert traffic.history.statistic("NONSENSE", "T") is None


def test_a_minute_of_each_statistic(traffic: Traffic) -> None:
    for _ in range(6):
        traffic.store("T", 20, size=50)
        for _ in range(2):
            traffic.metrics.messages_delivered("T", "g", 4, 600)
            traffic.stats.pull_answered(4)
        traffic.metrics.message_sent_back("T", "g")
        traffic.pass_seconds(10)
    assert traffic.minute("TOPIC_PUT_NUMS", "T") == BrokerStatsItem(sum=120, tps=2.0, avgpt=1.0)
    assert traffic.minute("TOPIC_PUT_SIZE", "T") == BrokerStatsItem(sum=6000, tps=100.0, avgpt=50.0)
    assert traffic.minute("GROUP_GET_NUMS", "T@g") == BrokerStatsItem(sum=48, tps=0.8, avgpt=4.0)
    assert traffic.minute("GROUP_GET_SIZE", "T@g") == BrokerStatsItem(sum=7200, tps=120.0, avgpt=600.0)
    assert traffic.history.per_second("GROUP_GET_NUMS", "T@g") == 0.8
    assert traffic.history.per_second("GROUP_GET_NUMS", "T@other") == 0.0
    assert traffic.minute("SNDBCK_PUT_NUMS", "T@g") == BrokerStatsItem(sum=6, tps=0.1, avgpt=1.0)
    assert traffic.minute("BROKER_PUT_NUMS", "DefaultCluster") == BrokerStatsItem(sum=120, tps=2.0, avgpt=0.0)
    assert traffic.minute("BROKER_GET_NUMS", "DefaultCluster") == BrokerStatsItem(sum=48, tps=0.8, avgpt=0.0)


def test_what_is_older_than_the_window_is_left_out(traffic: Traffic) -> None:
    traffic.store("T", 1000)
    traffic.pass_seconds(10)
    traffic.store("T", 6)
    traffic.pass_seconds(60)
    assert traffic.minute("TOPIC_PUT_NUMS", "T") == BrokerStatsItem(sum=6, tps=0.1, avgpt=1.0)
    traffic.pass_seconds(60)
    assert traffic.minute("TOPIC_PUT_NUMS", "T") == NOTHING


def test_a_new_topic_is_rated_since_it_is_there(traffic: Traffic) -> None:
    traffic.store("old", 1)
    traffic.pass_seconds(600)
    traffic.store("T", 50)
    assert traffic.minute("TOPIC_PUT_NUMS", "T") == NOTHING, "nobody has looked yet"
    traffic.pass_seconds(10)
    assert traffic.minute("TOPIC_PUT_NUMS", "T") == BrokerStatsItem(sum=50, tps=5.0, avgpt=1.0)


def test_hours_and_days(traffic: Traffic) -> None:
    for _ in range(26):
        traffic.store("T", 3600)
        traffic.pass_seconds(3600)
    data = traffic.history.statistic("TOPIC_PUT_NUMS", "T")
    assert data is not None
    assert data.stats_minute == NOTHING
    assert data.stats_hour == BrokerStatsItem(sum=3600, tps=1.0, avgpt=1.0)
    assert data.stats_day == BrokerStatsItem(sum=24 * 3600, tps=1.0, avgpt=1.0)


def test_a_topic_that_was_deleted_begins_anew(traffic: Traffic) -> None:
    traffic.store("T", 500)
    traffic.pass_seconds(10)
    traffic.metrics.forget_topics({"T"})
    assert traffic.history.statistic("TOPIC_PUT_NUMS", "T") is None
    traffic.store("T", 30)
    traffic.pass_seconds(10)
    assert traffic.minute("TOPIC_PUT_NUMS", "T") == BrokerStatsItem(sum=30, tps=3.0, avgpt=1.0)


def test_it_does_not_grow_without_bound(traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffichistory, "SERIES_LIMIT", 2)
    for topic in ("A", "B", "C"):
        traffic.store(topic, 1)
    traffic.pass_seconds(10)
    assert [traffic.minute("TOPIC_PUT_NUMS", topic).sum for topic in ("A", "B", "C")] == [1, 1, 0]


def test_what_does_not_change_is_kept_once(traffic: Traffic) -> None:
    traffic.store("A", 1000)
    traffic.store("B", 1000)
    traffic.pass_seconds(10)
    before = traffic.history._minute.newest
    traffic.store("B", 1)
    traffic.pass_seconds(10)
    after = traffic.history._minute.newest
    assert after["stored"]["A"] is before["stored"]["A"]
    assert after["stored"]["B"] != before["stored"]["B"]
    assert after["delivered"] is before["delivered"]
