"""Metrics: what is counted comes out under the official names, and counting stays bounded."""

from collections.abc import Iterable
from timeit import repeat

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from gateway import metrics as metrics_module
from gateway.metrics import OVERFLOW, Metrics
from protocol.codes import RequestCode, ResponseCode
from protocol.message import NewMessage

NODE = {"cluster": "c1", "node_type": "broker", "node_id": "broker-a"}


def message(topic: str, size: int) -> NewMessage:
    """A message as the store leaves it."""
    return NewMessage(
        topic=topic,
        queue_id=0,
        flag=0,
        sys_flag=0,
        born_timestamp=0,
        born_host=bytes(8),
        store_host=bytes(8),
        body=b"",
        properties=b"",
        tags_code=0,
        size=size,
    )


async def samples(metrics: Metrics, **wanted: str) -> dict[str, float]:
    """The numbers by sample name, of the series that have these labels."""
    text = b"".join([part async for part in metrics.exposition()]).decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if wanted.items() <= sample.labels.items()
    }


class TestTraffic:
    async def test_stored_messages_count_by_topic(self) -> None:
        metrics = Metrics(NODE)
        metrics.messages_stored([message("A", 100), message("B", 7), message("A", 50)])
        in_a = await samples(metrics, topic="A", message_type="normal", is_system="false", **NODE)
        assert in_a == {"rocketmq_messages_in_total": 2, "rocketmq_throughput_in_total": 150}

    async def test_system_topics_say_so(self) -> None:
        metrics = Metrics()
        metrics.messages_stored([message("SCHEDULE_TOPIC_XXXX", 1), message("rmq_sys_x", 1)])
        assert await samples(metrics, is_system="true", message_type="delay", topic="SCHEDULE_TOPIC_XXXX")
        assert await samples(metrics, is_system="true", message_type="normal", topic="rmq_sys_x")

    async def test_delivered_messages_count_by_topic_and_group(self) -> None:
        metrics = Metrics(NODE)
        metrics.messages_delivered("A", "g", 3, 300)
        metrics.messages_delivered("A", "g", 1, 100)
        metrics.messages_delivered("%RETRY%g", "g", 1, 10)
        out = await samples(metrics, topic="A", consumer_group="g", is_system="false", is_retry="false")
        assert out == {"rocketmq_messages_out_total": 4, "rocketmq_throughput_out_total": 400}
        assert (await samples(metrics, is_retry="true"))["rocketmq_messages_out_total"] == 1

    async def test_messages_given_up_are_counted(self) -> None:
        metrics = Metrics()
        metrics.sent_to_dead_letters("A", "g")
        assert await samples(metrics, topic="A", consumer_group="g") == {"rocketmq_send_to_dlq_messages_total": 1}

    @pytest.mark.parametrize(
        ("size", "bucket"),
        [(1, "1024.0"), (1024, "1024.0"), (1025, "4096.0"), (4 << 20, "4194304.0"), ((4 << 20) + 1, "+Inf")],
    )
    async def test_sizes_fall_in_the_official_buckets(self, size: int, bucket: str) -> None:
        metrics = Metrics()
        metrics.messages_stored([message("A", size)])
        bounds = ["1024.0", "4096.0", "524288.0", "1048576.0", "2097152.0", "4194304.0", "+Inf"]
        counts = [(await samples(metrics, le=bound))["rocketmq_message_size_bucket"] for bound in bounds]
        assert counts == [float(i >= bounds.index(bucket)) for i in range(len(bounds))]

    async def test_series_end_with_their_topic_or_group(self) -> None:
        metrics = Metrics()
        metrics.messages_stored([message("A", 1), message("B", 1)])
        metrics.messages_delivered("A", "g", 1, 1)
        metrics.messages_delivered("B", "g", 1, 1)
        metrics.messages_delivered("B", "h", 1, 1)
        metrics.forget_topics({"A"})
        metrics.forget_group("g")
        assert not await samples(metrics, topic="A")
        assert not await samples(metrics, consumer_group="g")
        assert await samples(metrics, topic="B", consumer_group="h")

    async def test_what_exceeds_the_limit_counts_in_one_series(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metrics_module, "SERIES_LIMIT", 3)
        metrics = Metrics()
        metrics.messages_stored(message(f"T{number}", 1) for number in range(10))
        assert (await samples(metrics, topic=OVERFLOW))["rocketmq_messages_in_total"] == 7
        assert not await samples(metrics, topic="T3")


