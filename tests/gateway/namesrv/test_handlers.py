"""The name server's answers, request by request: code, remark, header fields and body as clients and tools read them.

Requests pass through the real router; what is missing to a server is the socket.
"""

import json
import zlib
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.namesrv import handlers
from gateway.namesrv.kvconfig import MAX_CHARACTERS, ORDER_TOPIC_CONFIG
from protocol.bodies import KVTable, RegisterBrokerBody, TopicTableBody, crc32
from protocol.codes import RequestCode as Code
from protocol.codes import ResponseCode
from protocol.command import Command
from tests.gateway.namesrv.samples import FakeConnection, Server, topic, version

OLD = 317  # Go clients, and everything before 4.9.4


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def fields(name: str = "broker-a", broker_id: int = 0, cluster: str = "C", **others: object) -> dict[str, object]:
    return {
        "brokerName": name,
        "brokerAddr": f"{name}-{broker_id}:10911",
        "clusterName": cluster,
        "haServerAddr": f"{name}-{broker_id}:10912",
        "brokerId": broker_id,
        **others,
    }


def body(*topics: str, counter: int = 1, flags: int = 0) -> RegisterBrokerBody:
    table = {name: topic(name, flags=flags) for name in topics}
    return RegisterBrokerBody(
        topic_config_serialize_wrapper=TopicTableBody(data_version=version(counter), topic_config_table=table)
    )


def register(server: Server, *topics: str, name: str = "broker-a", broker_id: int = 0, cluster: str = "C") -> Command:
    answer = server.ask(Code.REGISTER_BROKER, fields(name, broker_id, cluster), body(*topics).encode())
    assert answer.code == ResponseCode.SUCCESS
    return answer


def refusal(answer: Command) -> tuple[int, str | None]:
    assert answer.body == b""
    return answer.code, answer.remark


# ---- what is served


def test_every_code_of_the_specification_is_served() -> None:
    """4.9.4's twenty codes and the three that 5.3.3 adds; anything else gets REQUEST_CODE_NOT_SUPPORTED."""
    assert set(handlers.routes.handlers) == {
        *(100, 101, 102, 103, 104, 105, 106, 205, 206, 216, 217, 219, 224),
        *(304, 311, 312, 313, 318, 319, 322, 327, 901, 904),
    }


def test_unknown_codes_are_answered(server: Server) -> None:
    """Official 4.9.4 keeps silent and lets the client run into its timeout."""
    answer = server.ask(9999)
    assert refusal(answer) == (ResponseCode.REQUEST_CODE_NOT_SUPPORTED, " request type 9999 not supported")


@pytest.mark.parametrize(
    ("code", "field"),
    [
        *((code, "brokerName") for code in (103, 104, 205, 322, 327)),
        *((code, "topic") for code in (105, 216, 217)),
        *((code, "namespace") for code in (100, 101, 102, 219)),
        *((code, "clusterName") for code in (901, 904)),
        (224, "cluster"),
    ],
)
def test_a_missing_field_is_named(server: Server, code: int, field: str) -> None:
    """The request fails, and its remark tells which field it was."""
    answer = server.ask(code)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert field in (answer.remark or "")


# ---- registration


def test_registering_and_asking(server: Server) -> None:
    """A master's answer has no fields; its topics have routes from now on."""
    answer = register(server, "T", "U")
    assert (answer.fields, answer.body) == ({}, b"")
    route = json.loads(server.ask(Code.GET_ROUTEINFO_BY_TOPIC, {"topic": "T"}).body)
    assert route == {
        "brokerDatas": [{"brokerAddrs": {"0": "broker-a-0:10911"}, "brokerName": "broker-a", "cluster": "C"}],
        "filterServerTable": {},
        "queueDatas": [
            {"brokerName": "broker-a", "perm": 6, "readQueueNums": 4, "topicSysFlag": 0, "writeQueueNums": 4}
        ],
    }


