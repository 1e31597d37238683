"""A running broker's configuration and figures, as tools read them, and housekeeping that an operator asks for.

A change of configuration happens wholly or not at all. It never moves a path, a port or an identity, nor the name
servers (a wire that could, has handed over official brokers), and is written to the file that was given with -c, so
that it lasts over a restart; without a file it lasts until then.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import structlog

from gateway.broker.handlers.admin import delete_in_slices
from gateway.broker.handlers.runtimeinfo import runtime_info
from gateway.broker.state import Broker
from gateway.config import broker_properties
from gateway.propertiesfile import save_properties
from gateway.routing import Call, Refused, Reply, Routes
from protocol.bodies import DataVersion, KVTable
from protocol.codes import ResponseCode
from protocol.options import OptionError, properties_text
from protocol.requests.runtime import (
    CleanExpiredConsumequeue,
    ConfigReply,
    DeleteExpiredCommitlog,
    GetBrokerConfig,
    GetBrokerRuntimeInfo,
    UpdateBrokerConfig,
    ViewBrokerStatsData,
)

log = structlog.get_logger(__name__)
routes = Routes()

FIXED_BY_WIRE = frozenset({"namesrvAddr"})
PERMISSION_KEY = "brokerPermission"
ROLE_KEY = "brokerRole"


@routes.handle
def get_broker_config(broker: Broker, call: Call[GetBrokerConfig]) -> Reply:
    """Every key with its value; its version is that of the start, as a change is not counted."""
    version = DataVersion(counter=0, timestamp=broker.stats.started_ms)
    text = properties_text(broker_properties(broker.options, broker.store_options))
    return Reply(ConfigReply(version=version.encode().decode()), body=text.encode())


@routes.handle
def update_broker_config(broker: Broker, call: Call[UpdateBrokerConfig]) -> None:
    """Takes over new values; keys that no broker has are ignored and logged."""
    given = _properties(call.body)
    if not FIXED_BY_WIRE.isdisjoint(given):
        raise Refused(ResponseCode.NO_PERMISSION, "Can not update config in black list.")
    before = _values(broker)
    changed = _change(broker, given)
    after = _values(broker)
    try:
        if changed and broker.options.source:
            save_properties(Path(broker.options.source), {key: after[key] for key in changed})
    except OSError as error:
        _change(broker, {key: before[key] for key in changed})
        remark = f"not changed, because {broker.options.source} cannot be written: {error.strerror or error}"
        raise Refused(ResponseCode.SYSTEM_ERROR, remark) from None
    log.info("config_changed", **{key: after[key] for key in changed}, by=call.connection.remote_address)
    known = broker_properties(broker.options, broker.store_options).keys()
    if unknown := sorted(given.keys() - known):
        log.warning("unknown_config_keys", keys=unknown, by=call.connection.remote_address)
    if idle := sorted(given.keys() & known - after.keys()):
        log.warning("config_keys_without_effect", keys=idle, by=call.connection.remote_address)
    if ROLE_KEY in changed and broker.replication.master is not None:
        broker.replication.master.role_changed()
    if PERMISSION_KEY in changed:
        broker.topics.next_version()
        broker.registration.topic_changed()


def _values(broker: Broker) -> dict[str, str]:
    return broker.options.to_properties() | broker.store_options.to_properties()


def _change(broker: Broker, given: Mapping[str, str]) -> list[str]:
    """Changes both kinds of options or neither; returns the keys whose value is another one now."""
    before = broker.store_options.to_properties()
    try:
        changed = broker.store_options.change(given)
        try:
            return changed + broker.options.change(given)
        except OptionError:
            broker.store_options.change({key: before[key] for key in changed})
            raise
    except OptionError as error:
        raise Refused(ResponseCode.SYSTEM_ERROR, str(error)) from None


def _properties(text: bytes) -> dict[str, str]:
    import javaproperties  # takes as long to import as all else that a start needs

    try:
        return dict(javaproperties.loads(text.decode()))
    except (UnicodeDecodeError, javaproperties.InvalidUEscapeError):
        raise Refused(ResponseCode.SYSTEM_ERROR, "string2Properties error") from None


@routes.handle
async def get_broker_runtime_info(broker: Broker, call: Call[GetBrokerRuntimeInfo]) -> Reply:
    """The figures that consoles and rocketmq-exporter show."""
    first = await broker.storage.read_cold(partial(broker.store.message_at, broker.store.start_offset))
    info = runtime_info(broker, -1 if first is None else first.store_timestamp)
    return Reply(body=KVTable(table=info).encode())


@routes.handle
def view_broker_stats_data(broker: Broker, call: Call[ViewBrokerStatsData]) -> Reply:
    """One statistic of one topic, group or broker over the last minute, hour and day."""
    name, key = call.header.stats_name, call.header.stats_key
    data = broker.traffic.statistic(name, key)
    if data is None:
        raise Refused(ResponseCode.SYSTEM_ERROR, f"The stats <{name}> <{key}> not exist")
    return Reply(body=data.encode())


@routes.handle
async def clean_expired_consumequeue(broker: Broker, call: Call[CleanExpiredConsumequeue]) -> None:
    """Removes the queues whose messages are all deleted; what comes to such a queue later begins at 0 again."""
    queues = await delete_in_slices(broker.store.delete_expired_queues)
    log.info("expired_queues_removed", queues=queues, by=call.connection.remote_address)


@routes.handle
def delete_expired_commitlog(broker: Broker, call: Call[DeleteExpiredCommitlog]) -> None:
    """Lets the next rounds of cleaning delete expired files at any hour; the answer does not wait for that."""
    broker.store.request_cleaning()
    log.info("cleaning_requested", by=call.connection.remote_address)
