"""What a PocketMQ slave asks its master before it follows: what the master holds, and to be let in."""

from gateway.broker.state import Broker
from gateway.ha.master import HaMaster
from gateway.routing import Call, Refused, Routes
from protocol.codes import ResponseCode
from protocol.requests.replication import (
    JoinReplication,
    JoinReplicationReply,
    QueryReplication,
    QueryReplicationReply,
)

routes = Routes()


@routes.handle
async def query_replication(broker: Broker, call: Call[QueryReplication]) -> QueryReplicationReply:
    """Names, file size, the range of the log, and the checksum of a part of it."""
    return await _master(broker).query(call.header)


@routes.handle
async def join_replication(broker: Broker, call: Call[JoinReplication]) -> JoinReplicationReply:
    """A ticket for the HA port, if the slave's log is a part of this one."""
    return await _master(broker).join(call.header, call.connection.remote_address)


def _master(broker: Broker) -> HaMaster:
    master = broker.replication.master
    if master is None:
        # BUSY: the asker comes again, and whom it asks may be the master then.
        raise Refused(ResponseCode.SYSTEM_BUSY, f"{broker.options.broker_name} is a slave here and has no slaves")
    return master