def test_a_slave_is_told_its_master(server: Server) -> None:
    """It follows haServerAddr and copies metadata from masterAddr."""
    register(server, "T", "U")
    answer = register(server, "T", "U", broker_id=1)
    assert answer.fields == {"haServerAddr": "broker-a-0:10912", "masterAddr": "broker-a-0:10911"}


def test_order_configuration_goes_to_brokers(server: Server) -> None:
    """A broker marks the topics that stand in it as ordered."""
    server.namesrv.kv.put(ORDER_TOPIC_CONFIG, "T", "broker-a:4")
    assert KVTable.decode(register(server, "T", "U").body).table == {"T": "broker-a:4"}


def test_a_compressed_registration(server: Server) -> None:
    """compressed=true: the checksum covers the bytes as sent."""
    data = body("T", "U").encode(compressed=True)
    answer = server.ask(Code.REGISTER_BROKER, fields(compressed="true", bodyCrc32=crc32(data)), data)
    assert answer.code == ResponseCode.SUCCESS
    assert server.namesrv.routes.topics() == ["T", "U"]


def test_a_wrong_checksum_is_refused(server: Server) -> None:
    """The official words, and nothing is registered."""
    answer = server.ask(Code.REGISTER_BROKER, fields(bodyCrc32=1), body("T", "U").encode())
    assert refusal(answer) == (ResponseCode.SYSTEM_ERROR, "crc32 not match")
    assert server.namesrv.routes.brokers() == {}


@pytest.mark.parametrize(
    ("data", "compressed"),
    [
        (b"{", False),
        (b"[" * 100_000, False),
        (b'{"topicConfigSerializeWrapper":{"topicConfigTable":{"T":{"perm":"x"}}}}', False),
        (b'{"topicConfigSerializeWrapper":7}', False),
        (b"\xff\xfe", False),
        (b"no zlib", True),
        (zlib.compress(b"\x00\x00\x00\x7f{}"), True),
        (zlib.compress(b"\x00" * (65 << 20)), True),
    ],
)
def test_a_broken_body_is_refused(server: Server, data: bytes, compressed: bool) -> None:
    """Not JSON, too deep, wrong types, not zlib, cut off, or far too much of it: an answer, and no half broker."""
    answer = server.ask(Code.REGISTER_BROKER, fields(compressed=str(compressed).lower()), data)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert answer.remark
    assert server.namesrv.routes.brokers() == {}


def test_a_registration_that_is_too_much(server: Server) -> None:
    """Beyond a limit: refused with the limit in the remark."""
    answer = server.ask(Code.REGISTER_BROKER, fields("n" * 2000), body("T", "U").encode())
    assert refusal(answer) == (ResponseCode.SYSTEM_ERROR, "a name of more than 1024 characters")
    register(server, "T", "U")
    queue = {"brokerName": "broker-a", "perm": 6, "readQueueNums": 2, "writeQueueNums": 2}
    data = json.dumps({"queueDatas": [queue]}).encode()
    answer = server.ask(Code.REGISTER_TOPIC_IN_NAMESRV, {"topic": "t" * 2000}, data)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert "longer than topic max length" in (answer.remark or "")


def test_a_registration_without_a_body(server: Server) -> None:
    """A broker without topics is in the cluster, as officially."""
    assert server.ask(Code.REGISTER_BROKER, fields()).code == ResponseCode.SUCCESS
    assert server.namesrv.routes.clusters() == {"C": ["broker-a"]}


def test_old_brokers_send_a_bare_topic_table(server: Server) -> None:
    """Before V3_0_11 (ordinal 37)."""
    data = body("T", "U").topic_config_serialize_wrapper.encode()
    assert server.ask(Code.REGISTER_BROKER, fields(), data, version=36).code == ResponseCode.SUCCESS
    assert server.namesrv.routes.topics() == ["T", "U"]


def test_unregistering(server: Server) -> None:
    """A broker that stops properly is gone at once; a second time changes nothing."""
    register(server, "T", "U")
    for _ in range(2):
        assert server.ask(Code.UNREGISTER_BROKER, fields()).code == ResponseCode.SUCCESS
        assert server.namesrv.routes.topics() == []


