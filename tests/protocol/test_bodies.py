"""JSON bodies: what official programs wrote comes out as it went in; what other clients write is understood."""

import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import bodies
from protocol.bodies import (
    AclConfig,
    Body,
    BrokerData,
    BrokerStatsData,
    BrokerStatsItem,
    CheckClientRequestBody,
    ClusterInfo,
    ConsumeFromWhere,
    ConsumeMessageDirectlyResult,
    ConsumerConnection,
    ConsumerData,
    ConsumerList,
    ConsumerOffsetBody,
    ConsumeStats,
    ConsumeStatsList,
    ConsumeType,
    DataVersion,
    DelayOffsetBody,
    GetConsumerStatusBody,
    GroupList,
    GroupTableBody,
    HARuntimeInfo,
    HeartbeatData,
    KVTable,
    LockBatchRequestBody,
    LockBatchResponseBody,
    MessageModel,
    MessageQueue,
    OffsetMovedEvent,
    OffsetWrapper,
    OpenBody,
    ProducerConnection,
    ProducerTableInfo,
    QueryConsumeQueueResponseBody,
    QueryCorrectionOffsetBody,
    QueueData,
    RegisterBrokerBody,
    ResetOffsetBody,
    ResetOffsetBodyForC,
    SubscriptionData,
    SubscriptionGroupConfig,
    SubscriptionGroupList,
    TopicConfig,
    TopicFilterType,
    TopicList,
    TopicRouteData,
    TopicStatsTable,
    TopicTableBody,
    crc32,
)
from protocol.errors import LocalProtocolError, RemoteProtocolError
from tests.protocol import golden

BODIES = {
    name: getattr(bodies, name)
    for name in bodies.__all__
    if isinstance(getattr(bodies, name), type)
    and issubclass(getattr(bodies, name), msgspec.Struct)
    and getattr(bodies, name) not in (Body, OpenBody)
}

QUEUE = MessageQueue(broker_name="b", queue_id=0, topic="T")


# ---- what official programs sent

SENT: dict[str, type[Body]] = {
    "get-all-consumer-offset.response": ConsumerOffsetBody,
    "get-all-delay-offset.response": DelayOffsetBody,
    "get-all-subscriptiongroup-config.response": GroupTableBody,
    "get-all-topic-config.response": TopicTableBody,
    "get-all-topic-list-from-nameserver.response": TopicList,
    "get-broker-cluster-info.response": ClusterInfo,
    "get-broker-runtime-info.response": KVTable,
    "get-consume-stats.response": ConsumeStats,
    "get-consumer-connection-list.response": ConsumerConnection,
    "get-consumer-list-by-group.response": ConsumerList,
    "get-producer-connection-list.response": ProducerConnection,
    "get-topic-stats-info.response": TopicStatsTable,
    "heart-beat.request": HeartbeatData,
    "invoke-broker-to-reset-offset.response": ResetOffsetBody,
    "lock-batch-mq.request": LockBatchRequestBody,
    "lock-batch-mq.response": LockBatchResponseBody,
    "get-routeinfo-by-topic.response": TopicRouteData,
    "query-consume-queue.response": QueryConsumeQueueResponseBody,
    "register-broker.request": RegisterBrokerBody,
    "reset-consumer-client-offset.request": ResetOffsetBody,
    "route-standard-json.response": TopicRouteData,
    "route-unquoted.response": TopicRouteData,
    "unlock-batch-mq.request": LockBatchRequestBody,
    "update-and-create-subscriptiongroup.request": SubscriptionGroupConfig,
}
OTHER_VERSIONS = ("[!4]*/*.re*.bin", "4.8*/*.re*.bin", "*-cpp/*.re*.bin")
RELAYED = {"get-consumer-running-info.response"}  # the broker passes it on without looking


def sent(pattern: str) -> list[Path]:
    return [path for path in golden.frames(pattern) if golden.frame(path).body[:1] in (b"{", b"[")]


