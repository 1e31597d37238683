"""mqadmin 4.9.4 and 5.3.3 against a name server and a broker: what it prints, and what it did."""

import re
import time
from typing import Any

import pytest

from tests.interop import raw
from tests.interop.child import wait_until
from tests.interop.conftest import MakeDriver, has_route
from tests.interop.driver import Producer
from tests.interop.mqadmin import mqadmin
from tests.interop.processes import Cluster

pytestmark = pytest.mark.interop

GET_KV_CONFIG = 101


class Run:
    """Runs commands of one version at one cluster."""

    def __init__(self, version: str, namesrv: str) -> None:
        self.version = version
        self.namesrv = namesrv

    def __call__(self, command: str, *arguments: str) -> str:
        """What the command printed."""
        return mqadmin(self.version, command, *arguments, namesrv=self.namesrv)


@pytest.fixture(params=["4.9.4", "5.3.3"])
def run(request: pytest.FixtureRequest, cluster: Cluster) -> Run:
    """mqadmin of each version at the shared cluster."""
    return Run(request.param, cluster.namesrv_addr)


def fresh(name: str) -> str:
    """A name nobody has used."""
    return f"{name}-{raw.nonce()}"


def route(text: str) -> dict[str, Any]:
    """The route that topicRoute prints."""
    parsed: dict[str, Any] = raw.java_json(text)
    return parsed


def make_topic(run: Run, cluster: Cluster, *options: str) -> str:
    """A topic made by updateTopic on the whole cluster."""
    topic = fresh("admin")
    said = run("updateTopic", "-c", "DefaultCluster", "-t", topic, *options)
    assert f"create topic to {cluster.brokers[0].address} success." in said
    wait_until(lambda: has_route(cluster, topic), "the route", 10)
    return topic


def test_a_group_goes_back_in_time_and_to_the_end(run: Run, cluster: Cluster, drivers: MakeDriver) -> None:
    """resetOffsetByTime and skipAccumulatedMessage, while a member of the group is there and without one."""
    topic = make_topic(run, cluster, "-r", "1", "-w", "1")
    group = fresh("reset")

    def committed() -> int:
        return raw.committed(cluster.brokers[0].address, group, topic, 1)

    begin = str(int(time.time() * 1000))
    driver = drivers(run.version.replace("4.9.4", "4.9.8"))
    with driver.producer(cluster.namesrv_addr) as producer:
        producer.send_many(topic, "again", 10)
    with driver.push(cluster.namesrv_addr, topic, group=group, where="FIRST_OFFSET") as consumer:
        assert len(consumer.received(10)) == 10
        wait_until(lambda: committed() == 10, "the committed offset", 20)
        said = run("resetOffsetByTime", "-g", group, "-t", topic, "-s", begin)
        assert re.search(r"broker\S*\s+0\s+0\s", said)
        bodies = [message["body"] for message in consumer.received(20)]
        assert sorted(bodies[10:]) == sorted(bodies[:10])
        wait_until(lambda: committed() == 10, "the committed offset", 20)
    said = run("resetOffsetByTime", "-g", group, "-t", topic, "-s", begin)
    wait_until(lambda: committed() == 0, "the offset of a group without members", 10)
    run("skipAccumulatedMessage", "-g", group, "-t", topic)
    wait_until(lambda: committed() == 10, "the end", 10)


def test_a_topic_s_life(run: Run, cluster: Cluster) -> None:
    """updateTopic, topicRoute, topicList, topicClusterList, updateTopicPerm, deleteTopic."""
    topic = make_topic(run, cluster, "-r", "3", "-w", "2", "-p", "6")
    shown = route(run("topicRoute", "-t", topic))
    assert shown["brokerDatas"][0]["brokerAddrs"] == {"0": cluster.brokers[0].address}
    (queues,) = shown["queueDatas"]
    assert (queues["readQueueNums"], queues["writeQueueNums"], queues["perm"]) == (3, 2, 6)
    assert topic in run("topicList").split()
    assert run("topicClusterList", "-t", topic).strip() == "DefaultCluster"

    assert "from 6 to 4" in run("updateTopicPerm", "-c", "DefaultCluster", "-t", topic, "-p", "4")
    wait_until(lambda: perm(run, topic) == 4, "the new permission at the name server", 10)

    said = run("deleteTopic", "-c", "DefaultCluster", "-t", topic)
    assert "from cluster [DefaultCluster] success." in said
    assert "from NameServer success." in said
    assert not has_route(cluster, topic)
    assert topic not in run("topicList").split()


def perm(run: Run, topic: str) -> int:
    """The permission in the topic's route."""
    value: int = route(run("topicRoute", "-t", topic))["queueDatas"][0]["perm"]
    return value


def test_system_topics_are_listed(run: Run) -> None:
    """topicList shows the official set of a fresh broker."""
    assert {
        "TBW102", "SELF_TEST_TOPIC", "BenchmarkTest", "OFFSET_MOVED_EVENT", "SCHEDULE_TOPIC_XXXX",
        "DefaultCluster", "broker-a", "DefaultCluster_REPLY_TOPIC",
    } <= set(run("topicList").split())  # fmt: skip