def test_a_closed_connection_takes_its_broker(server: Server) -> None:
    """The application calls this for every connection that ends; those of clients change nothing."""
    mine = FakeConnection()
    server.ask(Code.REGISTER_BROKER, fields(), body("T", "U").encode(), connection=mine)
    server.namesrv.connection_closed(FakeConnection())
    assert server.namesrv.routes.topics() == ["T", "U"]
    server.namesrv.connection_closed(mine)
    assert server.namesrv.routes.topics() == []


def test_a_silent_broker_is_disconnected(server: Server) -> None:
    """So that a broker that hangs half-way finds out; heartbeatTimeoutMillis shortens the time."""
    mine = FakeConnection()
    server.ask(Code.REGISTER_BROKER, fields(heartbeatTimeoutMillis=10_000), body("T", "U").encode(), connection=mine)
    server.clock.now_ms += 9_000
    assert server.ask(Code.BROKER_HEARTBEAT, fields()).code == ResponseCode.SUCCESS
    server.clock.now_ms += 10_000
    server.namesrv.expire()
    assert server.namesrv.routes.topics() == ["T", "U"]
    server.clock.now_ms += 1
    server.namesrv.expire()
    assert mine.closed
    assert server.namesrv.routes.topics() == []


def test_data_versions(server: Server) -> None:
    """With forceRegister=false a broker asks first and registers only if its table has changed."""
    unknown = server.ask(Code.QUERY_DATA_VERSION, fields(), version().encode())
    assert (unknown.fields, unknown.body) == ({"changed": "true"}, b"")
    register(server, "T", "U")
    same = server.ask(Code.QUERY_DATA_VERSION, fields(), version().encode())
    assert (same.fields, json.loads(same.body)["counter"]) == ({"changed": "false"}, 1)
    other = server.ask(Code.QUERY_DATA_VERSION, fields(), version(2).encode())
    assert (other.fields, json.loads(other.body)["counter"]) == ({"changed": "true"}, 1)
    assert server.ask(Code.QUERY_DATA_VERSION, fields(), b"").code == ResponseCode.SYSTEM_ERROR


def test_cluster_info_and_member_group(server: Server) -> None:
    """Both with unquoted ids whatever the asker's version: all official clients read these two that way."""
    register(server, "T", "U")
    register(server, "T", "U", broker_id=1)
    register(server, "T", "V", name="broker-b", cluster="D")
    assert server.ask(Code.GET_BROKER_CLUSTER_INFO).body == (
        b'{"brokerAddrTable":{'
        b'"broker-a":{"brokerAddrs":{0:"broker-a-0:10911",1:"broker-a-1:10911"},"brokerName":"broker-a","cluster":"C"},'
        b'"broker-b":{"brokerAddrs":{0:"broker-b-0:10911"},"brokerName":"broker-b","cluster":"D"}},'
        b'"clusterAddrTable":{"C":["broker-a"],"D":["broker-b"]}}'
    )
    assert server.ask(Code.GET_BROKER_MEMBER_GROUP, fields()).body == (
        b'{"brokerMemberGroup":{"brokerAddrs":{0:"broker-a-0:10911",1:"broker-a-1:10911"},'
        b'"brokerName":"broker-a","cluster":"C"}}'
    )
    assert server.ask(Code.GET_BROKER_MEMBER_GROUP, fields("nobody")).body == (
        b'{"brokerMemberGroup":{"brokerAddrs":{},"brokerName":"nobody","cluster":"C"}}'
    )


