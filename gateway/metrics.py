"""Metrics: what a server counts, and how Prometheus reads it.

Counting is on the hot path, so it is additions to plain lists in dicts; Prometheus' own objects (with a lock each)
are made only when somebody scrapes, and their modules are imported only then. Numbers that live elsewhere (queue fill,
connections, offsets) are not copied: their owner registers a callable that is read at each scrape, so a series goes
when its object goes.

Names and labels are those of RocketMQ 5.x where it has the metric (spec: BrokerMetricsConstant, RemotingMetricsConstant
and DefaultStoreMetricsConstant of 5.3.3), and those of rocketmq-exporter for what dashboards for 4.x query.

Bounds: a family keeps at most SERIES_LIMIT series; what comes beyond counts in one series with the label value
`overflow`. Codes that RocketMQ does not have share one series, so that a client cannot make new ones.
"""

from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import trio

from gateway.broker.names import HALF_TOPIC, RETRY_PREFIX, SCHEDULE_TOPIC, SYSTEM_GROUP_PREFIX, is_system_topic
from protocol.codes import RequestCode, ResponseCode

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

    from protocol.message import NewMessage

SERIES_LIMIT = 50_000
OVERFLOW = "overflow"
LATENCY_BOUNDS_MS = (1, 3, 5, 7, 10, 100, 1000, 2000, 3000)
SIZE_BOUNDS_BYTES = (1 << 10, 4 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20)
_SMALLEST_SIZE = SIZE_BOUNDS_BYTES[0]

_MESSAGE_TYPES = {SCHEDULE_TOPIC: "delay", HALF_TOPIC: "transaction"}

K = TypeVar("K")
Rows = Iterable[tuple[Sequence[str], float]]
"""Label values and number of each series of a family."""


class _Source(NamedTuple):
    name: str
    help: str
    labels: tuple[str, ...]
    read: Callable[[], Rows]
    is_counter: bool
    is_native: bool


