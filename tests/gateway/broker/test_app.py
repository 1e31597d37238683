"""The broker as a whole, with real sockets: what its ports serve, what it keeps over a restart, how it ends."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from gateway.broker.app import serve_broker
from gateway.config import BrokerOptions, NamesrvOptions
from gateway.namesrv.app import serve_namesrv
from protocol.codes import ResponseCode
from store.options import FlushDiskType
from tests.gateway.hostile.rig import (
    CREATE_TOPIC,
    GROUP,
    PULL,
    SEND_V2,
    TOPIC,
    TOPIC_FIELDS,
    Client,
    broker_options,
    free_ports,
    pull_fields,
    send_fields,
    store_options,
)

COMMIT_OFFSET, QUERY_OFFSET, GET_CLUSTER_INFO = 15, 14, 106
OFFSET_FIELDS = {"consumerGroup": "g", "topic": TOPIC, "queueId": 0}
SUSPEND, SUBSCRIPTION = 2, 4
NODE = {"DefaultCluster", "broker", "broker-a"}


@asynccontextmanager
async def broker(directory: Path, options: BrokerOptions, **store: Any) -> AsyncIterator[Client]:
    """A broker for the length of a block, and a connection to it."""
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_broker, options, store_options(directory, **store)))
            async with connect(options.listen_port) as client:
                yield client
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Client]:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        yield Client(stream)


async def test_fast_port_serves_everything_but_pulls(tmp_path: Path) -> None:
    options = broker_options()
    async with broker(tmp_path, options), connect(options.listen_port - 2) as fast:
        assert (await fast.ask(CREATE_TOPIC, TOPIC_FIELDS)).code == ResponseCode.SUCCESS
        assert (await fast.ask(SEND_V2, send_fields(), b"x")).code == ResponseCode.SUCCESS
        assert (await fast.ask(PULL, pull_fields())).code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED


async def test_a_master_warns_of_timer_messages_that_nobody_will_deliver(tmp_path: Path) -> None:
    options = broker_options()
    async with broker(tmp_path, options) as client:
        assert (await client.ask(SEND_V2, send_fields(b="rmq_sys_wheel_timer"), b"x")).code == ResponseCode.SUCCESS
    with capture_logs() as logs:
        async with broker(tmp_path, options):
            pass
    (warning,) = [entry for entry in logs if entry["event"] == "timer_messages_not_delivered"]
    assert warning["messages"] == 1


async def test_a_broker_that_has_started_is_known_to_its_name_server(tmp_path: Path) -> None:
    options = NamesrvOptions(
        listen_port=0,
        metrics_port=0,
        bind_address="127.0.0.1",
        kv_config_path=str(tmp_path / "kv.json"),
        config_store_path=str(tmp_path / "namesrv.properties"),
    )
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_namesrv, options)
        namesrv_port = int(address.rpartition(":")[2])
        async with broker(tmp_path, broker_options(namesrv_addr=address)), connect(namesrv_port) as namesrv:
            assert b"broker-a" in (await namesrv.ask(GET_CLUSTER_INFO)).body
        nursery.cancel_scope.cancel()


async def test_restart_keeps_messages_topics_and_offsets(tmp_path: Path) -> None:
    options = broker_options(auto_create_topic_enable=False)
    async with broker(tmp_path, options) as client:
        await client.ask(CREATE_TOPIC, TOPIC_FIELDS)
        for number in range(3):
            await client.ask(SEND_V2, send_fields(), b"body %d" % number)
        await client.ask(COMMIT_OFFSET, OFFSET_FIELDS | {"commitOffset": 2})
    async with broker(tmp_path, options) as client:
        pulled = await client.ask(PULL, pull_fields())
        assert (pulled.code, pulled.fields["nextBeginOffset"]) == (ResponseCode.SUCCESS, "3")
        assert all(b"body %d" % number in pulled.body for number in range(3))
        assert (await client.ask(QUERY_OFFSET, OFFSET_FIELDS)).fields["offset"] == "2"
        sent = await client.ask(SEND_V2, send_fields(), b"another")
        assert sent.fields["queueOffset"] == "3"


@pytest.mark.parametrize("flush", list(FlushDiskType))
async def test_parked_pull_is_answered_by_the_arrival(tmp_path: Path, flush: FlushDiskType) -> None:
    options = broker_options()
    async with broker(tmp_path, options, flush_disk_type=flush) as client, connect(options.listen_port) as other:
        await client.ask(CREATE_TOPIC, TOPIC_FIELDS)
        answers: list[Any] = []

        async def pull() -> None:
            fields = pull_fields(sysFlag=SUSPEND | SUBSCRIPTION, suspendTimeoutMillis=20_000)
            answers.append(await other.ask(PULL, fields))

        with trio.fail_after(5):  # far below the pull's own 20 s
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pull)
                await trio.testing.wait_all_tasks_blocked(0.02)
                assert (await client.ask(SEND_V2, send_fields(), b"wake up")).code == ResponseCode.SUCCESS
        assert answers[0].code == ResponseCode.SUCCESS
        assert b"wake up" in answers[0].body


async def test_metrics_tell_what_happened(tmp_path: Path) -> None:
    options = broker_options(metrics_port=free_ports())
    async with broker(tmp_path, options) as client:
        await client.ask(CREATE_TOPIC, TOPIC_FIELDS)
        for _ in range(3):
            await client.ask(SEND_V2, send_fields(), b"body")
        await client.ask(PULL, pull_fields())
        await client.ask(COMMIT_OFFSET, OFFSET_FIELDS | {"commitOffset": 2})
        stream = await trio.open_tcp_stream("127.0.0.1", options.metrics_port)
        async with stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            text = b"".join([part async for part in stream]).decode()
    body = text.partition("\r\n\r\n")[2]
    samples = {
        (sample.name, *sorted(set(sample.labels.values()) - NODE)): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }
    assert samples["rocketmq_consumer_lag_messages", "false", "g", TOPIC] == 1
    assert samples["rocketmq_producer_offset", TOPIC] == 3
    assert samples["rocketmq_connections",] == 1
    assert samples["rocketmq_storage_writable",] == 1
    assert samples["rocketmq_messages_in_total", "false", TOPIC, "normal"] == 3
    assert samples["rocketmq_messages_out_total", "false", TOPIC, GROUP] == 3
    assert samples["process_resident_memory_bytes",] > 0


@pytest.mark.parametrize("offset", [0, -2, 1])
async def test_taken_port_ends_the_start_before_the_store_is_touched(tmp_path: Path, offset: int) -> None:
    options = broker_options()
    port = options.listen_port + offset
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(OSError, match=f"port {port} is taken"):
            await serve_broker(options, store_options(tmp_path))
    assert os.listdir(tmp_path) == []


async def test_broker_takes_no_sends_before_its_start_time(tmp_path: Path) -> None:
    options = broker_options(start_accept_send_request_time_stamp=2**62)
    async with broker(tmp_path, options) as client:
        await client.ask(CREATE_TOPIC, TOPIC_FIELDS)
        refused = await client.ask(SEND_V2, send_fields(), b"early")
        assert refused.code == ResponseCode.SYSTEM_ERROR
        assert (await client.ask(PULL, pull_fields())).code == ResponseCode.PULL_NOT_FOUND