def test_write_permission(server: Server) -> None:
    """The answers count topics; a broker that is not there has none."""
    register(server, "T", "U")
    wiped = server.ask(Code.WIPE_WRITE_PERM_OF_BROKER, {"brokerName": "broker-a"})
    assert wiped.fields == {"wipeTopicCount": "2"}
    assert b'"perm":4' in server.ask(Code.GET_ROUTEINFO_BY_TOPIC, {"topic": "T"}).body
    added = server.ask(Code.ADD_WRITE_PERM_OF_BROKER, {"brokerName": "broker-a"})
    assert added.fields == {"addTopicCount": "2"}
    assert b'"perm":6' in server.ask(Code.GET_ROUTEINFO_BY_TOPIC, {"topic": "T"}).body
    assert server.ask(Code.WIPE_WRITE_PERM_OF_BROKER, {"brokerName": "x"}).fields == {"wipeTopicCount": "0"}


# ---- topics


def test_route_of_an_unknown_topic(server: Server) -> None:
    """Producers take this code as the sign to ask for TBW102; operators know the words."""
    answer = server.ask(Code.GET_ROUTEINFO_BY_TOPIC, {"topic": "T"})
    code, remark = refusal(answer)
    assert code == ResponseCode.TOPIC_NOT_EXIST
    assert (remark or "").startswith("No topic route info in name server for the topic: T")


@pytest.mark.parametrize(
    ("asker", "accepts", "quoted"),
    [
        (OLD, None, False),
        (400, None, False),
        (401, None, True),
        (479, None, True),
        (OLD, "true", True),
        (OLD, "false", False),
    ],
)
def test_who_gets_standard_json(server: Server, asker: int, accepts: str | None, quoted: bool) -> None:
    """From 4.9.4 on, or on request; Go takes quoted ids for 0."""
    register(server, "T", "U")
    asked = {"topic": "T"} | ({} if accepts is None else {"acceptStandardJsonOnly": accepts})
    data = server.ask(Code.GET_ROUTEINFO_BY_TOPIC, asked, version=asker).body
    assert (b'{"0":"broker-a-0:10911"}' in data) == quoted
    assert (b'{0:"broker-a-0:10911"}' in data) == (not quoted)


def test_order_configuration_goes_to_clients_if_wanted(server: Server) -> None:
    """orderMessageEnable: the route then names the queues; topics without an entry have none."""
    register(server, "T", "U")
    server.namesrv.kv.put(ORDER_TOPIC_CONFIG, "T", "broker-a:4")
    assert b"orderTopicConf" not in server.ask(Code.GET_ROUTEINFO_BY_TOPIC, {"topic": "T"}).body
    server.options.order_message_enable = True
    route = json.loads(server.ask(Code.GET_ROUTEINFO_BY_TOPIC, {"topic": "T"}).body)
    assert route["orderTopicConf"] == "broker-a:4"
    assert b"orderTopicConf" not in server.ask(Code.GET_ROUTEINFO_BY_TOPIC, {"topic": "U"}).body
    server.namesrv.kv.put(ORDER_TOPIC_CONFIG, "Gone", "broker-a:4")
    assert server.ask(Code.GET_ROUTEINFO_BY_TOPIC, {"topic": "Gone"}).code == ResponseCode.TOPIC_NOT_EXIST


def test_routes_by_zone(server: Server) -> None:
    """5.x clients may ask for brokers near by; without the mode the zone's name means nothing."""
    for name, zone in (("near", "east"), ("far", "west")):
        server.ask(Code.REGISTER_BROKER, fields(name, __ZONE_NAME=zone), body("T", "U").encode())

    def brokers(**zone: str) -> list[str]:
        route = json.loads(server.ask(Code.GET_ROUTEINFO_BY_TOPIC, {"topic": "T", **zone}).body)
        return [queue["brokerName"] for queue in route["queueDatas"]]

    assert brokers(__ZONE_MODE="true", __ZONE_NAME="east") == ["near"]
    assert brokers(__ZONE_NAME="east") == ["near", "far"]
    assert brokers(__ZONE_MODE="true") == ["near", "far"]