class Metrics:
    """The counters of one server. Make one per server; nothing is global.

    `node` are the labels that every 5.x family carries: cluster, node_type, node_id.
    """

    def __init__(self, node: Mapping[str, str] | None = None) -> None:
        self._node = dict(node or {})
        self._sources: list[_Source] = []
        self.stored: dict[str, list[int]] = {}
        """[messages, bytes] by topic. Whoever reads these tables leaves them as they are."""
        self.delivered: dict[tuple[str, str], list[int]] = {}
        """[messages, bytes, pulls] by topic and group."""
        self.sent_back: dict[tuple[str, str], list[int]] = {}
        """[messages] that a group could not consume, by topic and group."""
        # [requests, milliseconds, one count per bucket …] by request code << 17 | response code << 1 | long polling
        self._requests: dict[int, list[float]] = {}
        # [messages, bytes, one count per bucket …]
        self._sizes = [0] * (len(SIZE_BOUNDS_BYTES) + 3)
        self._to_dead_letters: dict[tuple[str, str], list[int]] = {}  # [messages]
        self._transactions: dict[str, list[int]] = {}  # [committed, rolled back] by topic
        self._registry: CollectorRegistry | None = None

    # ---- counting

    def messages_stored(self, messages: "Iterable[NewMessage]") -> int:
        """These messages are in the log (their `size` is set). Returns their bytes together."""
        sizes = self._sizes
        topic: str | None = None
        row: list[int] = []
        total = small = count = 0
        for message in messages:
            if message.topic is not topic:
                topic = message.topic
                row = self.stored.get(topic) or _new_row(self.stored, topic, OVERFLOW, 2)
            size = message.size
            row[0] += 1
            row[1] += size
            count += 1
            total += size
            if size <= _SMALLEST_SIZE:
                small += 1
            else:
                sizes[2 + bisect_left(SIZE_BOUNDS_BYTES, size)] += 1
        sizes[0] += count
        sizes[1] += total
        sizes[2] += small
        return total

    def messages_delivered(self, topic: str, group: str, count: int, size: int) -> None:
        """One pull answer carries `count` messages of `size` bytes together."""
        row = self.delivered.get((topic, group))
        if row is None:
            row = _new_row(self.delivered, (topic, group), (OVERFLOW, OVERFLOW), 3)
        row[0] += count
        row[1] += size
        row[2] += 1

    def sent_to_dead_letters(self, topic: str, group: str) -> None:
        """A message of `topic` was given up for this group."""
        row = self._to_dead_letters.get((topic, group))
        if row is None:
            row = _new_row(self._to_dead_letters, (topic, group), (OVERFLOW, OVERFLOW), 1)
        row[0] += 1

    def message_sent_back(self, topic: str, group: str) -> None:
        """The group could not consume a message of `topic`, which comes again later or was given up."""
        row = self.sent_back.get((topic, group))
        if row is None:
            row = _new_row(self.sent_back, (topic, group), (OVERFLOW, OVERFLOW), 1)
        row[0] += 1

    def transaction_ended(self, topic: str, *, is_commit: bool) -> None:
        """A half message of `topic` was committed or rolled back."""
        row = self._transactions.get(topic)
        if row is None:
            row = _new_row(self._transactions, topic, OVERFLOW, 2)
        row[0 if is_commit else 1] += 1

    def request_done(
        self, code: int, response_code: int, seconds: float, count: int = 1, *, long_polling: bool = False
    ) -> None:
        """`count` requests of one code were answered alike, each after `seconds`."""
        key = code << 17 | response_code << 1 | long_polling
        row = self._requests.get(key)
        if row is None:
            row = self._new_request_row(code, response_code, long_polling)
        milliseconds = seconds * 1000
        row[0] += count
        row[1] += milliseconds * count
        row[2 if milliseconds <= 1 else 2 + bisect_left(LATENCY_BOUNDS_MS, milliseconds)] += count

    def _new_request_row(self, code: int, response_code: int, long_polling: bool) -> list[float]:
        known = code in RequestCode.__members__.values() and response_code in ResponseCode.__members__.values()
        # Codes that a client invents all count in the row of key -1 and never get one of their own.
        key = code << 17 | response_code << 1 | long_polling if known else -1
        return self._requests.setdefault(key, [0.0] * (len(LATENCY_BOUNDS_MS) + 3))

    def forget_topics(self, topics: Set[str]) -> None:
        """These topics were deleted: their series end."""
        for topic in topics:
            self.stored.pop(topic, None)
            self._transactions.pop(topic, None)
        for rows in (self.delivered, self.sent_back, self._to_dead_letters):
            for key in [key for key in rows if key[0] in topics]:
                del rows[key]

    def forget_group(self, group: str) -> None:
        """The group was deleted: its series end."""
        for rows in (self.delivered, self.sent_back, self._to_dead_letters):
            for key in [key for key in rows if key[1] == group]:
                del rows[key]

    # ---- numbers that live elsewhere

    def gauge_source(
        self, name: str, help: str, labels: Sequence[str], read: Callable[[], Rows], *, native: bool = True
    ) -> None:
        """Have `read` called at each scrape for all series of a gauge. `native` ones get the node's labels too."""
        self._sources.append(_Source(name, help, tuple(labels), read, False, native))

    def counter_source(
        self, name: str, help: str, labels: Sequence[str], read: Callable[[], Rows], *, native: bool = True
    ) -> None:
        """The same for a number that only grows; its name ends in `_total`."""
        self._sources.append(_Source(name, help, tuple(labels), read, True, native))

    # ---- reading

    def register(self, registry: "CollectorRegistry") -> None:
        """Let a registry of prometheus_client read these metrics."""
        registry.register(self)

    def collect(self) -> "Iterator[Metric]":
        """All families as they are now: prometheus_client's Collector."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield from self._traffic()
        yield from self._ended_transactions()
        if self._sizes[0]:
            yield self._size_histogram()
        if self._requests:
            yield self._latency_histogram()
        for source in self._sources:
            make = CounterMetricFamily if source.is_counter else GaugeMetricFamily
            node = self._node if source.is_native else {}
            family = make(source.name, source.help, labels=[*node, *source.labels])
            for values, number in source.read():
                family.add_metric([*node.values(), *values], number)
            yield family

    async def exposition(self) -> AsyncIterator[bytes]:
        """The text that Prometheus reads, family by family, so that a long one does not hold up the server's work."""
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import generate_latest

        if self._registry is None:
            self._registry = CollectorRegistry()
            ProcessCollector(registry=self._registry)
        yield generate_latest(self._registry)
        for family in self.collect():
            yield generate_latest(_OneFamily(family))
            await trio.lowlevel.checkpoint()

    def _traffic(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily

        node, node_values = list(self._node), list(self._node.values())
        labels = [*node, "topic", "message_type", "is_system"]
        messages = CounterMetricFamily("rocketmq_messages_in_total", "Messages stored.", labels=labels)
        volume = CounterMetricFamily("rocketmq_throughput_in_total", "Bytes of stored messages.", labels=labels)
        for topic, (count, size) in self.stored.items():
            values = [*node_values, topic, _MESSAGE_TYPES.get(topic, "normal"), _truth(is_system_topic(topic))]
            messages.add_metric(values, count)
            volume.add_metric(values, size)
        yield messages
        yield volume

        labels = [*node, "topic", "consumer_group", "is_system", "is_retry"]
        messages = CounterMetricFamily("rocketmq_messages_out_total", "Messages handed to consumers.", labels=labels)
        volume = CounterMetricFamily("rocketmq_throughput_out_total", "Bytes handed to consumers.", labels=labels)
        given_up = CounterMetricFamily("rocketmq_send_to_dlq_messages_total", "Messages given up.", labels=labels)
        for (topic, group), (count, size, _) in self.delivered.items():
            values = [*node_values, topic, group, *_consumption(topic, group)]
            messages.add_metric(values, count)
            volume.add_metric(values, size)
        for (topic, group), (count,) in self._to_dead_letters.items():
            given_up.add_metric([*node_values, topic, group, *_consumption(topic, group)], count)
        yield messages
        yield volume
        yield given_up

    def _ended_transactions(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily

        for column, name, verb in ((0, "commit", "committed"), (1, "rollback", "rolled back")):
            family = CounterMetricFamily(
                f"rocketmq_{name}_messages_total", f"Half messages {verb}.", labels=[*self._node, "topic"]
            )
            for topic, row in self._transactions.items():
                if row[column]:
                    family.add_metric([*self._node.values(), topic], row[column])
            yield family

    def _size_histogram(self) -> "Metric":
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily(
            "rocketmq_message_size", "Bytes of a stored message, with its header.", labels=list(self._node)
        )
        family.add_metric(list(self._node.values()), _buckets(SIZE_BOUNDS_BYTES, self._sizes[2:]), self._sizes[1])
        return family

    def _latency_histogram(self) -> "Metric":
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily(
            "rocketmq_rpc_latency_milliseconds",
            "Time from reading a request to its answer.",
            labels=[*self._node, "protocol_type", "request_code", "response_code", "is_long_polling", "result"],
        )
        for key, row in self._requests.items():
            request, response = ("unknown", "unknown") if key == -1 else _code_names(key)
            family.add_metric(
                [*self._node.values(), "remoting", request, response, _truth(key != -1 and key & 1), "success"],
                _buckets(LATENCY_BOUNDS_MS, row[2:]),
                row[1],
            )
        return family


class _OneFamily(NamedTuple):
    """As much of a registry as the exposition of one family needs."""

    family: "Metric"

    def collect(self) -> "list[Metric]":
        return [self.family]


def _new_row(rows: dict[K, list[int]], key: K, overflow: K, columns: int) -> list[int]:
    return rows.setdefault(key if len(rows) < SERIES_LIMIT else overflow, [0] * columns)


def _buckets(bounds: Sequence[int], counts: Sequence[float]) -> list[tuple[str, float]]:
    """Cumulative counts with their upper bounds, as Prometheus wants them."""
    return list(zip([*map(float.__str__, map(float, bounds)), "+Inf"], accumulate(counts), strict=True))


def _code_names(key: int) -> tuple[str, str]:
    return RequestCode(key >> 17).name.lower(), ResponseCode(key >> 1 & 0xFFFF).name.lower()


def _consumption(topic: str, group: str) -> tuple[str, str]:
    """The labels is_system and is_retry."""
    return _truth(is_system_topic(topic) or group.startswith(SYSTEM_GROUP_PREFIX)), _truth(
        topic.startswith(RETRY_PREFIX)
    )


def _truth(value: object) -> str:
    return "true" if value else "false"