class TestRequests:
    async def test_latency_by_code(self) -> None:
        metrics = Metrics(NODE)
        metrics.request_done(RequestCode.SEND_MESSAGE_V2, ResponseCode.SUCCESS, 0.0005, 32)
        metrics.request_done(RequestCode.SEND_MESSAGE_V2, ResponseCode.SUCCESS, 0.004)
        labels = {"request_code": "send_message_v2", "response_code": "success", "protocol_type": "remoting"}
        prefix = "rocketmq_rpc_latency_milliseconds"
        assert (await samples(metrics, le="1.0", **labels))[f"{prefix}_bucket"] == 32
        assert (await samples(metrics, le="3.0", **labels))[f"{prefix}_bucket"] == 32
        assert (await samples(metrics, le="5.0", **labels))[f"{prefix}_bucket"] == 33
        assert (await samples(metrics, le="+Inf", **labels))[f"{prefix}_bucket"] == 33
        totals = await samples(metrics, is_long_polling="false", result="success", **labels, **NODE)
        assert totals[f"{prefix}_count"] == 33
        assert totals[f"{prefix}_sum"] == pytest.approx(20)

    async def test_invented_codes_share_one_series(self) -> None:
        metrics = Metrics()
        for code in (*range(70_000, 71_000), -1, -(2**31), 2**31 - 1):
            metrics.request_done(code, ResponseCode.REQUEST_CODE_NOT_SUPPORTED, 0.0)
        unknown = await samples(metrics, request_code="unknown")
        assert unknown["rocketmq_rpc_latency_milliseconds_count"] == 1003
        assert len(metrics._requests) == 1

    async def test_long_polls_are_apart(self) -> None:
        metrics = Metrics()
        metrics.request_done(RequestCode.PULL_MESSAGE, ResponseCode.PULL_NOT_FOUND, 15.0, long_polling=True)
        slow = await samples(metrics, is_long_polling="true", request_code="pull_message")
        assert slow["rocketmq_rpc_latency_milliseconds_sum"] == 15_000

    def test_every_code_has_a_series_of_its_own(self) -> None:
        metrics = Metrics()
        for request in RequestCode:
            for response in ResponseCode:
                metrics.request_done(request, response, 0.0)
        assert -1 not in metrics._requests
        assert len(metrics._requests) == len(set(RequestCode)) * len(set(ResponseCode))
        assert list(metrics.collect())


class TestSources:
    async def test_a_source_is_read_at_each_scrape(self) -> None:
        metrics = Metrics(NODE)
        offsets = {"A": 5.0}

        def read() -> Iterable[tuple[tuple[str], float]]:
            return [((topic,), offset) for topic, offset in offsets.items()]

        metrics.gauge_source("rocketmq_producer_offset", "Offset.", ["topic"], read, native=False)
        metrics.gauge_source("rocketmq_topic_number", "Topics.", [], lambda: [((), len(offsets))])
        metrics.counter_source("rocketmq_things_total", "Things.", [], lambda: [((), 9)])
        assert await samples(metrics, topic="A") == {"rocketmq_producer_offset": 5}
        assert {"rocketmq_topic_number": 1, "rocketmq_things_total": 9}.items() <= (
            await samples(metrics, **NODE)
        ).items()
        assert "rocketmq_producer_offset" not in await samples(metrics, **NODE)
        offsets.clear()
        assert await samples(metrics, topic="A") == {}

    async def test_process_figures_are_there(self) -> None:
        figures = await samples(Metrics())
        assert figures["process_resident_memory_bytes"] > 1 << 20
        assert figures["process_open_fds"] > 2
        assert figures["process_cpu_seconds_total"] > 0

    def test_a_registry_may_be_passed(self) -> None:
        registry = CollectorRegistry()
        metrics = Metrics()
        metrics.register(registry)
        metrics.messages_stored([message("A", 10)])
        labels = {"topic": "A", "message_type": "normal", "is_system": "false"}
        assert registry.get_sample_value("rocketmq_throughput_in_total", labels) == 10

    def test_two_do_not_interfere(self) -> None:
        one, two = Metrics(), Metrics()
        one.messages_stored([message("A", 1)])
        assert not two.stored


def test_counting_costs_less_than_a_microsecond() -> None:
    """The best of several runs, with room for a slow machine: 0.3 to 0.5 µs where this was written."""
    metrics = Metrics()
    batch = [message("TopicTest", 220) for _ in range(32)]
    send, success = int(RequestCode.SEND_MESSAGE_V2), int(ResponseCode.SUCCESS)

    def answered() -> None:
        metrics.request_done(send, success, 0.0002, 32)

    per_message = min(repeat(lambda: metrics.messages_stored(batch), number=200, repeat=5)) / 200 / 32
    per_batch = min(repeat(answered, number=2000, repeat=5)) / 2000
    assert per_message < 2e-6
    assert per_batch < 4e-6