def test_one_topic_is_registered(server: Server) -> None:
    """5.x brokers with enableSingleTopicRegister; one that is not known is no error, as officially."""
    register(server, "T", "U")
    queue = {"brokerName": "broker-a", "perm": 6, "readQueueNums": 2, "writeQueueNums": 2, "topicSysFlag": 0}
    for name, known in (("broker-a", True), ("nobody", False)):
        data = json.dumps({"queueDatas": [{**queue, "brokerName": name}]}).encode()
        answer = server.ask(Code.REGISTER_TOPIC_IN_NAMESRV, {"topic": name}, data)
        assert answer.code == ResponseCode.SUCCESS
        assert (name in server.namesrv.routes.topics()) == known


def test_topic_lists(server: Server) -> None:
    """All, by cluster, by flags, and the names that are topics by themselves with whom to ask for more."""
    register(server, "T", "U")
    server.ask(Code.REGISTER_BROKER, fields("broker-b", 0, "D"), body("T", "Unit", flags=1).encode(), version=477)

    def topics(code: int, **asked: str) -> object:
        return json.loads(server.ask(code, asked).body)

    assert topics(Code.GET_ALL_TOPIC_LIST_FROM_NAMESERVER) == {"topicList": ["T", "U", "Unit"]}
    assert topics(Code.GET_TOPICS_BY_CLUSTER, cluster="D") == {"topicList": ["T", "Unit"]}
    assert topics(Code.GET_TOPICS_BY_CLUSTER, cluster="nowhere") == {"topicList": []}
    assert topics(Code.GET_SYSTEM_TOPIC_LIST_FROM_NS) == {
        "brokerAddr": "broker-a-0:10911",
        "topicList": ["C", "broker-a", "D", "broker-b"],
    }
    assert topics(Code.GET_UNIT_TOPIC_LIST) == {"topicList": ["Unit"]}
    assert topics(Code.GET_HAS_UNIT_SUB_TOPIC_LIST) == {"topicList": []}
    assert topics(Code.GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST) == {"topicList": []}


def test_system_topics_without_brokers(server: Server) -> None:
    """No address, so that the tool does not ask further."""
    assert server.ask(Code.GET_SYSTEM_TOPIC_LIST_FROM_NS).body == b'{"topicList":[]}'


def test_deleting_topics(server: Server) -> None:
    """In one cluster (an empty name means all of them), or everywhere; unknown ones too."""
    register(server, "T", "U")
    register(server, "T", "U", name="broker-b", cluster="D")
    server.ask(Code.DELETE_TOPIC_IN_NAMESRV, {"topic": "T", "clusterName": "D"})
    assert b"broker-b" not in server.ask(Code.GET_ROUTEINFO_BY_TOPIC, {"topic": "T"}).body
    server.ask(Code.DELETE_TOPIC_IN_NAMESRV, {"topic": "U", "clusterName": ""})
    assert server.namesrv.routes.topics() == ["T"]
    assert server.ask(Code.DELETE_TOPIC_IN_NAMESRV, {"topic": "nothing"}).code == ResponseCode.SUCCESS


# ---- key-value configuration


async def test_kv_config(server: Server, autojump_clock: trio.abc.Clock) -> None:
    """A change is seen by the next request and answered when it is on disk."""
    item = {"namespace": "n", "key": "k"}

    def on_disk() -> object:
        return json.loads(Path(server.options.kv_config_path).read_bytes())

    async with trio.open_nursery() as nursery:
        connection = FakeConnection(nursery)
        server.send(Code.PUT_KV_CONFIG, {**item, "value": "v"}, connection=connection)
        assert server.ask(Code.GET_KV_CONFIG, item).fields == {"value": "v"}
        await trio.sleep(1)
        assert connection.answers == []
        nursery.start_soon(server.namesrv.kv.save_forever)
        await trio.sleep(1)
        assert [answer.code for answer in connection.answers] == [ResponseCode.SUCCESS]
        assert on_disk() == {"configTable": {"n": {"k": "v"}}}
        assert server.ask(Code.GET_KVLIST_BY_NAMESPACE, item).body == b'{"table":{"k":"v"}}'

        for _ in range(2):  # what is not there is deleted with success
            server.send(Code.DELETE_KV_CONFIG, item, connection=connection)
        await trio.sleep(1)
        assert [answer.code for answer in connection.answers] == [ResponseCode.SUCCESS] * 3
        assert on_disk() == {"configTable": {"n": {}}}
        nursery.cancel_scope.cancel()


