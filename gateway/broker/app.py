"""The broker as a whole: builds its parts and nests their lives.

Nesting is the order of stopping: the listeners end first, then the connections (with a moment to answer what waits for
a flush), then the services that the handlers lean on, last the store, which flushes what is left and closes.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import structlog
import trio

from gateway.broker.clients import ClientTable
from gateway.broker.delay import DelayTable
from gateway.broker.delivery import Delivery
from gateway.broker.gauges import register_gauges
from gateway.broker.groups import GroupTable
from gateway.broker.handlers import ROUTES, clients
from gateway.broker.incoming import IncomingMessages
from gateway.broker.locks import LockTable
from gateway.broker.names import TIMER_TOPIC, HeaderNames
from gateway.broker.offsets import OffsetTable
from gateway.broker.pulls import ParkedPulls
from gateway.broker.registration import Registration
from gateway.broker.replication import Replication
from gateway.broker.state import Broker
from gateway.broker.stats import BrokerStats
from gateway.broker.topics import TopicTable
from gateway.broker.traffichistory import SAMPLE_SECONDS, TrafficHistory
from gateway.broker.transactioncheck import TransactionCheck
from gateway.broker.transactions import HalfMessages
from gateway.config import BrokerOptions
from gateway.connection import Connection
from gateway.ha.locator import MasterLocator
from gateway.metrics import Metrics
from gateway.routing import Router
from gateway.scrape import open_metrics_listeners, serve_metrics
from gateway.server import ConnectionTable, open_listeners, raise_open_file_limit, serve_remoting
from gateway.services import background
from gateway.storage import Storage
from protocol.codes import RequestCode
from protocol.sendreply import SendReplyEncoder
from store.dispatch import DelayLevels
from store.engine import MessageStore
from store.options import BrokerRole, StoreOptions

log = structlog.get_logger(__name__)

FAST_PORT_REFUSES = frozenset({RequestCode.PULL_MESSAGE, RequestCode.LITE_PULL_MESSAGE})
CLIENT_SCAN_SECONDS = 10.0
SECOND = 1.0


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


async def serve_broker(
    options: BrokerOptions,
    store_options: StoreOptions,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs a broker until cancelled; reports its address once its ports accept and clients find it.

    Name servers that do not answer are waited for as in `Registration.announce`; whoever connects is served meanwhile.

    Raises StoreError if the store cannot be opened, OSError if a port is taken.
    """
    raise_open_file_limit()
    async with AsyncExitStack() as stack:
        listeners = await _listen(stack, options, options.listen_port)
        fast_listeners = await _listen(stack, options, options.listen_port - 2)
        is_master = store_options.broker_role is not BrokerRole.SLAVE
        ha_listeners = await _listen(stack, options, _ha_port(options, store_options)) if is_master else []
        metrics_listeners = await open_metrics_listeners(
            options.metrics_port, options.bind_address or None, is_default="metricsPort" not in options.explicit
        )
        for listener in metrics_listeners:
            await stack.enter_async_context(listener)
        store = MessageStore.open(store_options, now_ms=now_ms)
        try:
            if is_master and (timers := store.max_offset(TIMER_TOPIC, 0) - store.min_offset(TIMER_TOPIC, 0)):
                log.warning("timer_messages_not_delivered", topic=TIMER_TOPIC, messages=timers)
            broker = build_broker(options, store_options, store)
            await _serve(broker, listeners, fast_listeners, ha_listeners, metrics_listeners, task_status)
        finally:
            store.close()


async def _listen(stack: AsyncExitStack, options: BrokerOptions, port: int) -> list[trio.SocketListener]:
    """Listeners that close with the stack; every port is taken before the store is touched."""
    listeners = await open_listeners(port, options.bind_address or None, options.server_socket_backlog)
    for listener in listeners:
        await stack.enter_async_context(listener)
    return listeners


def _ha_port(options: BrokerOptions, store_options: StoreOptions) -> int:
    return store_options.ha_listen_port or options.listen_port + 1


