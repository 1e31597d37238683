"""Our name server among official parts: brokers of three lines register, official clients find them, mqadmin works.

With INTEROP_TARGET set to an official version the same tests run against that one's name server.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.interop import raw
from tests.interop.child import wait_until
from tests.interop.driver import Driver
from tests.interop.mqadmin import mqadmin
from tests.interop.processes import OURS, Cluster, NameServer

pytestmark = pytest.mark.interop

GET_KV_CONFIG = 101
GET_TOPICS_BY_CLUSTER = 224
Drivers = Callable[[str, str], Driver]


@pytest.fixture(scope="module")
def official(target: str) -> Iterator[Cluster]:
    """Two name servers of the target with two clusters: one official master, and a master with its slave.

    They are apart because mqadmin 4.9.4 cannot delete topics in a cluster with slaves: it asks those too,
    and they refuse.
    """
    with Cluster(target) as cluster:
        cluster.add_namesrv()
        cluster.add_namesrv()
        cluster.add_broker("4.9.4", start=False)
        for broker_id, role in enumerate(("ASYNC_MASTER", "SLAVE")):
            where: dict[str, Any] = {"name": "broker-b", "brokerClusterName": "Other"}
            cluster.add_broker("4.9.4", start=False, broker_id=broker_id, role=role, **where)
        cluster.start_together(*cluster.brokers)
        yield cluster


def ask(official: Cluster, command: str, *arguments: str) -> str:
    """What mqadmin prints.

    A tool that ran into its own 5 s on a busy machine is asked again: all it does can be.
    """
    for _ in range(3):
        told = mqadmin("4.9.4", command, *arguments, namesrv=official.namesrv_addr)
        if "RemotingTimeoutException" not in told and "RemotingConnectException" not in told:
            break
    return told


def route(namesrv: NameServer, topic: str) -> dict[str, Any]:
    """The topic's route; empty lists if there is none."""
    answer = namesrv.call(raw.GET_ROUTEINFO_BY_TOPIC, {"topic": topic})
    assert answer.code in (0, 17), answer
    found: dict[str, Any] = json.loads(answer.body) if answer.body else {"brokerDatas": []}
    return found


def write_permission(namesrv: NameServer, topic: str, broker: str) -> int:
    (perm,) = [queue["perm"] for queue in route(namesrv, topic)["queueDatas"] if queue["brokerName"] == broker]
    return int(perm) & 2


# ---- mqadmin, on two name servers


def test_cluster_list(official: Cluster) -> None:
    """All brokers with cluster and id; mqadmin asks each of them for its version."""
    one, master, slave = (broker.address for broker in official.brokers)
    expected = [
        ["DefaultCluster", "broker-a", "0", one, "V4_9_4"],
        ["Other", "broker-b", "0", master, "V4_9_4"],
        ["Other", "broker-b", "1", slave, "V4_9_4"],
    ]

    def shown() -> list[list[str]]:
        lines = (line.split()[:5] for line in ask(official, "clusterList").splitlines())
        return sorted(line for line in lines if line[:1] in (["DefaultCluster"], ["Other"]))

    # A broker that has just started may be too slow for the tool, which then shows it without a version.
    wait_until(lambda: shown() == expected, "the list of brokers", 30)


def test_topic_list(official: Cluster) -> None:
    """The topics that a 4.9.4 broker has from the start."""
    shown = set(ask(official, "topicList").split())
    assert shown >= {"TBW102", "SELF_TEST_TOPIC", "BenchmarkTest", "OFFSET_MOVED_EVENT", "DefaultCluster", "broker-a"}
    assert shown >= {"Other", "broker-b"}


def test_topic_life(official: Cluster) -> None:
    """Created with an order configuration, shown, found in its cluster, deleted everywhere."""
    first, second = official.namesrvs
    told = ask(official, "updateTopic", "-c", "DefaultCluster", "-t", "ordered", "-r", "3", "-w", "3", "-o", "true")
    assert "create topic to" in told, told
    for namesrv in (first, second):
        wait_until(lambda one=namesrv: one.call(105, {"topic": "ordered"}).code == 0, "the route", 10)  # type: ignore[misc]
        order = namesrv.call(GET_KV_CONFIG, {"namespace": "ORDER_TOPIC_CONFIG", "key": "ordered"})
        assert order.fields["value"] == "broker-a:3"
    shown = json.loads(ask(official, "topicRoute", "-t", "ordered").replace("{0:", '{"0":').replace(",1:", ',"1":'))
    assert shown == route(first, "ordered")
    assert "DefaultCluster" in ask(official, "topicClusterList", "-t", "ordered")
    told = ask(official, "deleteTopic", "-c", "DefaultCluster", "-t", "ordered")
    assert "delete topic [ordered] from NameServer success." in told, told
    for namesrv in (first, second):
        assert namesrv.call(raw.GET_ROUTEINFO_BY_TOPIC, {"topic": "ordered"}).code == 17
    told = ask(official, "topicRoute", "-t", "ordered")
    assert "No topic route info in name server for the topic: ordered" in told, told