def test_missing_kv_config(server: Server) -> None:
    """The official words, which mqadmin prints."""
    item = {"namespace": "n", "key": "k"}
    found = (ResponseCode.QUERY_NOT_FOUND, "No config item, Namespace: n Key: k")
    assert refusal(server.ask(Code.GET_KV_CONFIG, item)) == found
    found = (ResponseCode.QUERY_NOT_FOUND, "No config item, Namespace: n")
    assert refusal(server.ask(Code.GET_KVLIST_BY_NAMESPACE, item)) == found


async def test_kv_config_that_cannot_be_written(server: Server, autojump_clock: trio.abc.Clock) -> None:
    """Official says success and forgets it at the next start."""
    Path(server.options.kv_config_path).with_suffix(".json.tmp").mkdir()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.namesrv.kv.save_forever)
        connection = FakeConnection(nursery)
        server.send(Code.PUT_KV_CONFIG, {"namespace": "n", "key": "k", "value": "v"}, connection=connection)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    (answer,) = connection.answers
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert (answer.remark or "").startswith("in effect until the next start, but not saved: ")


def test_kv_config_is_bounded(server: Server) -> None:
    """What does not fit is refused, and nothing waits."""
    server.namesrv.kv.put("n", "k", "v" * (MAX_CHARACTERS - 2))
    answer = server.ask(Code.PUT_KV_CONFIG, {"namespace": "n", "key": "l", "value": "v"})
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert str(MAX_CHARACTERS) in (answer.remark or "")


# ---- the name server's own configuration


def config(server: Server) -> dict[str, str]:
    text = server.ask(Code.GET_NAMESRV_CONFIG).body.decode()
    return dict(line.split("=", 1) for line in text.splitlines())


def test_configuration_is_shown(server: Server) -> None:
    """The official keys of NamesrvConfig and NettyServerConfig, one a line."""
    shown = config(server)
    assert shown["orderMessageEnable"] == "false"
    assert shown["kvConfigPath"] == server.options.kv_config_path
    official = "rocketmqHome configStorePath productEnvName clusterTest listenPort serverWorkerThreads"
    assert shown.keys() >= set(official.split())


def test_configuration_is_changed_and_kept(server: Server) -> None:
    """In effect at once, and in the file for the next start; other lines of the file stay."""
    file = Path(server.options.config_store_path)
    file.write_text("# mine\norderMessageEnable = false\n")
    answer = server.ask(Code.UPDATE_NAMESRV_CONFIG, {}, b"orderMessageEnable=true\nscanNotActiveBrokerInterval=7000\n")
    assert answer.code == ResponseCode.SUCCESS
    assert (server.options.order_message_enable, config(server)["orderMessageEnable"]) == (True, "true")
    assert file.read_text() == "# mine\norderMessageEnable=true\nscanNotActiveBrokerInterval=7000\n"


def test_the_file_given_at_start_is_the_one_that_changes(server: Server, tmp_path: Path) -> None:
    """As officially, `-c FILE` becomes configStorePath."""
    server.options.source = str(tmp_path / "given.properties")
    assert config(server)["configStorePath"] == server.options.source
    server.ask(Code.UPDATE_NAMESRV_CONFIG, {}, b"orderMessageEnable=true")
    assert Path(server.options.source).read_text() == "orderMessageEnable=true\n"


