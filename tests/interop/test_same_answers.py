"""The same requests to official 4.9.4 servers and to the target, in the same order, get equal answers.

Equal in code, fields and body. What cannot be equal is made so before comparing: ports, times, and the ids that hold
them. Remarks are free text. Where the target means to differ, the case says so and why.
"""

import json
from typing import Any, Final, NamedTuple

import pytest

from tests.interop import raw
from tests.interop.child import wait_until
from tests.interop.conftest import has_route
from tests.interop.processes import OURS, Cluster

pytestmark = pytest.mark.interop

REFERENCE: Final = "4.9.4"

Fields = dict[str, object]

SEND: Final[Fields] = {
    "a": "group", "b": "same", "c": "TBW102", "d": 4, "e": 0, "f": 0, "g": 1_600_000_000_000, "h": 0, "i": "",
    "j": 0, "k": "false", "l": 16, "m": "false",
}  # fmt: skip
PULL: Final[Fields] = {
    "consumerGroup": "group", "topic": "same", "queueId": 0, "queueOffset": 0, "maxMsgNums": 32, "sysFlag": 4,
    "commitOffset": 0, "suspendTimeoutMillis": 0, "subscription": "*", "subVersion": 1, "expressionType": "TAG",
}  # fmt: skip
TOPIC: Final[Fields] = {
    "topic": "same", "defaultTopic": "TBW102", "readQueueNums": 2, "writeQueueNums": 2, "perm": 6,
    "topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": "false",
}  # fmt: skip


def queue(topic: str = "same", number: int = 0, **more: object) -> Fields:
    """The fields that name a queue."""
    return {"topic": topic, "queueId": number, **more}


def batch(*bodies: bytes, properties: bytes = b"") -> bytes:
    """A batch body."""
    out = b""
    for body in bodies:
        size = 4 * 5 + len(body) + 2 + len(properties)
        out += size.to_bytes(4, "big") + bytes(12) + len(body).to_bytes(4, "big") + body
        out += len(properties).to_bytes(2, "big") + properties
    return out


def text(value: object) -> bytes:
    """A JSON body."""
    return json.dumps(value).encode()


HEARTBEAT: Final = {
    "clientID": "127.0.0.1@same",
    "producerDataSet": [{"groupName": "same-producer"}],
    "consumerDataSet": [
        {
            "groupName": "same-group", "consumeType": "CONSUME_PASSIVELY", "messageModel": "CLUSTERING",
            "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET", "unitMode": False,
            "subscriptionDataSet": [{
                "topic": "same", "subString": "*", "tagsSet": [], "codeSet": [], "subVersion": 1,
                "classFilterMode": False, "expressionType": "TAG",
            }],
        }
    ],
}  # fmt: skip
GROUP: Final = {
    "groupName": "same-config", "consumeEnable": True, "consumeFromMinEnable": True, "consumeBroadcastEnable": True,
    "retryQueueNums": 2, "retryMaxTimes": 3, "brokerId": 0, "whichBrokerWhenConsumeSlowly": 1,
    "notifyConsumerIdsChangedEnable": True,
}  # fmt: skip
LOCK: Final = {
    "clientId": "127.0.0.1@same", "consumerGroup": "same-group",
    "mqSet": [{"topic": "same", "brokerName": "broker-a", "queueId": number} for number in (0, 1)],
}  # fmt: skip


class Case(NamedTuple):
    """One request. `differs`: why the target answers otherwise, if it does on purpose."""

    name: str
    code: int
    fields: Fields
    body: bytes = b""
    version: int = 401
    differs: str | None = None


BARE: Final = "a refused send has no region and trace fields: clients read them in successes only"

TAGGED: Final = "TAGS\x01A\x02KEYS\x01k\x02"