@pytest.mark.parametrize("path", sent("4.9.4-[!c]*/*.re*.bin"), ids=golden.name_of)
def test_bodies_of_the_base_line_are_written_as_they_were_read(path: Path) -> None:
    name = path.name.removesuffix(".bin")
    if name not in RELAYED:
        data = golden.frame(path).body
        assert SENT[name].decode(data).encode(name == "route-standard-json.response") == data


@pytest.mark.parametrize("path", [path for pattern in OTHER_VERSIONS for path in sent(pattern)], ids=golden.name_of)
def test_bodies_of_other_versions_are_understood(path: Path) -> None:
    body = SENT[path.name.removesuffix(".bin")].decode(golden.frame(path).body)
    assert type(body).decode(body.encode()) == body
    assert body != _empty(type(body))


def _empty(cls: type[Body]) -> object:
    """A body that took nothing from its text, if the class has one."""
    try:
        return cls.decode(b"{}")
    except RemoteProtocolError:
        return None


# What fastjson 1.2.69 makes of objects of the classes of rocketmq-common 4.9.4.
PRINTED: list[tuple[type[Body], str]] = [
    (
        ConsumeStatsList,
        '{"brokerAddr":"a","consumeStatsList":[{"g":[{"consumeTps":1.5,"offsetTable":{{"brokerName":"b","queueId":0,'
        '"topic":"T"}:{"brokerOffset":0,"consumerOffset":0,"lastTimestamp":0}}}]}],"totalDiff":0}',
    ),
    (ResetOffsetBodyForC, '{"offsetTable":[{"brokerName":"b","offset":5,"queueId":0,"topic":"T"}]}'),
    (
        GetConsumerStatusBody,
        '{"consumerTable":{},"messageQueueTable":{{"brokerName":"b","queueId":0,"topic":"T"}:5}}',
    ),
    (
        GetConsumerStatusBody,
        '{"consumerTable":{"cid":{{"brokerName":"b","queueId":0,"topic":"T"}:5}},"messageQueueTable":{}}',
    ),
    (QueryCorrectionOffsetBody, '{"correctionOffsets":{0:3}}'),
    (
        BrokerStatsData,
        '{"statsDay":{"avgpt":0.0,"sum":3,"tps":0.5},"statsHour":{"avgpt":0.0,"sum":0,"tps":0.0},'
        '"statsMinute":{"avgpt":0.0,"sum":0,"tps":0.0}}',
    ),
    (
        ProducerTableInfo,
        '{"data":{"g":[{"clientId":"cid","language":"JAVA","lastUpdateTimestamp":77,"remoteIP":"1.1.1.1:1",'
        '"version":401}]}}',
    ),
    (
        CheckClientRequestBody,
        '{"clientId":"c","group":"g","subscriptionData":{"classFilterMode":false,"codeSet":[97],'
        '"expressionType":"TAG","subString":"a||b","subVersion":5,"tagsSet":["a"],"topic":"T"}}',
    ),
    (
        ConsumeMessageDirectlyResult,
        '{"autoCommit":true,"consumeResult":"CR_SUCCESS","order":false,"spentTimeMills":0}',
    ),
    (GroupList, '{"groupList":["g"]}'),
    (KVTable, '{"table":{"k":"v"}}'),
    (ConsumerList, '{"consumerIdList":["c"]}'),
    (
        AclConfig,
        '{"globalWhiteAddrs":["*"],"plainAccessConfigs":[{"accessKey":"ak","admin":false,"topicPerms":["T=PUB"]}]}',
    ),
    (
        QueryConsumeQueueResponseBody,
        '{"maxQueueIndex":0,"minQueueIndex":0,"queueData":[{"eval":false,"msg":"m","physicOffset":0,"physicSize":0,'
        '"tagsCode":0}],"subscriptionData":{"classFilterMode":false,"codeSet":[97],"expressionType":"TAG",'
        '"subString":"a||b","subVersion":5,"tagsSet":["a"],"topic":"T"}}',
    ),
    (
        OffsetMovedEvent,
        '{"consumerGroup":"g","messageQueue":{"brokerName":"b","queueId":0,"topic":"T"},"offsetNew":1,'
        '"offsetRequest":2}',
    ),
]