@pytest.mark.parametrize("key", ["kvConfigPath", "configStorePath", "rocketmqHome", "configBlackList"])
def test_nobody_moves_files_by_wire(server: Server, key: str) -> None:
    """CVE-2023-37582: refused as 5.3.3 does it, also beside harmless keys and with the present value."""
    before = config(server)
    data = f"orderMessageEnable=true\n{key}={before.get(key, '/tmp/x')}".encode()
    answer = server.ask(Code.UPDATE_NAMESRV_CONFIG, {}, data)
    assert refusal(answer) == (ResponseCode.NO_PERMISSION, "Can not update config in black list.")
    assert config(server) == before


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"orderMessageEnable=perhaps", "orderMessageEnable"),
        (b"scanNotActiveBrokerInterval=0", "scanNotActiveBrokerInterval"),
        (b"orderMessageEnable=true\nlistenPort=1", "listenPort"),
        (b"orderMessageEnable=true\nlogDir=/tmp/elsewhere", "logDir"),
        (b"\\uXYZ=1", "string2Properties error"),
        (b"a=\xff", "string2Properties error"),
    ],
)
def test_bad_configuration_is_refused_as_a_whole(server: Server, data: bytes, named: str) -> None:
    """The remark names the key; nothing is changed and no file is made."""
    before = config(server)
    answer = server.ask(Code.UPDATE_NAMESRV_CONFIG, {}, data)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert named in (answer.remark or "")
    assert config(server) == before
    assert not Path(server.options.config_store_path).exists()


def test_configuration_that_cannot_be_written_is_not_changed(server: Server) -> None:
    """What would be lost at the next start is not begun."""
    Path(server.options.config_store_path).mkdir()
    answer = server.ask(Code.UPDATE_NAMESRV_CONFIG, {}, b"orderMessageEnable=true")
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert server.options.config_store_path in (answer.remark or "")
    assert not server.options.order_message_enable


def test_unknown_configuration_is_accepted(server: Server) -> None:
    """Tools send keys of other versions; official ignores them with success."""
    assert server.ask(Code.UPDATE_NAMESRV_CONFIG, {}, b"noSuchKey=1").code == ResponseCode.SUCCESS
    assert server.ask(Code.UPDATE_NAMESRV_CONFIG, {}, b"").code == ResponseCode.SUCCESS
    assert not Path(server.options.config_store_path).exists()


# ---- anything


def test_one_way_requests_are_carried_out_and_not_answered(server: Server) -> None:
    """Brokers report changed topics one-way."""
    server.tell(Code.REGISTER_BROKER, fields(), body("T", "U").encode())
    assert server.namesrv.routes.topics() == ["T", "U"]
    server.tell(Code.GET_ROUTEINFO_BY_TOPIC, {"topic": "nothing"})


FIELD_NAMES = st.sampled_from(
    [
        *(
            "brokerName",
            "brokerAddr",
            "clusterName",
            "haServerAddr",
            "brokerId",
            "topic",
            "cluster",
            "namespace",
            "key",
        ),
        *("compressed", "bodyCrc32", "heartbeatTimeoutMillis", "enableActingMaster", "acceptStandardJsonOnly"),
        *("__ZONE_MODE", "__ZONE_NAME"),
    ]
)
VALUES = st.sampled_from(["", "0", "-1", "9" * 30, "true", "T", "a/../b", "\x00", "Ä"]) | st.text(max_size=5)
BODIES = st.sampled_from([b"", b"{}", b"[]", b"null", b'{"queueDatas":[{}]}', b'{"a":{0:1}}']) | st.binary(max_size=40)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    code=st.sampled_from(sorted(set(handlers.routes.handlers) - {100, 102})),
    asked=st.dictionaries(FIELD_NAMES, VALUES),
    data=BODIES,
)
def test_whatever_is_asked_is_answered(tmp_path: Path, code: int, asked: dict[str, str], data: bytes) -> None:
    """Every request gets exactly one answer, none of them a defect (whose remark starts with an error's class)."""
    server = Server(tmp_path)
    register(server, "T", "U")
    answer = server.ask(code, asked, data)
    assert not (answer.remark or "").startswith(("KeyError", "TypeError", "AttributeError", "ValueError", "Assertion"))
    register(server, "T", "U")
    assert server.ask(Code.GET_BROKER_CLUSTER_INFO).code == ResponseCode.SUCCESS