BROKER: Final = [
    Case("create-topic", 17, TOPIC),
    Case("create-topic-again", 17, {**TOPIC, "readQueueNums": 3}),
    Case("create-topic-illegal-name", 17, {**TOPIC, "topic": "no/topic"}),
    Case("create-topic-system-name", 17, {**TOPIC, "topic": "DefaultCluster"}),
    Case("create-topic-too-long", 17, {**TOPIC, "topic": "x" * 200}),
    Case("min-of-empty", 31, queue()),
    Case("max-of-empty", 30, queue()),
    Case("earliest-of-empty", 32, queue()),
    Case("search-in-empty", 29, queue(timestamp=1)),
    Case("pull-from-empty", 11, PULL),
    Case("send", 310, {**SEND, "i": TAGGED}, b"one"),
    Case("send-long-names", 10, {
        "producerGroup": "group", "topic": "same", "defaultTopic": "TBW102", "defaultTopicQueueNums": 4, "queueId": 0,
        "sysFlag": 0, "bornTimestamp": 1, "flag": 5, "properties": "", "reconsumeTimes": 0, "unitMode": "false",
        "batch": "false",
    }, b"two"),
    Case("send-with-wait-false", 310, {**SEND, "i": "WAIT\x01false\x02"}, b"three"),
    Case("send-batch", 320, {**SEND, "m": "true"}, batch(b"four", b"five", properties=TAGGED.encode())),
    Case("send-batch-in-other-code", 310, {**SEND, "m": "true"}, batch(b"six")),
    Case("send-to-other-queue", 310, {**SEND, "e": 1}, b"seven"),
    Case("send-empty-body", 310, SEND, b""),
    Case("send-queue-id-too-large", 310, {**SEND, "e": 3}, b"x", differs=BARE),
    Case("send-illegal-topic", 310, {**SEND, "b": "no topic"}, b"x", differs=BARE),
    Case("send-topic-too-long", 310, {**SEND, "b": "x" * 128}, b"x", differs=BARE),
    Case("send-to-broker-name", 310, {**SEND, "b": "broker-a"}, b"x"),
    Case("send-to-schedule-topic", 310, {**SEND, "b": "SCHEDULE_TOPIC_XXXX"}, b"x", differs=BARE),
    Case("send-unknown-default-topic", 310, {**SEND, "b": "unknown", "c": "nothing"}, b"x", differs=BARE),
    Case("send-default-topic-without-inheritance", 310, {**SEND, "b": "unknown", "c": "same"}, b"x", differs=BARE),
    Case("send-makes-topic", 310, {**SEND, "b": "made"}, b"x"),
    Case("send-body-too-large", 310, SEND, bytes((4 << 20) + 1), differs=BARE),
    Case("send-properties-too-long", 310, {**SEND, "i": "a\x01" + "b" * 33000 + "\x02"}, b"x", differs=BARE),
    Case("max", 30, queue()),
    Case("min", 31, queue()),
    Case("max-of-missing-queue", 30, queue(number=9)),
    Case("max-of-missing-topic", 30, queue("missing")),
    Case("min-of-missing-topic", 31, queue("missing")),
    Case("earliest-of-missing-topic", 32, queue("missing")),
    Case("search-in-missing-topic", 29, queue("missing", timestamp=1)),
    Case("search-before-all", 29, queue(timestamp=1)),
    Case("search-after-all", 29, queue(timestamp=1 << 50)),
    Case("pull-all", 11, PULL),
    Case("pull-limited", 11, {**PULL, "maxMsgNums": 2}),
    Case("pull-tag", 11, {**PULL, "subscription": "A"}),
    Case("pull-tags", 11, {**PULL, "subscription": "A || B"}),
    Case("pull-no-match", 11, {**PULL, "subscription": "Z"}),
    Case("pull-at-end", 11, {**PULL, "queueOffset": 7}),
    Case("pull-beyond-end", 11, {**PULL, "queueOffset": 100}),
    Case("pull-negative", 11, {**PULL, "queueOffset": -5}),
    Case("pull-with-commit", 11, {**PULL, "sysFlag": 5, "commitOffset": 3}),
    Case("pull-missing-topic", 11, {**PULL, "topic": "missing"}),
    Case("pull-missing-queue", 11, {**PULL, "queueId": 9}),
    Case("pull-negative-queue", 11, {**PULL, "queueId": -1}),
    Case("pull-without-subscription", 11, {**PULL, "sysFlag": 0, "consumerGroup": "nobody"}),
    Case("pull-sql-switched-off", 11, {**PULL, "expressionType": "SQL92", "subscription": "a > 1"}),
    Case("offset-committed-by-pull", 14, {"consumerGroup": "group", **queue()}),
    Case("offset-of-new-group", 14, {"consumerGroup": "new", **queue()}),
    Case("offset-of-missing-topic", 14, {"consumerGroup": "new", **queue("missing")}),
    Case("offset-update", 15, {"consumerGroup": "keeps", **queue(), "commitOffset": 4}),
    Case("offset-updated", 14, {"consumerGroup": "keeps", **queue()}),
    Case("view-first", 33, {"offset": 0}),
    Case("view-nothing", 33, {"offset": 1 << 40}),
    Case("view-inside-a-record", 33, {"offset": 10}),
    Case("heartbeat", 34, {}, text(HEARTBEAT)),
    Case("members-of-nobody", 38, {"consumerGroup": "nobody"}),
    Case("unregister", 35, {"clientID": "127.0.0.1@same", "producerGroup": "same-producer"}),
    Case("check-client-config", 46, {}, text({
        "clientId": "x", "group": "same-group",
        "subscriptionData": {"topic": "same", "subString": "*", "expressionType": "TAG", "subVersion": 1},
    })),
    Case("check-client-config-sql", 46, {}, text({
        "clientId": "x", "group": "same-group",
        "subscriptionData": {"topic": "same", "subString": "a > 1", "expressionType": "SQL92", "subVersion": 1},
    })),
    Case("lock", 41, {}, text(LOCK)),
    Case("lock-by-another", 41, {}, text({**LOCK, "clientId": "127.0.0.1@other"})),
    Case("unlock", 42, {}, text(LOCK)),
    Case("lock-when-free", 41, {}, text({**LOCK, "clientId": "127.0.0.1@other"})),
    Case("update-group", 200, {}, text(GROUP)),
    Case("all-offsets", 43, {}, differs="it has the version that slaves of 5.x need"),
    Case("all-topics", 21, {}),
    Case("all-groups", 201, {}, differs="as in 5.x, a group becomes known by committing an offset"),
    Case("topic-stats", 202, {"topic": "same"}, differs="as in 5.x, queues that are only read count too"),
    Case("topic-stats-of-missing-topic", 202, {"topic": "missing"}),
    Case("consume-stats", 208, {"consumerGroup": "keeps", "topic": "same"},
         differs="as in 5.x, it tells up to where the group was given messages"),
    Case("consumers-of-nobody", 203, {"consumerGroup": "nobody"}),
    Case("producers-of-nobody", 204, {"producerGroup": "nobody"}),
    Case("groups-of-topic", 300, {"topic": "same"}),
    Case("system-topics", 305, {}),
    Case("all-delay-offsets", 45, {}),
    Case("missing-code", 9999, {}),
    Case("send-batch-by-the-cpp-client", 310, {**SEND, "m": "1"}, batch(b"eight", b"nine"),
         differs="the C++ client's 1 is meant as true; 4.9.4 stores its batches as one message"),
]  # fmt: skip

