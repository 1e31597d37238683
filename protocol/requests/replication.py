"""What a PocketMQ slave asks its master before it opens the HA link: our own two requests.

The HA wire has no room for names or checksums (spec/ha.md 5), so they go over remoting. An official master answers
REQUEST_CODE_NOT_SUPPORTED, and the slave then compares what official requests tell. The ticket of a join is the first
thing that is sent on the HA connection, as a report with a negative offset, which official slaves never send.
"""

from protocol.codes import RequestCode
from protocol.header import Header, Int32, Int64, request


class QueryReplicationReply(Header):
    """Who the master is and which part of the log it has, and the CRC-32 of the bytes that were asked about."""

    cluster_name: str
    broker_name: str
    file_size: Int64
    start_offset: Int64
    end_offset: Int64
    checksum: Int64 = 0


@request(RequestCode.QUERY_REPLICATION, reply=QueryReplicationReply)
class QueryReplication(Header):
    """`length` commitlog bytes from `offset` on are to be summed; 0: only the facts are wanted."""

    offset: Int64 = 0
    length: Int32 = 0


class JoinReplicationReply(Header):
    """The master will send from `begin_offset` on to whoever shows the ticket.

    `eager`: its producers wait for the slave, which is to report every time that it has more.
    """

    ticket: Int64
    begin_offset: Int64
    eager: bool = True


@request(RequestCode.JOIN_REPLICATION, reply=JoinReplicationReply)
class JoinReplication(Header):
    """The slave's log is [start_offset, end_offset); `checksum` is the CRC-32 of [check_offset, end_offset).

    An empty log has start_offset == end_offset; `whole_log` asks for all that the master has then. `address` is where
    the slave's clients find it (brokerIP1 and listenPort), which tells two slaves with one brokerId apart.
    """

    cluster_name: str
    broker_name: str
    broker_id: Int64
    file_size: Int64
    start_offset: Int64
    end_offset: Int64
    check_offset: Int64
    checksum: Int64
    whole_log: bool = False
    address: str = ""
