"""The name server as a whole: builds its parts and nests their lives.

Nesting is the order of stopping: the listener ends first, then the connections, then the services that the handlers
lean on; a change of the KV configuration that is not on disk yet is written last.
"""

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import NoReturn

import structlog
import trio

from gateway.config import NamesrvOptions
from gateway.connection import Connection
from gateway.metrics import Metrics
from gateway.namesrv import handlers
from gateway.namesrv.kvconfig import KvConfig
from gateway.namesrv.routes import RouteTable
from gateway.namesrv.state import Namesrv
from gateway.propertiesfile import save_properties
from gateway.routing import Router
from gateway.scrape import open_metrics_listeners, serve_metrics
from gateway.server import ConnectionTable, open_listeners, port_of, raise_open_file_limit, serve_remoting
from gateway.services import background

log = structlog.get_logger(__name__)

LATE_SECONDS = 5.0
ALL_ADDRESSES = frozenset({"", "0.0.0.0", "::"})


async def serve_namesrv(
    options: NamesrvOptions, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Runs a name server until cancelled; reports `ip:port` once its port accepts.

    Raises OSError if a port is taken or the KV configuration cannot be read.
    """
    raise_open_file_limit()
    async with AsyncExitStack() as stack:
        listeners = await _open_listeners(options)
        for listener in listeners:
            await stack.enter_async_context(listener)
        kv = KvConfig.load(Path(options.kv_config_path))
        await _serve(Namesrv(options, RouteTable(_clock_ms), kv, save_properties), listeners, task_status)


async def _open_listeners(options: NamesrvOptions) -> list[trio.SocketListener]:
    """IPv4 and IPv6 for all addresses; any free port is found for IPv4 alone, as the two would get different ones."""
    host = options.bind_address
    every = host in ALL_ADDRESSES and options.listen_port != 0
    return await open_listeners(options.listen_port, None if every else host)


def _clock_ms() -> int:
    """Milliseconds on the clock that nobody sets: a corrected time of day must not expire every broker."""
    return int(trio.current_time() * 1000)


async def _serve(namesrv: Namesrv, listeners: list[trio.SocketListener], task_status: trio.TaskStatus[str]) -> None:
    options = namesrv.options
    address = f"{options.bind_address}:{port_of(listeners[0])}"
    connections = ConnectionTable(options.server_channel_max_idle_time_seconds)
    metrics = Metrics({"node_type": "namesrv", "node_id": address})
    _add_gauges(metrics, namesrv, connections)
    router = Router(namesrv, [handlers.routes], observe=metrics.request_done)

    def accepted(connection: Connection) -> None:
        connection.on_close(namesrv.connection_closed)

    try:
        async with (
            background(namesrv.kv.save_forever, connections.sweep_forever, partial(expire_forever, namesrv)),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(partial(serve_remoting, listeners, router, connections, accepted=accepted))
            metrics_listeners = await open_metrics_listeners(
                options.metrics_port, options.bind_address or None, is_default="metricsPort" not in options.explicit
            )
            if metrics_listeners:
                nursery.start_soon(serve_metrics, metrics_listeners, metrics.exposition)
            task_status.started(address)
            await trio.sleep_forever()
    finally:
        namesrv.kv.save_step()


async def expire_forever(namesrv: Namesrv) -> NoReturn:
    """Looks for silent brokers.

    A look that comes late is left out: then it was this process that stood still (SIGSTOP, a machine that was put to
    sleep), and what its brokers have said meanwhile waits in the sockets to be read first.
    """
    while True:
        pause = namesrv.options.scan_not_active_broker_interval / 1000
        due = trio.current_time() + pause
        await trio.sleep_until(due)
        late = trio.current_time() - due
        if late > LATE_SECONDS:
            log.warning("process_stood_still", seconds=round(late, 1))
        else:
            namesrv.expire()


def _add_gauges(metrics: Metrics, namesrv: Namesrv, connections: ConnectionTable) -> None:
    routes = namesrv.routes
    metrics.gauge_source(
        "rocketmq_namesrv_brokers", "Brokers that are registered.", (), lambda: [((), routes.counts()[0])]
    )
    metrics.gauge_source("rocketmq_namesrv_topics", "Topics with a route.", (), lambda: [((), routes.counts()[1])])
    metrics.gauge_source("rocketmq_namesrv_connections", "Open connections.", (), lambda: [((), len(connections))])