NAMESRV: Final = [
    Case("route", 105, {"topic": "same"}),
    Case("route-for-older-clients", 105, {"topic": "same"}, version=399),
    Case("route-standard-json", 105, {"topic": "same", "acceptStandardJsonOnly": "true"}, version=399),
    Case("route-missing", 105, {"topic": "missing"}),
    Case("route-of-default-topic", 105, {"topic": "TBW102"}),
    Case("cluster", 106, {}),
    Case("topics", 206, {}),
    Case("topics-of-cluster", 224, {"cluster": "DefaultCluster"}),
    Case("topics-of-missing-cluster", 224, {"cluster": "missing"}),
    Case("system-topics", 304, {}),
    Case("unit-topics", 311, {}),
    Case("has-unit-sub-topics", 312, {}),
    Case("has-unit-sub-un-unit-topics", 313, {}),
    Case("kv-missing", 101, {"namespace": "nowhere", "key": "nothing"}),
    Case("kv-list-missing", 219, {"namespace": "nowhere"}),
    Case("kv-put", 100, {"namespace": "space", "key": "k", "value": "v 内"}),
    Case("kv-get", 101, {"namespace": "space", "key": "k"}),
    Case("kv-list", 219, {"namespace": "space"}),
    Case("kv-delete", 102, {"namespace": "space", "key": "k"}),
    Case("kv-deleted", 101, {"namespace": "space", "key": "k"}),
    Case("wipe", 205, {"brokerName": "broker-a"}),
    Case("route-when-wiped", 105, {"topic": "same"}),
    Case("add", 327, {"brokerName": "broker-a"}),
    Case("wipe-missing-broker", 205, {"brokerName": "missing"}),
    Case("delete-missing-topic", 216, {"topic": "missing"}),
    Case("register-with-bad-checksum", 103, {
        "brokerName": "b", "brokerAddr": "127.0.0.1:1", "clusterName": "c", "haServerAddr": "127.0.0.1:2",
        "brokerId": 0, "bodyCrc32": 12345, "compressed": "false",
    }, text({"topicConfigSerializeWrapper": {"topicConfigTable": {}}, "filterServerList": []})),
]  # fmt: skip