def build_broker(options: BrokerOptions, store_options: StoreOptions, store: MessageStore) -> Broker:
    """A broker around an open store, with its tables as they are on disk."""
    config = Path(store_options.store_path_root_dir) / "config"
    topic_table = TopicTable(options, config / "topics.json", now_ms)
    group_table = GroupTable(options, config / "subscriptionGroup.json", now_ms)
    offset_table = OffsetTable(config / "consumerOffset.json", now_ms)
    delays = DelayTable(DelayLevels(store_options.message_delay_level), config / "delayOffset.json", now_ms)
    locator = MasterLocator(options.broker_name, options.namesrv_addr, fixed_ha_address=store_options.ha_master_address)
    ha_address = f"{options.broker_ip2}:{_ha_port(options, store_options)}"
    registration = Registration(
        options, topic_table, ha_address, answered=locator.answered, is_withheld=lambda: locator.refused
    )
    locator.register_again = registration.topic_changed
    pulls = ParkedPulls()
    storage = Storage(store, store_options, arrived=pulls.arrived)
    metrics = Metrics({"cluster": options.broker_cluster_name, "node_type": "broker", "node_id": options.broker_name})
    stats = BrokerStats(now_ms)
    if store_options.broker_role is BrokerRole.SLAVE:
        storage.also_tell(stats.messages_replicated)
    return Broker(
        options=options,
        store_options=store_options,
        store=store,
        storage=storage,
        topics=topic_table,
        groups=group_table,
        offsets=offset_table,
        delays=delays,
        half_messages=HalfMessages(),
        clients=ClientTable(now_ms),
        locks=LockTable(now_ms),
        pulls=pulls,
        incoming=IncomingMessages(
            options, store_options, topic_table, group_table, now_ms, registration.topic_changed, delays
        ),
        registration=registration,
        replication=Replication(options, store_options, storage, locator, topic_table, group_table, offset_table),
        send_replies=SendReplyEncoder(options.region_id, options.trace_on),
        metrics=metrics,
        stats=stats,
        traffic=TrafficHistory(metrics, stats, options.broker_cluster_name, now_ms),
        connections=ConnectionTable(options.server_channel_max_idle_time_seconds),
        now_ms=now_ms,
    )


async def _serve(
    broker: Broker,
    listeners: list[trio.SocketListener],
    fast_listeners: list[trio.SocketListener],
    ha_listeners: list[trio.SocketListener],
    metrics_listeners: list[trio.SocketListener],
    task_status: trio.TaskStatus[str],
) -> None:
    names = HeaderNames(broker.topics, broker.groups)
    make_router = partial(Router, broker, ROUTES, observe=broker.metrics.request_done, check=names.check)
    router, fast_router = make_router(), make_router(refused_codes=FAST_PORT_REFUSES)

    def accepted(connection: Connection) -> None:
        connection.on_close(partial(clients.connection_closed, broker))

    serve = partial(serve_remoting, table=broker.connections, accepted=accepted)
    storage, options = broker.storage, broker.options
    async with background(storage.flush_forever, storage.maintain_forever, storage.expire_forever):
        try:
            async with (
                background(*broker.replication.services(ha_listeners)),
                background(
                    partial(_save_tables, broker),
                    partial(_save_offsets, broker),
                    partial(_scan_clients, broker),
                    partial(_sample_stats, broker),
                    partial(_sample_traffic, broker),
                    broker.pulls.expire_forever,
                    broker.connections.sweep_forever,
                    *_master_services(broker),
                ),
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(serve, listeners, router)
                nursery.start_soon(serve, fast_listeners, fast_router)
                if metrics_listeners:
                    register_gauges(broker.metrics, broker)
                    nursery.start_soon(serve_metrics, metrics_listeners, broker.metrics.exposition)
                nursery.start_soon(broker.registration.run)
                await broker.registration.announce()
                task_status.started(f"{options.broker_ip1}:{options.listen_port}")
                await trio.sleep_forever()
        finally:  # the services that write these files in a thread have ended
            for table in (broker.topics, broker.groups, broker.offsets, broker.delays):
                table.file.save_if_dirty()


def _master_services(broker: Broker) -> list[Callable[[], Awaitable[Any]]]:
    """What a slave leaves to its master."""
    if broker.store_options.broker_role is BrokerRole.SLAVE:
        return []
    delivery, check = Delivery(broker), TransactionCheck(broker)
    return [delivery.run, delivery.save_forever, check.run, check.note_forever]


async def _save_tables(broker: Broker) -> NoReturn:
    while True:
        await trio.sleep(SECOND)
        broker.topics.file.save_if_dirty()
        broker.groups.file.save_if_dirty()


async def _save_offsets(broker: Broker) -> NoReturn:
    while True:
        await trio.sleep(broker.options.flush_consumer_offset_interval / 1000)
        job = broker.offsets.file.begin_save()
        if job is not None:
            broker.offsets.file.save_ended(await broker.storage.write_file(job.run))


async def _scan_clients(broker: Broker) -> NoReturn:
    while True:
        await trio.sleep(CLIENT_SCAN_SECONDS)
        clients.expire_silent_clients(broker)
        broker.locks.expire()


async def _sample_stats(broker: Broker) -> NoReturn:
    while True:
        await trio.sleep(SECOND)
        broker.stats.sample()


async def _sample_traffic(broker: Broker) -> NoReturn:
    while True:
        await trio.sleep(SAMPLE_SECONDS)
        broker.traffic.sample()