def test_cluster_list(run: Run, cluster: Cluster) -> None:
    """clusterList shows the broker with its id, address and version."""
    assert re.search(
        rf"^DefaultCluster\s+broker-a\s+0\s+{re.escape(cluster.brokers[0].address)}\s+V\d_\d+_\d+\s",
        run("clusterList"),
        re.MULTILINE,
    )


def test_subscription_groups(run: Run, cluster: Cluster) -> None:
    """updateSubGroup, and getConsumerConfig reading it back."""
    group = fresh("group")
    said = run("updateSubGroup", "-c", "DefaultCluster", "-g", group, "-r", "3", "-w", "5", "-d", "true")
    assert f"create subscription group to {cluster.brokers[0].address} success." in said
    shown = dict(re.findall(r"^(\w+)\s+=\s+(.*?)\s*$", run("getConsumerConfig", "-g", group), re.MULTILINE))
    assert shown["groupName"] == group
    assert shown["retryMaxTimes"] == "3"
    assert shown["whichBrokerWhenConsumeSlowly"] == "5"
    assert shown["consumeBroadcastEnable"] == "true"


def test_kv_configuration(run: Run, cluster: Cluster) -> None:
    """updateKvConfig and deleteKvConfig, as seen by GET_KV_CONFIG."""
    (namesrv,) = cluster.namesrvs
    space = fresh("space")
    fields = {"namespace": space, "key": "ключ"}
    assert "success" in run("updateKvConfig", "-s", space, "-k", "ключ", "-v", "a=b;c 内")
    assert namesrv.call(GET_KV_CONFIG, fields).fields["value"] == "a=b;c 内"
    assert "success" in run("deleteKvConfig", "-s", space, "-k", "ключ")
    assert namesrv.call(GET_KV_CONFIG, fields).code == 22


def test_order_configuration(run: Run, cluster: Cluster) -> None:
    """updateOrderConf puts, gets and deletes the topic's order configuration."""
    topic = fresh("ordered")
    run("updateOrderConf", "-t", topic, "-v", "broker-a:2", "-m", "put")
    assert f"topic=[{topic}], orderConf=[broker-a:2]" in run("updateOrderConf", "-t", topic, "-m", "get")
    assert "success" in run("updateOrderConf", "-t", topic, "-m", "delete")
    assert "broker-a:2" not in run("updateOrderConf", "-t", topic, "-m", "get")


def test_write_permission(run: Run, cluster: Cluster) -> None:
    """wipeWritePerm takes the broker's topics from producers, addWritePerm gives them back.

    Both count topics.
    """
    topic = make_topic(run, cluster)
    try:
        said = run("wipeWritePerm", "-b", "broker-a")
        assert int(re.findall(r"OK, (\d+)", said)[0]) > 8
        assert perm(run, topic) == 4
    finally:
        said = run("addWritePerm", "-b", "broker-a")
    assert int(re.findall(r"OK, (\d+)", said)[0]) > 8
    assert perm(run, topic) == 6


def test_name_server_configuration(run: Run, cluster: Cluster) -> None:
    """getNamesrvConfig prints the keys, updateNamesrvConfig changes one."""
    key = "productEnvName"
    shown = dict(re.findall(r"^(\w+)\s+=\s+(.*?)\s*$", run("getNamesrvConfig"), re.MULTILINE))
    assert shown["listenPort"] == str(cluster.namesrvs[0].port)
    assert {"kvConfigPath", "clusterTest", "orderMessageEnable"} <= shown.keys()
    value = fresh("env")
    assert "success" in run("updateNamesrvConfig", "-k", key, "-v", value)
    assert re.search(rf"^{key}\s+=\s+{value}\s*$", run("getNamesrvConfig"), re.MULTILINE)


def test_a_message_by_its_id(run: Run, cluster: Cluster, sender: Producer) -> None:
    """queryMsgById prints the message of an offset id."""
    topic = make_topic(run, cluster)
    sent = sender.send(topic, "the body", tags="T", keys="k")
    which = ["-t", topic] if run.version.startswith("5.") else []  # 4.x has no such option, 5.x requires it
    said = run("queryMsgById", "-i", sent["offsetMsgId"], *which)
    shown = dict(re.findall(r"^(\w[\w ]*?):\s+(.*?)\s*$", said, re.MULTILINE))
    assert shown["OffsetID"] == sent["offsetMsgId"]
    assert shown["Topic"] == topic
    assert shown["Tags"] == "[T]"
    assert shown["Keys"] == "[k]"
    assert shown["Queue ID"] == str(sent["queue"])
    assert shown["Queue Offset"] == str(sent["offset"])


def test_sending_from_the_command_line(run: Run, cluster: Cluster) -> None:
    """sendMessage, and checkMsgSendRT's round trips."""
    topic = make_topic(run, cluster)
    assert "SEND_OK" in run("sendMessage", "-t", topic, "-p", "hello", "-k", "k", "-c", "T")
    assert (
        len(re.findall(r"^broker-a\s+\d+\s+true\s", run("checkMsgSendRT", "-t", topic, "-a", "3", "-s", "9"), re.M))
        == 3
    )
