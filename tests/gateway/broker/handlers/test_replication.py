"""What others ask about replication: a slave that wants to follow, and the 5.x tools."""

from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from gateway.ha.progress import Replica
from protocol.bodies import KVTable
from protocol.bodies.runtime import HARuntimeInfo
from protocol.codes import RequestCode, ResponseCode
from protocol.requests.replication import (
    JoinReplication,
    JoinReplicationReply,
    QueryReplication,
    QueryReplicationReply,
)
from protocol.requests.routes import RegisterBrokerReply
from store.options import BrokerRole
from tests.gateway.broker.handlers.rig import SMALL_FILES, Rig

Make = Callable[..., Rig]
SLAVE = {"broker_role": BrokerRole.SLAVE}


def join(data: bytes, **changes: object) -> JoinReplication:
    given = {
        "cluster_name": "DefaultCluster",
        "broker_name": "broker-a",
        "broker_id": 1,
        "file_size": SMALL_FILES["mapped_file_size_commit_log"],
        "start_offset": 0,
        "end_offset": len(data),
        "check_offset": 0,
        "checksum": crc32(data),
        **changes,
    }
    return JoinReplication(**given)  # type: ignore[arg-type]


async def test_a_master_tells_what_it_holds(rig: Rig) -> None:
    rig.store_messages("TopicTest", 0, 3)
    store = rig.broker.store
    data = store.read_raw(0, 1000)
    answer = await rig.ask(RequestCode.QUERY_REPLICATION, QueryReplication(offset=10, length=50))
    facts = answer.typed_header(QueryReplicationReply)
    assert (facts.cluster_name, facts.broker_name) == ("DefaultCluster", "broker-a")
    assert (facts.start_offset, facts.end_offset) == (0, store.end_offset)
    assert facts.checksum == crc32(data[10:60])


async def test_a_slave_with_the_same_bytes_is_let_in_and_another_is_not(rig: Rig) -> None:
    rig.store_messages("TopicTest", 0, 3)
    data = rig.broker.store.read_raw(0, 1000)
    answer = await rig.ask(RequestCode.JOIN_REPLICATION, join(data[:100]))
    reply = answer.typed_header(JoinReplicationReply)
    assert reply.ticket < 0
    assert reply.begin_offset == 100
    assert not reply.eager  # an ASYNC_MASTER's producers do not wait
    answer = await rig.ask(RequestCode.JOIN_REPLICATION, join(data[:100], checksum=1))
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert "different masters" in (answer.remark or "")


async def test_a_slave_has_no_slaves(make_rig: Make) -> None:
    rig = make_rig(store=SLAVE, broker_id=1)
    for code, header in (
        (RequestCode.QUERY_REPLICATION, QueryReplication()),
        (RequestCode.JOIN_REPLICATION, join(b"")),
    ):
        answer = await rig.ask(code, header)
        assert answer.code == ResponseCode.SYSTEM_BUSY


async def test_tools_see_how_far_each_slave_is(make_rig: Make) -> None:
    rig = make_rig(store={"ha_slave_fallbehind_max": 200})
    assert rig.broker.replication.master is not None
    rig.store_messages("TopicTest", 0, 3)
    end = rig.broker.store.end_offset
    for name, offset in (("near", end - 100), ("far", end - 200)):
        rig.broker.replication.master.progress.attach(Replica(name, name, offset))
    info = HARuntimeInfo.decode((await rig.ask(RequestCode.GET_BROKER_HA_STATUS)).body)
    assert info.master
    assert info.master_commit_log_max_offset == end
    assert info.in_sync_slave_nums == 1
    assert [(slave.addr, slave.diff, slave.in_sync) for slave in info.ha_connection_info] == [
        ("near", 100, True),
        ("far", 200, False),
    ]


async def test_tools_see_what_a_slave_has_got(make_rig: Make, tmp_path: Path) -> None:
    master = make_rig()
    master.store_messages("TopicTest", 0, 3)
    data = master.broker.store.read_raw(0, 1000)
    own = {name: str(tmp_path / name) for name in ("store_path_root_dir", "store_path_commit_log")}
    slave = make_rig(store=SLAVE | own, broker_id=1)
    slave.broker.storage.append_raw(0, data)
    slave.broker.storage.dispatch(10)
    figures = KVTable.decode((await slave.ask(RequestCode.GET_BROKER_RUNTIME_INFO)).body).table
    assert (figures["putMessageTimesTotal"], figures["putMessageSizeTotal"]) == ("3", str(len(data)))
    assert figures["brokerActive"] == "false"


async def test_tools_see_whom_a_slave_follows(make_rig: Make) -> None:
    rig = make_rig(store=SLAVE, broker_id=1)
    rig.broker.replication.locator.answered("ns", RegisterBrokerReply(ha_server_addr="10.0.0.2:10912", master_addr="x"))
    info = HARuntimeInfo.decode((await rig.ask(RequestCode.GET_BROKER_HA_STATUS)).body)
    assert not info.master
    assert info.ha_client_runtime_info.master_addr == "10.0.0.2:10912"
    assert not info.ha_client_runtime_info.activated