@pytest.mark.parametrize(("cls", "text"), PRINTED)
def test_bodies_match_what_the_official_classes_print(cls: type[Body], text: str) -> None:
    assert cls.decode(text.encode()).encode().decode() == text


def test_the_group_table_file_has_the_official_form() -> None:
    body = GroupTableBody(
        data_version=DataVersion(counter=0, timestamp=7),
        subscription_group_table={"g": SubscriptionGroupConfig(group_name="g")},
    )
    assert body.encode(pretty=True).decode() == (
        '{\n\t"dataVersion":{\n\t\t"counter":0,\n\t\t"timestamp":7\n\t},\n\t"subscriptionGroupTable":{\n\t\t"g":{\n'
        '\t\t\t"brokerId":0,\n\t\t\t"consumeBroadcastEnable":true,\n\t\t\t"consumeEnable":true,\n'
        '\t\t\t"consumeFromMinEnable":true,\n\t\t\t"groupName":"g",\n\t\t\t"notifyConsumerIdsChangedEnable":true,\n'
        '\t\t\t"retryMaxTimes":16,\n\t\t\t"retryQueueNums":1,\n\t\t\t"whichBrokerWhenConsumeSlowly":1\n\t\t}\n\t}\n}'
    )


def test_the_offset_file_has_the_official_form() -> None:
    body = ConsumerOffsetBody(offset_table={"T@g": {1: 6, 0: 5}})
    assert body.encode(pretty=True) == b'{\n\t"offsetTable":{\n\t\t"T@g":{0:5,1:6\n\t\t}\n\t}\n}'


# ---- all bodies


@pytest.mark.parametrize("name", sorted(BODIES))
def test_random_json_raises_nothing_but_protocol_errors(name: str) -> None:
    cls = BODIES[name]
    members = [field.encode_name for field in msgspec.structs.fields(cls)]
    values = st.sampled_from(
        [
            *("0", "-1", "99999999999999999999", "1.5", '"x"', '"1"', "true", "null", "[]", "{}", "[null]", "[{}]"),
            *('{"a":{}}', "{0:1}", '{{"q":1}:2}', "[[{},1]]", '{"a":[{}]}', "[", '"'),
        ]
    )

    @settings(max_examples=30)
    @given(st.dictionaries(st.sampled_from(members), values))
    def decode(chosen: dict[str, str]) -> None:
        text = "{" + ",".join(f'"{member}":{value}' for member, value in chosen.items()) + "}"
        try:
            body = cls.decode(text.encode())
        except RemoteProtocolError as error:
            assert error.remark.startswith(name)  # noqa: PT017 - not every example raises
        else:
            assert cls.decode(body.encode()) == body

    decode()


@pytest.mark.parametrize("name", sorted(BODIES))
def test_broken_json_names_the_body(name: str) -> None:
    for text in ("", "[]", "1", "{", '"', '{"x":' * 5000, "[" * 5000, "{{" * 5000, "{{}:1}x", "\xff"):
        with pytest.raises(RemoteProtocolError, match=f"^{name}: "):
            BODIES[name].decode(text.encode("latin-1"))


# ---- heartbeats

JAVA_HEARTBEAT = (
    b'{"clientID":"c","consumerDataSet":[{"consumeFromWhere":"CONSUME_FROM_TIMESTAMP",'
    b'"consumeType":"CONSUME_PASSIVELY","groupName":"g","messageModel":"CLUSTERING","subscriptionDataSet":['
    b'{"classFilterMode":false,"codeSet":[97],"expressionType":"TAG","subString":"a","subVersion":123,"tagsSet":["a"],'
    b'"topic":"T"}],"unitMode":false}],"producerDataSet":[{"groupName":"p"}]}'
)
CPP_HEARTBEAT = (
    b'{"clientID":"c","consumerDataSet":[{"consumeFromWhere":5,"consumeType":1,"groupName":"g","messageModel":1,'
    b'"subscriptionDataSet":[{"codeSet":[97],"subString":"a","subVersion":"123","tagsSet":["a"],"topic":"T"}]}],'
    b'"producerDataSet":[{"groupName":"p"}]}'
)
GO_HEARTBEAT = (
    b'{"clientID":"c","producerDataSet":[{"groupName":"p"}],"consumerDataSet":[{"groupName":"g","consumeType":"PUSH",'
    b'"messageModel":"CLUSTERING","consumeFromWhere":"CONSUME_FROM_TIMESTAMP","subscriptionDataSet":['
    b'{"classFilterMode":false,"topic":"T","subString":"a","tagsSet":["a"],"codeSet":[97],"subVersion":123,'
    b'"expressionType":null}],"unitMode":null}]}'
)