def test_kv_config(official: Cluster) -> None:
    """Written to both name servers and to their files."""
    told = ask(official, "updateKvConfig", "-s", "space", "-k", "key", "-v", "value")
    assert "create or update kv config to namespace success." in told, told
    for namesrv in official.namesrvs:
        assert namesrv.call(GET_KV_CONFIG, {"namespace": "space", "key": "key"}).fields == {"value": "value"}
        kept = json.loads((namesrv.folder / "kvConfig.json").read_bytes())
        assert kept["configTable"]["space"] == {"key": "value"}
    assert "success" in ask(official, "deleteKvConfig", "-s", "space", "-k", "key")
    for namesrv in official.namesrvs:
        missing = namesrv.call(GET_KV_CONFIG, {"namespace": "space", "key": "key"})
        assert (missing.code, missing.remark) == (22, "No config item, Namespace: space Key: key")


def test_order_configuration(official: Cluster) -> None:
    """updateOrderConf reads, writes and removes."""
    assert "success" in ask(official, "updateOrderConf", "-m", "put", "-t", "T", "-v", "broker-a:4")
    assert "broker-a:4" in ask(official, "updateOrderConf", "-m", "get", "-t", "T")
    assert "success" in ask(official, "updateOrderConf", "-m", "delete", "-t", "T")
    assert "No config item" in ask(official, "updateOrderConf", "-m", "get", "-t", "T")


def test_write_permission(official: Cluster) -> None:
    """wipeWritePerm counts the broker's topics on each name server; addWritePerm brings them back."""
    for namesrv in official.namesrvs:
        wait_until(lambda one=namesrv: bool(write_permission(one, "TBW102", "broker-a")), "the permission", 5)  # type: ignore[misc]
    for command, verb, expected in (("wipeWritePerm", "wipe", False), ("addWritePerm", "add", True)):
        told = ask(official, command, "-b", "broker-a")
        for namesrv in official.namesrvs:
            count = len(
                json.loads(namesrv.call(GET_TOPICS_BY_CLUSTER, {"cluster": "DefaultCluster"}).body)["topicList"]
            )
            line = f"{verb} write perm of broker[broker-a] in name server[{namesrv.address}] OK, {count}"
            assert line in told, told
            assert bool(write_permission(namesrv, "TBW102", "broker-a")) is expected
            assert write_permission(namesrv, "TBW102", "broker-b")


def test_namesrv_config(official: Cluster) -> None:
    """Shown for each name server; a change is in effect and in the file that the server was started with."""
    told = ask(official, "updateNamesrvConfig", "-k", "productEnvName", "-v", "test")
    told += ask(official, "getNamesrvConfig")
    (changed,) = [line for line in told.splitlines() if line.startswith("update name server config success!")]
    for namesrv in official.namesrvs:
        assert namesrv.address in changed
        assert f"============{namesrv.address}============" in told
        assert "productEnvName=test" in (namesrv.folder / "namesrv.properties").read_text().replace(" ", "")
    assert told.count("productEnvName                                    =  test") == 2
    refused = ask(official, "updateNamesrvConfig", "-k", "kvConfigPath", "-v", "/tmp/elsewhere")
    if official.kind == OURS:
        assert "Can not update config in black list." in refused, refused


# ---- brokers and clients of all lines


@pytest.mark.parametrize("version", ["4.8.0", "4.9.8", "5.3.3"])
def test_clients_find_an_official_broker(official: Cluster, drivers: Drivers, version: str) -> None:
    """A new topic by TBW102: routed, sent to and consumed by each line of clients."""
    driver = drivers(version, "JSON")
    topic = driver.fresh("routed")
    with driver.producer(official.namesrv_addr) as producer:
        assert producer.send(topic, "hello")["status"] == "SEND_OK"
        wait_until(lambda: official.namesrvs[0].call(105, {"topic": topic}).code == 0, "the route", 10)
        assert {queue["broker"] for queue in producer.queues(topic)} <= {"broker-a", "broker-b"}
        with driver.push(official.namesrv_addr, topic, where="FIRST_OFFSET") as consumer:
            assert [message["body"] for message in consumer.received(1)] == ["hello"]


@pytest.mark.beside
@pytest.mark.parametrize("version", ["5.3.3", "4.9.4", "4.8.0"])
def test_official_brokers_come_and_go(target: str, version: str) -> None:
    """Killed, back again, stopped: the name server knows it within moments, not after 120 s."""
    with Cluster(target) as cluster:
        namesrv = cluster.add_namesrv()
        broker = cluster.add_broker(version)
        assert route(namesrv, "TBW102")["brokerDatas"]
        broker.kill()
        wait_until(lambda: "broker-a" not in namesrv.brokers(), "the end of a killed broker", 3)
        assert namesrv.call(raw.GET_ROUTEINFO_BY_TOPIC, {"topic": "TBW102"}).code == 17
        broker.start()
        cluster.wait_registered(broker)
        broker.stop()
        assert "broker-a" not in namesrv.brokers()


@pytest.mark.beside
@pytest.mark.slow
def test_a_restarted_name_server_learns_its_brokers_again(target: str) -> None:
    """Within one period of registration (10 s is the shortest); the other name server serves meanwhile."""
    with Cluster(target) as cluster:
        first, second = cluster.add_namesrv(), cluster.add_namesrv()
        cluster.add_broker("4.9.4", registerNameServerPeriod=10_000)
        first.kill()
        known = route(second, "TBW102")
        assert known["brokerDatas"]
        first.start()
        wait_until(lambda: route(first, "TBW102") == known, "the same route", 20)
