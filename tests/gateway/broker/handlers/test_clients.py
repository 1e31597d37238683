"""Heartbeats and what they set off; locks; questions passed on to consumers."""

from collections.abc import Callable

import pytest
import trio
from structlog.testing import capture_logs

from gateway.broker.handlers import clients
from gateway.broker.handlers.clients import connection_closed, expire_silent_clients
from protocol import bodies
from protocol.codes import LanguageCode, RequestCode, ResponseCode
from protocol.command import Command
from protocol.requests.clients import (
    ConsumeMessageDirectly,
    GetConsumerConnectionList,
    GetConsumerListByGroup,
    GetConsumerRunningInfo,
    GetProducerConnectionList,
    UnregisterClient,
)
from tests.gateway.broker.handlers.rig import FakeConnection, Rig

Make = Callable[..., Rig]


def beat_body(client_id: str, *groups: str, producers: tuple[str, ...] = (), expression: str = "*") -> bytes:
    return bodies.HeartbeatData(
        client_id=client_id,
        consumer_data_set=[
            bodies.ConsumerData(
                group_name=group,
                subscription_data_set=[
                    bodies.SubscriptionData(topic="T", sub_string=expression, sub_version=1),
                    bodies.SubscriptionData(topic="%RETRY%" + group, sub_string="*", sub_version=1),
                ],
            )
            for group in groups
        ],
        producer_data_set=[bodies.ProducerData(group_name=group) for group in producers],
    ).encode()


async def beat(rig: Rig, connection: FakeConnection, client_id: str, *groups: str, **more: object) -> Command:
    body = beat_body(client_id, *groups, **more)  # type: ignore[arg-type]
    return await rig.ask(RequestCode.HEART_BEAT, body=body, connection=connection)


def told(connection: FakeConnection) -> list[str]:
    """The groups that the connection was told to have changed, since the last look."""
    assert {notice.code for notice in connection.notices} <= {RequestCode.NOTIFY_CONSUMER_IDS_CHANGED}
    groups = [notice.fields["consumerGroup"] for notice in connection.notices]
    connection.notices.clear()
    return groups


async def members(rig: Rig, group: str) -> list[str]:
    answer = await rig.ask(RequestCode.GET_CONSUMER_LIST_BY_GROUP, GetConsumerListByGroup(consumer_group=group))
    return bodies.ConsumerList.decode(answer.body).consumer_id_list


async def test_a_heartbeat_is_applied_before_it_is_answered(rig: Rig) -> None:
    answer = await beat(rig, rig.connect(), "one", "g")
    assert (answer.code, answer.version) == (ResponseCode.SUCCESS, 401)
    assert await members(rig, "g") == ["one"]


async def test_all_members_are_told_of_a_change_the_new_one_too(rig: Rig) -> None:
    one, two = rig.connect(), rig.connect()
    await beat(rig, one, "one", "g")
    assert told(one) == ["g"]
    await beat(rig, two, "two", "g", "h")
    assert told(one) == ["g"]
    assert told(two) == ["g", "h"]
    await beat(rig, two, "two", "g", "h")
    assert told(one) == told(two) == []


async def test_a_notice_has_a_header_of_its_own_for_each_connection(rig: Rig) -> None:
    one, two = rig.connect(), rig.connect()
    await beat(rig, one, "one", "g")
    await beat(rig, two, "two", "g")
    assert one.notices[-1] is not two.notices[-1]


async def test_heartbeats_make_groups_and_retry_topics(rig: Rig) -> None:
    await beat(rig, rig.connect(), "one", "g")
    assert "g" in rig.broker.groups
    config = rig.broker.topics.get("%RETRY%g")
    assert config is not None
    assert (config.read_queue_nums, config.write_queue_nums, config.perm) == (1, 1, 6)


async def test_a_name_too_long_for_a_retry_topic_gets_none(rig: Rig) -> None:
    group = "g" * 121
    assert (await beat(rig, rig.connect(), "one", group)).code == ResponseCode.SUCCESS
    assert "%RETRY%" + group not in rig.broker.topics
    assert await members(rig, group) == ["one"]


async def test_without_automatic_groups_a_heartbeat_makes_none(make_rig: Make) -> None:
    rig = make_rig(auto_create_subscription_group=False)
    assert (await beat(rig, rig.connect(), "one", "g")).code == ResponseCode.SUCCESS
    assert "g" not in rig.broker.groups
    assert "%RETRY%g" not in rig.broker.topics
    assert await members(rig, "g") == ["one"]