@pytest.mark.parametrize("data", [JAVA_HEARTBEAT, CPP_HEARTBEAT, GO_HEARTBEAT], ids=["java", "cpp", "go"])
def test_heartbeats_of_all_clients_come_out_alike(data: bytes) -> None:
    assert HeartbeatData.decode(data) == HeartbeatData(
        client_id="c",
        consumer_data_set=[
            ConsumerData(
                group_name="g",
                consume_type=ConsumeType.CONSUME_PASSIVELY,
                message_model=MessageModel.CLUSTERING,
                consume_from_where=ConsumeFromWhere.CONSUME_FROM_TIMESTAMP,
                subscription_data_set=[
                    SubscriptionData(topic="T", sub_string="a", sub_version=123, tags_set=["a"], code_set=[97])
                ],
            )
        ],
        producer_data_set=[bodies.ProducerData(group_name="p")],
    )


def test_heartbeat_without_groups() -> None:
    assert HeartbeatData.decode(b'{"clientID":"c"}') == HeartbeatData(client_id="c")


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (b'"clientID":"c"', b'"clientId":"c"', "clientID"),
        (b'"topic":"T"', b'"topic":1', r"consumerDataSet\[0\].subscriptionDataSet\[0\].topic"),
        (b'"consumeType":1', b'"consumeType":3', r"consumerDataSet\[0\].consumeType"),
        (b'"consumeType":1', b'"consumeType":"MAYBE"', r"consumerDataSet\[0\].consumeType"),
        (b'"messageModel":1', b'"messageModel":-1', r"consumerDataSet\[0\].messageModel"),
        (b'"codeSet":[97]', b'"codeSet":[2147483648]', r"codeSet\[0\]"),
        (b'"producerDataSet":[{', b'"producerDataSet":[{"x":{', "Heartbeat"),
        (b'"consumerDataSet":[{', b'"consumerDataSet":[7,{', r"consumerDataSet\[0\]"),
    ],
)
def test_what_is_wrong_in_a_heartbeat_is_named(old: bytes, new: bytes, what: str) -> None:
    assert old in CPP_HEARTBEAT
    with pytest.raises(RemoteProtocolError, match=what):
        HeartbeatData.decode(CPP_HEARTBEAT.replace(old, new))


# ---- routes

ROUTE = TopicRouteData(
    broker_datas=[BrokerData(broker_addrs={1: "10.0.0.2:1", 0: "10.0.0.1:1"}, broker_name="b", cluster="é")],
    queue_datas=[QueueData(broker_name="b", perm=6, read_queue_nums=8, write_queue_nums=4)],
)


def test_routes_for_old_clients_have_unquoted_ids_and_no_spaces() -> None:
    assert ROUTE.encode().decode() == (
        '{"brokerDatas":[{"brokerAddrs":{0:"10.0.0.1:1",1:"10.0.0.2:1"},"brokerName":"b","cluster":"é"}],'
        '"filterServerTable":{},"queueDatas":[{"brokerName":"b","perm":6,"readQueueNums":8,"topicSysFlag":0,'
        '"writeQueueNums":4}]}'
    )


def test_routes_in_standard_json_are_read_by_any_reader() -> None:
    data = ROUTE.encode(True)
    assert msgspec.json.decode(data)["brokerDatas"][0]["brokerAddrs"] == {"0": "10.0.0.1:1", "1": "10.0.0.2:1"}
    assert b'"cluster":"\\u00e9"' in data