Answers = dict[str, Any]


def neutral(data: Any, cluster: Cluster) -> Any:
    """The value without the ports and times of this cluster."""
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if not key.lower().endswith("timestamp")}
        return {neutral(key, cluster): neutral(value, cluster) for key, value in data.items()}
    if isinstance(data, list):
        items = [neutral(item, cluster) for item in data]
        return sorted(items, key=str)  # what these answers list are sets in Java
    if isinstance(data, str):
        port = cluster.brokers[0].port
        return data.replace(f"127.0.0.1:{port}", "BROKER").replace(f"7F000001{port:08X}", "BROKER-")
    return data


def shown(answer: raw.Answer, cluster: Cluster) -> Any:
    """What of an answer must be equal."""
    body: Any = answer.body
    if body[:1] == b"{":
        body = neutral(raw.java_json(body.decode()), cluster)
    elif body:
        body = list(raw.records(body))
    return {"code": answer.code, "fields": neutral(answer.fields, cluster), "body": body}


def asked(cluster: Cluster) -> Answers:
    """The answers to all cases; None where the server answered nothing."""
    found: Answers = {}
    for server, cases in ((cluster.brokers[0], BROKER), (cluster.namesrvs[0], NAMESRV)):
        for case in cases:
            try:
                answer = raw.call(server.address, case.code, case.fields, case.body, version=case.version, timeout=4)
            except (TimeoutError, ConnectionError):
                found[case.name] = None
            else:
                found[case.name] = shown(answer, cluster)
        wait_until(lambda: has_route(cluster, "same") and has_route(cluster, "made"), "the routes", 20)
    return found


@pytest.fixture(scope="module")
def both(target: str) -> tuple[Answers, Answers]:
    """The reference's answers and the target's."""
    answers = []
    for kind in (REFERENCE, target):
        with Cluster(kind) as cluster:
            cluster.add_namesrv()
            cluster.add_broker()
            answers.append(asked(cluster))
    return answers[0], answers[1]


@pytest.mark.parametrize("case", [*BROKER, *NAMESRV], ids=lambda case: case.name)
def test_same_answer(both: tuple[Answers, Answers], case: Case, target: str) -> None:
    """What the target answers is what 4.9.4 answers."""
    reference, answer = both[0][case.name], both[1][case.name]
    if case.differs is not None and target == OURS:
        assert answer != reference, f"no difference any more: {case.differs}"
    else:
        assert answer == reference
