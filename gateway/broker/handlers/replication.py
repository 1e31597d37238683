"""Replication as others ask about it: a PocketMQ slave before it follows its master, and the 5.x tools."""

from gateway.broker.state import Broker
from gateway.ha.master import HaMaster
from gateway.ha.progress import Replica
from gateway.routing import Call, Refused, Reply, Routes
from protocol.bodies.runtime import HAClientRuntimeInfo, HAConnectionRuntimeInfo, HARuntimeInfo
from protocol.codes import ResponseCode
from protocol.requests.replication import (
    JoinReplication,
    JoinReplicationReply,
    QueryReplication,
    QueryReplicationReply,
)
from protocol.requests.runtime import GetBrokerHaStatus

routes = Routes()


@routes.handle
async def query_replication(broker: Broker, call: Call[QueryReplication]) -> QueryReplicationReply:
    """Names, file size, the range of the log, and the checksum of a part of it."""
    return await _master(broker).query(call.header)


@routes.handle
async def join_replication(broker: Broker, call: Call[JoinReplication]) -> JoinReplicationReply:
    """A ticket for the HA port, if the slave's log is a part of this one."""
    return await _master(broker).join(call.header, call.connection.remote_address)


@routes.handle
def get_broker_ha_status(broker: Broker, call: Call[GetBrokerHaStatus]) -> Reply:
    """Who replicates how far, as mqadmin 5.x shows it. Rates are not measured and are 0."""
    master, slave = broker.replication.master, broker.replication.slave
    end = broker.store.end_offset
    if master is not None:
        info = HARuntimeInfo(
            master=True,
            master_commit_log_max_offset=end,
            in_sync_slave_nums=sum(_in_sync(broker, replica) for replica in master.progress.replicas),
            ha_connection_info=[
                HAConnectionRuntimeInfo(
                    addr=replica.name,
                    diff=end - replica.acked,
                    in_sync=_in_sync(broker, replica),
                    slave_ack_offset=replica.acked,
                    transfer_from_where=replica.sent,
                )
                for replica in master.progress.replicas
            ],
        )
    else:
        place = broker.replication.locator.place
        info = HARuntimeInfo(
            ha_client_runtime_info=HAClientRuntimeInfo(
                activated=slave is not None and slave.locator.linked,
                master_addr=place.ha_address if place is not None else None,
                max_offset=end,
            )
        )
    return Reply(body=info.encode())


def _in_sync(broker: Broker, replica: Replica) -> bool:
    return broker.store.end_offset - replica.acked < broker.store_options.ha_slave_fallbehind_max


def _master(broker: Broker) -> HaMaster:
    master = broker.replication.master
    if master is None:
        # BUSY: the asker comes again, and whom it asks may be the master then.
        raise Refused(ResponseCode.SYSTEM_BUSY, f"{broker.options.broker_name} is a slave here and has no slaves")
    return master