@pytest.mark.parametrize("standard", [True, False])
def test_routes_are_read_in_both_forms(standard: bool) -> None:
    assert TopicRouteData.decode(ROUTE.encode(standard)) == ROUTE


# ---- tables of queues


@pytest.mark.parametrize(
    "text",
    [
        '{"messageQueueTable":{{"brokerName":"b","queueId":0,"topic":"T"}:5}}',
        '{"messageQueueTable":{{"topic":"T","queueId":"0","brokerName":"b"} : "5"}}',
        '{"messageQueueTable":[[{"brokerName":"b","queueId":0,"topic":"T"},5]]}',
    ],
)
def test_offsets_by_queue_are_read_in_all_forms(text: str) -> None:
    assert GetConsumerStatusBody.decode(text.encode()).message_queue_table == {QUEUE: 5}


def test_reset_offsets_in_the_form_of_gson() -> None:
    text = b'{"offsetTable":[[{"brokerName":"b","queueId":0,"topic":"T"},5]]}'
    assert ResetOffsetBody.decode(text).offset_table == {QUEUE: 5}


def test_tables_of_queues_cannot_be_standard_json() -> None:
    with pytest.raises(LocalProtocolError, match="keys"):
        ConsumeStats(offset_table={QUEUE: OffsetWrapper()}).encode(True)


def test_a_broken_queue_in_a_table_is_named() -> None:
    with pytest.raises(RemoteProtocolError, match="topic"):
        ResetOffsetBody.decode(b'{"offsetTable":{{"brokerName":"b","queueId":0}:5}}')


# ---- defaults and versions


def test_topic_defaults_are_those_of_java() -> None:
    assert TopicConfig(topic_name="T").encode() == (
        b'{"order":false,"perm":6,"readQueueNums":16,"topicFilterType":"SINGLE_TAG","topicName":"T","topicSysFlag":0,'
        b'"writeQueueNums":16}'
    )


def test_attributes_of_5x_are_kept() -> None:
    text = b'{"attributes":{"message.type":"NORMAL"},"topicName":"T"}'
    config = TopicConfig.decode(text)
    assert config.attributes == {"message.type": "NORMAL"}
    assert b'"attributes":{"message.type":"NORMAL"}' in config.encode()


STORE_OF_5X = Path(__file__).parents[1] / "data" / "store" / "5.3.3"


def test_a_group_table_of_5x_is_written_as_it_was_read() -> None:
    text = (STORE_OF_5X / "config" / "subscriptionGroup.json").read_bytes()
    body = GroupTableBody.decode(text)
    assert body.others == {"forbiddenTable": {}}
    config = body.subscription_group_table["golden-group"]
    assert config.others is not None
    assert config.others["groupRetryPolicy"] == {"type": "CUSTOMIZED"}
    assert body.encode(pretty=True) == text.replace(b'\t\t"stateVersion":0,\n', b"")


def test_what_4x_wrote_has_no_other_members() -> None:
    assert SubscriptionGroupConfig.decode(b'{"groupName":"g"}') == SubscriptionGroupConfig(group_name="g")
    assert SubscriptionGroupConfig.decode(b'{"groupName":"g","x":null}').others is None


def test_settings_of_5x_are_kept_in_a_list_too() -> None:
    text = b'{"groupConfigList":[{"consumeTimeoutMinute":7,"groupName":"g"},{"groupName":"h"}]}'
    first, second = SubscriptionGroupList.decode(text).group_config_list
    assert (first.others, second.others) == ({"consumeTimeoutMinute": 7}, None)


@pytest.mark.parametrize(
    ("text", "others"),
    [
        (b'{"groupName":"g","x":{0:1,"n":null}}', {"x": {"0": 1}}),
        (b'{"groupName":"g","brokerId":null,"x":{0:[null,{1:2}]}}', {"x": {"0": [None, {"1": 2}]}}),
        (b'{"groupName":"g","*":{"a":1},"others":3}', {"*": {"a": 1}, "others": 3}),
    ],
)
def test_other_members_are_kept_as_standard_json(text: bytes, others: object) -> None:
    config = SubscriptionGroupConfig.decode(text)
    assert config.others == others
    assert msgspec.json.decode(config.encode())["groupName"] == "g"
    assert SubscriptionGroupConfig.decode(config.encode()) == config