@pytest.mark.parametrize("group", ["", "..", "x/../../y", "a\0b", "g" * 256])
async def test_illegal_groups_are_refused_and_leave_nothing(rig: Rig, group: str) -> None:
    peer = rig.connect()
    for body in (beat_body("one", "good", group), beat_body("one", "good", producers=(group,))):
        answer = await rig.ask(RequestCode.HEART_BEAT, body=body, connection=peer)
        assert answer.code == ResponseCode.SYSTEM_ERROR
        assert answer.remark.startswith("The specified group")  # type: ignore[union-attr]
    assert rig.broker.clients.counts() == (0, 0)
    assert len(rig.broker.groups) == 7


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"clientID":5}',
        b'{"clientID":"x","consumerDataSet":7}',
        b'{"clientID":"x","consumerDataSet":[{}]}',
        b'{"clientID":"x","consumerDataSet":[{"groupName":"g","subscriptionDataSet":[{"topic":[]}]}]}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        beat_body("x" * (clients.MAX_CLIENT_ID_LENGTH + 1), "g"),
        b" " * clients.MAX_HEARTBEAT_BYTES + beat_body("x", "g"),
    ],
)
async def test_broken_heartbeats_are_refused(rig: Rig, body: bytes) -> None:
    answer = await rig.ask(RequestCode.HEART_BEAT, body=body)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert answer.remark
    assert rig.broker.clients.counts() == (0, 0)


async def test_heartbeats_of_the_cpp_client_are_understood(rig: Rig) -> None:
    body = (
        b'{"clientID":"10.0.0.9@1@2","consumerDataSet":[{"consumeFromWhere":4,"consumeType":1,"groupName":"g",'
        b'"messageModel":1,"subscriptionDataSet":[{"classFilterMode":false,"subString":"*",'
        b'"subVersion":"1700000000000","topic":"T"}]}],"producerDataSet":[{"groupName":"p"}]}'
    )
    answer = await rig.ask(RequestCode.HEART_BEAT, body=body, language=LanguageCode.CPP)
    assert answer.code == ResponseCode.SUCCESS
    group = rig.broker.clients.consumer_group("g")
    assert group is not None
    assert (group.consume_from_where, group.message_model) == ("CONSUME_FROM_FIRST_OFFSET", "CLUSTERING")


async def test_leaving_is_told_to_the_rest(rig: Rig) -> None:
    one, two = rig.connect(), rig.connect()
    await beat(rig, one, "one", "g", producers=("p",))
    await beat(rig, two, "two", "g")
    told(one), told(two)
    leave = UnregisterClient(client_id="one", consumer_group="g", producer_group="")
    assert (await rig.ask(RequestCode.UNREGISTER_CLIENT, leave, connection=one)).code == ResponseCode.SUCCESS
    assert (told(one), told(two)) == ([], ["g"])
    assert await members(rig, "g") == ["two"]
    assert rig.broker.clients.producers("p") is not None


async def test_a_closed_connection_is_told_to_the_rest(rig: Rig) -> None:
    one, two = rig.connect(), rig.connect()
    await beat(rig, one, "one", "g")
    await beat(rig, two, "two", "g")
    told(two)
    connection_closed(rig.broker, one)  # type: ignore[arg-type]
    assert told(two) == ["g"]


async def test_silent_clients_are_closed_and_told_to_the_rest(rig: Rig) -> None:
    one, two = rig.connect(), rig.connect()
    await beat(rig, one, "one", "g")
    rig.clock.advance(120_001)
    await beat(rig, two, "two", "g")
    told(two)
    expire_silent_clients(rig.broker)
    assert (one.closed, two.closed) == (True, False)
    assert told(two) == ["g"]


async def test_notices_can_be_switched_off(make_rig: Make) -> None:
    rig = make_rig(notify_consumer_ids_changed_enable=False)
    one = rig.connect()
    await beat(rig, one, "one", "g")
    assert told(one) == []


async def test_notices_can_be_switched_off_for_a_group(rig: Rig) -> None:
    quiet = bodies.SubscriptionGroupConfig(group_name="quiet", notify_consumer_ids_changed_enable=False)
    rig.broker.groups.update([quiet])
    one = rig.connect()
    await beat(rig, one, "one", "quiet", "g")
    assert told(one) == ["g"]


async def test_differing_subscriptions_are_logged_with_both(rig: Rig) -> None:
    one, two = rig.connect(), rig.connect()
    with capture_logs() as logs:
        await beat(rig, one, "one", "g", expression="a")
        await beat(rig, two, "two", "g", expression="b")
        await beat(rig, one, "one", "g", expression="a")
    (warning,) = [entry for entry in logs if entry["event"] == "subscriptions_differ"]
    assert (warning["client"], warning["subscription"]) == ("two", "%RETRY%g: *, T: b")
    assert (warning["other_client"], warning["other_subscription"]) == ("one", "%RETRY%g: *, T: a")


