"""Topics and groups that may not be: every handler refuses them, and nothing is made on disk."""

import json

from tests.gateway.hostile.rig import (
    CREATE_TOPIC,
    HEARTBEAT,
    REGISTRATION,
    TOPIC,
    TOPIC_FIELDS,
    Received,
    Server,
    registration_body,
)
from tests.gateway.hostile.samples import GROUP_FIELDS, SAMPLE_TOPIC, samples

ILLEGAL = (
    "..",
    ".",
    "../escaped",
    "x/../../escaped",
    "%RETRY%x/../../escaped",
    "%DLQ%../escaped",
    "/tmp/escaped",
    "a/b",
    "a\\b",
    "a\x00b",
    "\x00",
    "a b",
    " ",
    "a\nb",
    "a@b",
    "a*b",
    "a.b",
    "é",
    "名",
    "a" * 10_000,
)
TOO_LONG_TOPIC = "a" * 128
TOO_LONG_GROUP = "a" * 256
TEMPLATES = frozenset({"defaultTopic", "c"})  # only looked up: an illegal one is an unknown one
LOCK, UNLOCK = 41, 42
UPDATE_GROUP, UPDATE_GROUPS, UPDATE_TOPICS = 200, 225, 18
CHECK_CLIENT_CONFIG = 46
REGISTER_TOPIC = 217


def assert_refused(answer: Received, what: str) -> None:
    """Refused on purpose: not by an exception that somebody forgot."""
    assert answer.code not in (0, None), f"{what}: {answer}"
    assert answer.remark, f"{what}: {answer}"
    assert "not supported" not in answer.remark, f"{what}: {answer}"
    assert "Error:" not in answer.remark, f"{what}: {answer}"
    assert len(answer.remark) <= 4096


async def test_every_handler_of_the_broker_refuses_illegal_topics(broker: Server) -> None:
    async with broker.client() as client:
        assert (await client.ask(CREATE_TOPIC, TOPIC_FIELDS | {"topic": SAMPLE_TOPIC})).code == 0
        before = broker.names_on_disk()
        for each in samples(broker):
            for name in {"topic", "originTopic", "b"}.intersection(field.name for field in each.declared):
                for topic in (*ILLEGAL, TOO_LONG_TOPIC):
                    answer = await client.ask(each.code, each.fields | {name: topic})
                    assert_refused(answer, f"{each} with {name}={topic[:50]!r}")
        assert broker.names_on_disk() == before


async def test_every_handler_of_the_broker_refuses_illegal_groups(broker: Server) -> None:
    async with broker.client() as client:
        assert (await client.ask(CREATE_TOPIC, TOPIC_FIELDS | {"topic": SAMPLE_TOPIC})).code == 0
        before = broker.names_on_disk()
        for each in samples(broker):
            if any(each.code in routes.batch_handlers for routes in broker.routes):
                continue  # of a producer's group nothing is kept
            for name in GROUP_FIELDS.intersection(field.name for field in each.declared):
                for group in (*ILLEGAL, TOO_LONG_GROUP):
                    answer = await client.ask(each.code, each.fields | {name: group})
                    assert_refused(answer, f"{each} with {name}={group[:50]!r}")
        assert broker.names_on_disk() == before


def bodies_with_group(name: str) -> list[tuple[int, object]]:
    queue = {"brokerName": "broker-a", "queueId": 0, "topic": TOPIC}
    subscription = {"topic": TOPIC, "subString": "*", "subVersion": 1}
    consumer = {"groupName": name, "subscriptionDataSet": [subscription]}
    return [
        (HEARTBEAT, {"clientID": "c", "consumerDataSet": [consumer]}),
        (HEARTBEAT, {"clientID": "c", "producerDataSet": [{"groupName": name}]}),
        (LOCK, {"clientId": "c", "consumerGroup": name, "mqSet": [queue]}),
        (UNLOCK, {"clientId": "c", "consumerGroup": name, "mqSet": [queue]}),
        (CHECK_CLIENT_CONFIG, {"clientId": "c", "group": name, "subscriptionData": subscription}),
        (UPDATE_GROUP, {"groupName": name}),
        (UPDATE_GROUPS, {"groupConfigList": [{"groupName": "good"}, {"groupName": name}]}),
    ]


def bodies_with_topic(name: str) -> list[tuple[int, object]]:
    subscription = {"topic": name, "subString": "*", "subVersion": 1}
    consumer = {"groupName": "g", "subscriptionDataSet": [subscription]}
    return [
        (HEARTBEAT, {"clientID": "c", "consumerDataSet": [consumer]}),
        (CHECK_CLIENT_CONFIG, {"clientId": "c", "group": "g", "subscriptionData": subscription}),
        (UPDATE_TOPICS, {"topicConfigList": [{"topicName": "good"}, {"topicName": name}]}),
    ]


async def test_bodies_with_illegal_names_are_refused(broker: Server) -> None:
    before = broker.names_on_disk()
    async with broker.client() as client:
        for make, too_long in ((bodies_with_group, TOO_LONG_GROUP), (bodies_with_topic, TOO_LONG_TOPIC)):
            for name in ("", *ILLEGAL, too_long):
                for code, body in make(name):
                    answer = await client.ask(code, {}, json.dumps(body).encode())
                    assert_refused(answer, f"{code} with {name[:50]!r}")
    assert broker.names_on_disk() == before


async def test_queues_of_illegal_topics_are_not_locked(broker: Server) -> None:
    queues = [{"brokerName": "broker-a", "queueId": 0, "topic": name} for name in ("", *ILLEGAL, TOO_LONG_TOPIC)]
    async with broker.client() as client:
        lock = {"clientId": "c", "consumerGroup": "g", "mqSet": queues}
        answer = await client.ask(LOCK, {}, json.dumps(lock).encode())
        assert json.loads(answer.body)["lockOKMQSet"] == []


async def test_an_empty_group_of_a_leaving_client_is_no_group(broker: Server) -> None:
    async with broker.client() as client:
        answer = await client.ask(35, {"clientID": "c", "producerGroup": "p", "consumerGroup": ""})
        assert answer.code == 0


async def test_the_name_server_knows_no_illegal_topic(namesrv: Server) -> None:
    before = namesrv.names_on_disk()
    queues = {"queueDatas": [{"brokerName": "healthy-broker", "perm": 6, "readQueueNums": 1, "writeQueueNums": 1}]}
    async with namesrv.client() as client:
        for topic in ("", *ILLEGAL, TOO_LONG_TOPIC):
            assert_refused(await client.ask(105, {"topic": topic}), f"route of {topic[:50]!r}")
            answer = await client.ask(REGISTER_TOPIC, {"topic": topic}, json.dumps(queues).encode())
            assert_refused(answer, f"registration of {topic[:50]!r}")
        assert json.loads((await client.ask(206)).body)["topicList"] == [TOPIC]
    assert namesrv.names_on_disk() == before


async def test_the_name_server_refuses_names_that_are_too_long(namesrv: Server) -> None:
    async with namesrv.client() as client:
        for name in ("brokerName", "brokerAddr", "clusterName", "haServerAddr"):
            fields = REGISTRATION | {"brokerAddr": "127.0.0.1:9", "brokerName": "other", name: "a" * 100_000}
            assert_refused(await client.ask(103, fields, registration_body("other")), name)
        fields = REGISTRATION | {"brokerAddr": "127.0.0.1:9", "brokerName": "other"}
        assert_refused(await client.ask(103, fields, registration_body("a" * 100_000)), "topic")
        cluster = (await client.ask(106)).body
        assert cluster.count(b"brokerName") == 1
        assert len(cluster) < 1000