@pytest.mark.parametrize(
    ("member", "what"),
    [
        (b"[" * 65 + b"]" * 65, "more than 64 levels"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{{"a":1}:2}', "object as key"),
        (b"1e999", "number"),
    ],
)
def test_other_members_that_could_not_be_written_again_are_refused(member: bytes, what: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"SubscriptionGroupConfig: .*{what}"):
        SubscriptionGroupConfig.decode(b'{"groupName":"g","x":' + member + b"}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


@given(st.dictionaries(st.text(max_size=9), json_values, max_size=4), st.booleans())
def test_any_other_members_survive(members: dict[str, object], pretty: bool) -> None:
    text = msgspec.json.encode({"groupName": "g"} | {f"x{name}": member for name, member in members.items()})
    config = SubscriptionGroupConfig.decode(text)
    assert SubscriptionGroupConfig.decode(config.encode(pretty=pretty)) == config


def test_state_version_is_written_only_if_there_is_one() -> None:
    assert DataVersion(counter=0, timestamp=7).encode() == b'{"counter":0,"timestamp":7}'
    version = DataVersion(counter=0, timestamp=7, state_version=2)
    assert version.encode() == b'{"counter":0,"stateVersion":2,"timestamp":7}'
    assert DataVersion.decode(b'{"counter":0,"stateVersion":0,"timestamp":7}') == DataVersion(counter=0, timestamp=7)


def test_a_table_with_one_permission_for_all() -> None:
    table = TopicTableBody(topic_config_table={"T": TopicConfig(topic_name="T"), "U": TopicConfig(topic_name="U")})
    closed = table.with_permission(4)
    assert [config.perm for config in closed.topic_config_table.values()] == [4, 4]
    assert [config.perm for config in table.topic_config_table.values()] == [6, 6]
    assert closed.data_version == table.data_version


def test_tables_do_not_share_their_defaults() -> None:
    TopicTableBody().topic_config_table["T"] = TopicConfig()
    assert TopicTableBody() == TopicTableBody(topic_config_table={})


def test_replication_status_of_an_idle_broker() -> None:
    data = HARuntimeInfo(master=True).encode()
    assert HARuntimeInfo.decode(data) == HARuntimeInfo(master=True)
    assert b'"inSyncSlaveNums":0,"master":true,"masterCommitLogMaxOffset":0' in data


def test_statistics_of_a_busy_broker() -> None:
    data = BrokerStatsData(stats_day=BrokerStatsItem(avgpt=0.1, sum=2**40, tps=1e7))
    assert BrokerStatsData.decode(data.encode()) == data


# ---- compressed registration

# RegisterBrokerBody.encode(true) of 4.9.4 for the topic T with 8 queues, version 0/7, one filter server.
COMPRESSED = bytes.fromhex(
    "78da63606090ae564ace2fcd2b492d52b232d0512ac9cc4d2d2e49cc2d50b232af656060600462a110050b20345308f6f473f7718d0f7174"
    "078ab2472ba559192ac5020047910fd5"
)
REGISTRATION = RegisterBrokerBody(
    topic_config_serialize_wrapper=TopicTableBody(
        data_version=DataVersion(counter=0, timestamp=7),
        topic_config_table={"T": TopicConfig(topic_name="T", read_queue_nums=8, write_queue_nums=8)},
    ),
    filter_server_list=["f:1"],
)


def test_compressed_registrations_are_those_of_the_official_broker() -> None:
    assert REGISTRATION.encode(compressed=True) == COMPRESSED
    assert RegisterBrokerBody.decode(COMPRESSED, compressed=True) == REGISTRATION


def test_crc_is_that_of_the_official_broker() -> None:
    assert crc32(COMPRESSED) == 2057858096
    assert crc32(b"\x00") == 0xD202EF8D & 0x7FFFFFFF


topic_names = st.text(st.sampled_from("%|-_aZ09é"), min_size=1, max_size=8)
queue_numbers = st.integers(-(2**31), 2**31 - 1)
topic_configs = st.builds(
    TopicConfig,
    topic_name=topic_names,
    read_queue_nums=queue_numbers,
    write_queue_nums=queue_numbers,
    perm=queue_numbers,
    topic_filter_type=st.sampled_from(TopicFilterType),
)


@given(st.lists(topic_configs), st.lists(topic_names), st.booleans())
def test_registrations_survive_the_wire(configs: list[TopicConfig], servers: list[str], compressed: bool) -> None:
    body = RegisterBrokerBody(
        topic_config_serialize_wrapper=TopicTableBody(topic_config_table={c.topic_name: c for c in configs}),
        filter_server_list=servers,
    )
    assert RegisterBrokerBody.decode(body.encode(compressed=compressed), compressed=compressed) == body


@pytest.mark.parametrize("name", ["", "a b"])
def test_a_topic_name_that_would_break_the_line_is_not_sent(name: str) -> None:
    table = TopicTableBody(topic_config_table={name: TopicConfig(topic_name=name)})
    with pytest.raises(LocalProtocolError, match="topic name"):
        RegisterBrokerBody(topic_config_serialize_wrapper=table).encode(compressed=True)


def plain(*items: bytes | int) -> bytes:
    """The content of a compressed registration: a number is itself, bytes are preceded by their length."""
    return b"".join(
        item.to_bytes(4, "big", signed=True) if isinstance(item, int) else len(item).to_bytes(4, "big") + item
        for item in items
    )


VERSION = b'{"counter":0,"timestamp":7}'


def test_registrations_of_5x_have_attributes_and_mappings() -> None:
    content = plain(VERSION, 1, b'T 8 8 6 SINGLE_TAG {"message.type":"NORMAL x"}', b'["f:1"]', 1, b"{}")
    assert RegisterBrokerBody.decode(zlib.compress(content), compressed=True) == REGISTRATION


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "dataVersion"),
        (plain(VERSION), "number of topics"),
        (plain(VERSION, -1), "number of topics: -1"),
        (plain(VERSION, 2, b"T 8 8 6 SINGLE_TAG", b"[]"), "topic"),
        (plain(VERSION, 1, b"T 8 8 6", b"[]"), "topic b'T 8 8 6'"),
        (plain(VERSION, 1, b"T x 8 6 SINGLE_TAG", b"[]"), "readQueueNums"),
        (plain(VERSION, 1, b"T 8 8 6 NO_TAG", b"[]"), "NO_TAG"),
        (plain(VERSION, 1, b"T\xff 8 8 6 SINGLE_TAG", b"[]"), "utf-8"),
        (plain(VERSION, 2**31 - 1), "length of topic"),
        (plain(VERSION, 1, 1000) + b"T", "1000 bytes, but 1 are left"),
        (plain(VERSION, 0), "filterServerList"),
        (plain(VERSION, 0, b"{}"), "filterServerList"),
        (plain(b"{", 0, b"[]"), "DataVersion"),
    ],
)
def test_what_is_wrong_in_a_compressed_registration_is_named(content: bytes, what: str) -> None:
    with pytest.raises(RemoteProtocolError, match=what):
        RegisterBrokerBody.decode(zlib.compress(content), compressed=True)


def test_a_torn_compressed_registration_is_refused() -> None:
    for size in range(len(COMPRESSED)):
        with pytest.raises(RemoteProtocolError, match="ends early"):
            RegisterBrokerBody.decode(COMPRESSED[:size], compressed=True)


@given(st.binary())
def test_random_bytes_as_compressed_registration_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="RegisterBrokerBody"):
        RegisterBrokerBody.decode(data, compressed=True)


@given(st.binary(max_size=40))
def test_random_content_of_a_compressed_registration_is_refused(content: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        RegisterBrokerBody.decode(zlib.compress(content), compressed=True)


def test_a_compressed_registration_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.bodies.register.MAX_INFLATED_BYTES", 1000)
    with pytest.raises(RemoteProtocolError, match="more than 1000 bytes"):
        RegisterBrokerBody.decode(zlib.compress(bytes(100_000)), compressed=True)