# ---- questions about clients


async def test_a_group_without_consumers(rig: Rig) -> None:
    answer = await rig.ask(RequestCode.GET_CONSUMER_LIST_BY_GROUP, GetConsumerListByGroup(consumer_group="g"))
    assert (answer.code, answer.remark) == (ResponseCode.SYSTEM_ERROR, "no consumer for this group, g")
    answer = await rig.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, GetConsumerConnectionList(consumer_group="g"))
    assert (answer.code, answer.remark) == (ResponseCode.CONSUMER_NOT_ONLINE, "the consumer group[g] not online")
    answer = await rig.ask(RequestCode.GET_PRODUCER_CONNECTION_LIST, GetProducerConnectionList(producer_group="g"))
    assert (answer.code, answer.remark) == (ResponseCode.SYSTEM_ERROR, "the producer group[g] not exist")


async def test_connections_of_a_group(rig: Rig) -> None:
    one = rig.connect()
    await beat(rig, one, "one", "g", producers=("p",), expression="a")
    answer = await rig.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, GetConsumerConnectionList(consumer_group="g"))
    body = bodies.ConsumerConnection.decode(answer.body)
    connection = bodies.Connection(client_addr=one.remote_address, client_id="one", language="JAVA", version=401)
    assert body.connection_set == [connection]
    assert body.subscription_table["T"].sub_string == "a"
    answer = await rig.ask(RequestCode.GET_PRODUCER_CONNECTION_LIST, GetProducerConnectionList(producer_group="p"))
    assert bodies.ProducerConnection.decode(answer.body).connection_set == [connection]
    answer = await rig.ask(RequestCode.GET_ALL_PRODUCER_INFO)
    (info,) = bodies.ProducerTableInfo.decode(answer.body).data["p"]
    assert (info.client_id, info.last_update_timestamp, info.remote_ip) == ("one", rig.clock.ms, one.remote_address)


async def test_a_language_without_a_name_is_other(rig: Rig) -> None:
    await rig.ask(RequestCode.HEART_BEAT, body=beat_body("one", "g"), language=77)
    answer = await rig.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, GetConsumerConnectionList(consumer_group="g"))
    assert bodies.ConsumerConnection.decode(answer.body).connection_set[0].language == "OTHER"


@pytest.mark.parametrize(("expression_type", "code"), [("TAG", 0), ("", 0), ("SQL92", 1)])
async def test_client_configurations_are_checked(rig: Rig, expression_type: str, code: int) -> None:
    body = bodies.CheckClientRequestBody(
        client_id="one",
        group="g",
        subscription_data=bodies.SubscriptionData(topic="T", sub_string="a > 1", expression_type=expression_type),
    )
    answer = await rig.ask(RequestCode.CHECK_CLIENT_CONFIG, body=body.encode())
    assert answer.code == code
    if code:
        assert answer.remark == "The broker does not support consumer to filter message by SQL92"


# ---- queue locks


def lock_body(client_id: str, *queue_ids: int) -> bytes:
    queues = [bodies.MessageQueue(broker_name="broker-a", queue_id=number, topic="T") for number in queue_ids]
    return bodies.LockBatchRequestBody(client_id=client_id, consumer_group="g", mq_set=queues).encode()


async def held(rig: Rig, client_id: str, *queue_ids: int) -> list[int]:
    answer = await rig.ask(RequestCode.LOCK_BATCH_MQ, body=lock_body(client_id, *queue_ids))
    assert answer.code == ResponseCode.SUCCESS
    return [queue.queue_id for queue in bodies.LockBatchResponseBody.decode(answer.body).lock_ok_mq_set]


async def test_locking_and_unlocking(rig: Rig) -> None:
    assert await held(rig, "one", 0, 1) == [0, 1]
    assert await held(rig, "two", 1, 2) == [2]
    await rig.ask(RequestCode.UNLOCK_BATCH_MQ, body=lock_body("one", 1))
    assert await held(rig, "two", 1) == [1]
    rig.clock.advance(60_001)
    assert await held(rig, "two", 0) == [0]


async def test_what_cannot_be_a_queue_of_this_broker_is_not_locked(rig: Rig) -> None:
    queues = [
        bodies.MessageQueue(broker_name=broker, queue_id=0, topic=topic)
        for broker, topic in (("broker-a", "T"), ("other", "T"), ("broker-a", "x" * 10_000), ("broker-a", "../T"))
    ]
    body = bodies.LockBatchRequestBody(client_id="one", consumer_group="g", mq_set=queues)
    answer = await rig.ask(RequestCode.LOCK_BATCH_MQ, body=body.encode())
    assert bodies.LockBatchResponseBody.decode(answer.body).lock_ok_mq_set == queues[:1]
    body.client_id = "x" * (clients.MAX_CLIENT_ID_LENGTH + 1)
    assert (await rig.ask(RequestCode.LOCK_BATCH_MQ, body=body.encode())).code == ResponseCode.SYSTEM_ERROR
    body.consumer_group = "x/y"
    assert (await rig.ask(RequestCode.LOCK_BATCH_MQ, body=body.encode())).code == ResponseCode.SYSTEM_ERROR


async def test_unlocking_one_way_is_not_answered(rig: Rig) -> None:
    await held(rig, "one", 0)
    rig.tell(RequestCode.UNLOCK_BATCH_MQ, body=lock_body("one", 0))
    rig.tell(RequestCode.UNLOCK_BATCH_MQ, body=b"broken")
    assert await held(rig, "two", 0) == [0]
    assert rig.tool.answers.statistics().current_buffer_used == 0


# ---- relays


async def running_info(rig: Rig, client_id: str = "one") -> Command:
    header = GetConsumerRunningInfo(consumer_group="g", client_id=client_id, jstack_enable=True)
    return await rig.ask(RequestCode.GET_CONSUMER_RUNNING_INFO, header)


async def test_a_relayed_answer_comes_back_untouched(rig: Rig) -> None:
    one = rig.connect()
    asked = []

    async def react(question: Command) -> Command:
        asked.append(question)
        return Command(ResponseCode.SYSTEM_ERROR, body=b'{{"odd":1}:2}', remark="as it is")

    one.reaction = react
    await beat(rig, one, "one", "g")
    answer = await running_info(rig)
    assert (answer.code, answer.remark, answer.body) == (1, "as it is", b'{{"odd":1}:2}')
    assert asked[0].code == RequestCode.GET_CONSUMER_RUNNING_INFO
    assert asked[0].fields == {"consumerGroup": "g", "clientId": "one", "jstackEnable": "true"}


async def test_a_relay_needs_a_client_that_is_there_and_understands_it(rig: Rig) -> None:
    answer = await running_info(rig)
    assert (answer.code, answer.remark) == (ResponseCode.SYSTEM_ERROR, "The Consumer <g> <one> not online")
    await rig.ask(RequestCode.HEART_BEAT, body=beat_body("one", "g"), version=61)
    answer = await running_info(rig)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert "too low" in (answer.remark or "")


async def test_a_relay_ends_with_the_connection_or_the_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    one = rig.connect()
    await beat(rig, one, "one", "g")
    assert (await running_info(rig)).code == ResponseCode.SYSTEM_ERROR

    async def never(question: Command) -> Command:
        return await trio.sleep_forever()

    one.reaction = never
    monkeypatch.setattr(clients, "RELAY_SECONDS", 0.0)
    answer = await running_info(rig)
    assert answer.code == ResponseCode.CONSUME_MSG_TIMEOUT


async def test_a_message_is_consumed_directly(rig: Rig) -> None:
    one = rig.connect()
    asked = []

    async def react(question: Command) -> Command:
        asked.append(question)
        return Command(ResponseCode.SUCCESS, body=b"{}")

    one.reaction = react
    await beat(rig, one, "one", "g")
    _, message = rig.store_messages("T", 0, 2)
    message_id = f"0A00000100002A9F{message.physical_offset:016X}"
    header = ConsumeMessageDirectly(consumer_group="g", client_id="one", msg_id=message_id)
    answer = await rig.ask(RequestCode.CONSUME_MESSAGE_DIRECTLY, header)
    assert answer.code == ResponseCode.SUCCESS
    stored = rig.broker.store.message_at(message.physical_offset)
    assert stored is not None
    assert asked[0].body == stored.raw
    assert asked[0].fields["brokerName"] == "broker-a"


@pytest.mark.parametrize("message_id", [None, "", "zz", "0A00000100002A9F0000000000000001", "00" * 28])
async def test_a_message_that_is_not_there_is_not_consumed(rig: Rig, message_id: str | None) -> None:
    rig.store_messages("T", 0, 1)
    header = ConsumeMessageDirectly(consumer_group="g", client_id="one", msg_id=message_id)
    answer = await rig.ask(RequestCode.CONSUME_MESSAGE_DIRECTLY, header)
    assert answer.code == ResponseCode.SYSTEM_ERROR
