"""One typed header per request code: complete, named by rule, and the same before and after the wire."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protocol.requests
from protocol.codes import RequestCode, ResponseCode
from protocol.errors import RemoteProtocolError
from protocol.header import REQUESTS, Header, Int32, Int64, decode_fields, encode_fields
from protocol.requests.clients import UnregisterClient
from protocol.requests.groups import DeleteSubscriptiongroup
from protocol.requests.offsets import InvokeBrokerToResetOffset, OffsetReply, QueryConsumerOffset, UpdateConsumerOffset
from protocol.requests.pull import LitePullMessage, PullMessage, PullMessageReply
from protocol.requests.queries import QueryMessage
from protocol.requests.routes import GetRouteinfoByTopic, RegisterBroker, RegisterBrokerReply
from protocol.requests.send import (
    SendBatchMessage,
    SendMessage,
    SendMessageReply,
    SendMessageV2,
    batch_header,
)
from protocol.requests.topics import UpdateAndCreateTopic
from tests.protocol import golden

# What 4.9.4 handles (spec/remoting.md 4.1, 5.1, 5.2, 6.1), and the additions of 5.x that matter to its clients.
NAME_SERVER = [*range(100, 107), 205, 327, 206, 216, 219, 224, 304, 311, 312, 313, 318, 319, 322]
CLIENTS = [10, 310, 320, 324, 325, 11, 12, 33, 14, 15, 34, 35, 36, 37, 38, 41, 42, 29, 30, 31, 32, 46]
TO_CLIENTS = [39, 40, 220, 221, 307, 309, 326]
ADMIN = [
    *[17, 21, 25, 26, 28, 43, 45, 50, 51, 52, 53, 54, 200, 201, 202, 203, 204, 207, 208, 215, 222, 223, 300, 301],
    *[303, 305, 306, 308, 314, 315, 316, 317, 321, 323, 328, 329],
]
ADDED = [217, 901, 904, 361, 351, 352, 18, 225, 343, 345, 353, 907, 908, 370, 400, 401]
OWN = (30901, 30902)  # between PocketMQ brokers

ANSWERED = (
    ResponseCode.SUCCESS,
    ResponseCode.PULL_NOT_FOUND,
    ResponseCode.PULL_RETRY_IMMEDIATELY,
    ResponseCode.PULL_OFFSET_MOVED,
)

ALL_REQUESTS = sorted(set(REQUESTS.values()), key=lambda cls: cls.code)
ALL_HEADERS = [*ALL_REQUESTS, *{cls.reply: None for cls in ALL_REQUESTS if cls.reply is not None}]

TEXTS = st.text(max_size=10)
VALUES = {
    str: TEXTS,
    bool: st.booleans(),
    Int32: st.integers(-(2**31), 2**31 - 1),
    Int64: st.integers(-(2**63), 2**63 - 1),
}

NUMBERS = (Int32, Int64, Int32 | None, Int64 | None)


def strategy_of(annotation: object) -> st.SearchStrategy[object]:
    for known, values in VALUES.items():
        if annotation == known:
            return values
        if annotation == known | None:
            return st.none() | values
    raise AssertionError(f"no values for {annotation}")


def headers(cls: type[Header]) -> st.SearchStrategy[Header]:
    return st.builds(cls, **{field.name: strategy_of(field.type) for field in msgspec.structs.fields(cls)})


def test_every_request_that_matters_has_a_header() -> None:
    expected = [*NAME_SERVER, *CLIENTS, *TO_CLIENTS, *ADMIN, *ADDED, *OWN]
    assert sorted(REQUESTS) == sorted(expected)


@pytest.mark.parametrize("code", sorted(REQUESTS))
def test_headers_are_named_after_their_code(code: int) -> None:
    words = RequestCode(code).name.split("_")
    assert REQUESTS[code].__name__ == "".join(word.capitalize() for word in words)
    assert REQUESTS[code].code == code


@pytest.mark.parametrize("cls", ALL_HEADERS, ids=lambda cls: cls.__name__)
def test_headers_survive_the_wire_with_fields_that_a_newer_client_adds(cls: type[Header]) -> None:
    @settings(max_examples=20)
    @given(headers(cls))
    def round_trip(header: Header) -> None:
        fields = encode_fields(header)
        assert all(isinstance(text, str) for text in fields.values())
        assert decode_fields(cls, fields) == header
        extra = {"bname": "b", "ns": "", "nsd": "true", "lo": "false", "oway": "false"}
        assert decode_fields(cls, fields | extra) == header

    round_trip()


@pytest.mark.parametrize("cls", ALL_HEADERS, ids=lambda cls: cls.__name__)
def test_missing_and_broken_fields_are_named(cls: type[Header]) -> None:
    declared = msgspec.structs.fields(cls)
    complete = {field.encode_name: "1" for field in declared}
    decode_fields(cls, complete)
    for field in declared:
        name = field.encode_name
        if field.required:
            with pytest.raises(RemoteProtocolError, match=f"`{name}`"):
                decode_fields(cls, {known: text for known, text in complete.items() if known != name})
        if field.type in NUMBERS:
            for text in ("", "x", "1x", str(2**63), str(-(2**63) - 1), "9" * 400):
                with pytest.raises(RemoteProtocolError, match=rf"field {name}\b"):
                    decode_fields(cls, complete | {name: text})


@pytest.mark.parametrize("text", [str(2**31), str(-(2**31) - 1)])
def test_an_int_has_32_bits(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="field queueId"):
        decode_fields(QueryConsumerOffset, {"consumerGroup": "g", "topic": "T", "queueId": text})


@pytest.mark.parametrize("cls", [PullMessage, SendMessageV2, UpdateConsumerOffset, RegisterBroker])
def test_random_texts_never_raise_anything_else(cls: type[Header]) -> None:
    names = [field.encode_name for field in msgspec.structs.fields(cls)]
    remarks: set[str] = set()

    @given(st.dictionaries(st.sampled_from(names), TEXTS | st.integers().map(str)))
    def decode(fields: dict[str, str]) -> None:
        try:
            decode_fields(cls, fields)
        except RemoteProtocolError as error:
            remarks.add(error.remark.partition(":")[0])

    decode()
    assert remarks == {cls.__name__}


# ---- what official programs sent

NEWER = {"bname", "n", "topicSysFlag", "groupSysFlag", "force", "topic"}  # of 5.x
REQUEST_TYPE = "ReqT"  # says that the sender is no stream client
TRUTH = {"0": "false", "1": "true"}  # as the C++ client writes it
SIGNING = {"AccessKey", "OnsChannel", "Signature"}  # the C++ client sends them empty where it does not sign


@pytest.mark.parametrize("path", golden.frames("*/*.request.bin"), ids=golden.name_of)
def test_official_requests_are_understood_to_the_last_field(path: Path) -> None:
    command = golden.frame(path)
    if command.code in REQUESTS:
        known = encode_fields(decode_fields(REQUESTS[command.code], command.fields))
        unknown = command.fields.keys() - known.keys()
        assert unknown <= {REQUEST_TYPE} | SIGNING | (NEWER if path.parent.name.startswith("5.") else set())
        for name, text in command.fields.items():
            assert known.get(name, text) in (text, TRUTH.get(text)), name


@pytest.mark.parametrize("path", golden.frames("4*/*.response.bin"), ids=golden.name_of)
def test_official_replies_are_written_as_they_were_read(path: Path) -> None:
    answer = golden.frame(path)
    asked = golden.frame(path.with_name(path.name.replace("response", "request")))
    reply = REQUESTS[asked.code].reply if asked.code in REQUESTS else None
    if reply is None:
        assert answer.fields == {}
    elif answer.code in ANSWERED:
        assert encode_fields(decode_fields(reply, answer.fields)) == answer.fields


# ---- sending

SEND_FIELDS = {
    "producerGroup": "pg",
    "topic": "T",
    "defaultTopic": "TBW102",
    "defaultTopicQueueNums": "4",
    "queueId": "3",
    "sysFlag": "0",
    "bornTimestamp": "1700000000000",
    "flag": "0",
    "properties": "KEYS\x01k\x02",
    "reconsumeTimes": "0",
    "unitMode": "false",
    "maxReconsumeTimes": "16",
    "batch": "false",
}
V2_FIELDS = dict(zip("abcdefghijklm", SEND_FIELDS.values(), strict=True))


def test_long_and_short_names_say_the_same() -> None:
    long = decode_fields(SendMessage, SEND_FIELDS)
    short = decode_fields(SendMessageV2, V2_FIELDS)
    assert msgspec.structs.asdict(long) == msgspec.structs.asdict(short)
    assert encode_fields(short) == V2_FIELDS
    assert encode_fields(long) == SEND_FIELDS


def test_a_batch_may_come_under_long_names() -> None:
    assert batch_header(V2_FIELDS) is SendBatchMessage
    assert batch_header(SEND_FIELDS) is SendMessage
    with pytest.raises(RemoteProtocolError, match="`a`"):
        decode_fields(batch_header({}), {})


def test_cpp_leaves_out_batch_and_counts_unit_mode() -> None:
    fields = {name: text for name, text in V2_FIELDS.items() if name not in "ijlm"} | {"k": "0"}
    header = decode_fields(SendMessageV2, fields)
    assert not header.batch
    assert not header.unit_mode
    assert header.properties is None


def test_send_reply_has_the_fields_that_java_reads() -> None:
    reply = SendMessageReply(msg_id="0A" * 16, queue_id=1, queue_offset=7, msg_region="DefaultRegion", trace_on="true")
    assert encode_fields(reply) == {
        "msgId": "0A" * 16,
        "queueId": "1",
        "queueOffset": "7",
        "MSG_REGION": "DefaultRegion",
        "TRACE_ON": "true",
    }


# ---- the others' peculiarities


def test_pull_reply_has_all_four_fields() -> None:
    reply = PullMessageReply(suggest_which_broker_id=0, next_begin_offset=5, min_offset=0, max_offset=9)
    assert encode_fields(reply) == {
        "suggestWhichBrokerId": "0",
        "nextBeginOffset": "5",
        "minOffset": "0",
        "maxOffset": "9",
    }


def test_lite_pull_is_a_pull() -> None:
    assert issubclass(LitePullMessage, PullMessage)
    assert REQUESTS[361].reply is REQUESTS[11].reply is PullMessageReply


def test_cpp_sends_empty_texts_for_the_group_it_has_not() -> None:
    header = decode_fields(UnregisterClient, {"clientID": "c", "producerGroup": "", "consumerGroup": "g"})
    assert header == UnregisterClient(client_id="c", producer_group="", consumer_group="g")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("TRUE", True), ("false", False)])
def test_query_by_unique_key_is_told_by_an_extra_field(text: str, value: bool) -> None:
    fields = {"topic": "T", "key": "k", "maxNum": "32", "beginTimestamp": "0", "endTimestamp": str(2**63 - 1)}
    assert decode_fields(QueryMessage, fields | {"_UNIQUE_KEY_QUERY": text}).unique_key_query is value
    assert decode_fields(QueryMessage, fields).unique_key_query is False


def test_both_names_of_the_wish_to_drop_offsets_are_read() -> None:
    assert decode_fields(DeleteSubscriptiongroup, {"groupName": "g", "removeOffset": "true"}).remove_offset
    assert decode_fields(DeleteSubscriptiongroup, {"groupName": "g", "cleanOffset": "true"}).clean_offset


def test_resets_of_4x_and_5x_tools() -> None:
    fields = {"topic": "T", "group": "g", "timestamp": "-1", "isForce": "true"}
    assert decode_fields(InvokeBrokerToResetOffset, fields).queue_id == -1
    assert decode_fields(InvokeBrokerToResetOffset, fields | {"queueId": "2", "offset": "-1"}).offset == -1


def test_registration_defaults_to_plain_and_unchecked() -> None:
    fields = {"brokerName": "b", "brokerAddr": "a", "clusterName": "c", "haServerAddr": "h", "brokerId": "0"}
    header = decode_fields(RegisterBroker, fields)
    assert (header.compressed, header.body_crc32) == (False, 0)
    assert encode_fields(header) == fields | {"compressed": "false", "bodyCrc32": "0"}


def test_a_master_is_told_no_master() -> None:
    assert encode_fields(RegisterBrokerReply()) == {}


def test_old_clients_do_not_ask_for_standard_json() -> None:
    assert decode_fields(GetRouteinfoByTopic, {"topic": "T"}).accept_standard_json_only is None


def test_create_topic_without_order_is_accepted_as_officially() -> None:
    fields = {
        "topic": "T",
        "defaultTopic": "TBW102",
        "readQueueNums": "8",
        "writeQueueNums": "8",
        "perm": "6",
        "topicFilterType": "SINGLE_TAG",
    }
    assert decode_fields(UpdateAndCreateTopic, fields).order is False


def test_replies_know_their_type() -> None:
    assert REQUESTS[14].reply is REQUESTS[29].reply is REQUESTS[30].reply is REQUESTS[31].reply is OffsetReply
    assert REQUESTS[34].reply is None


def test_every_module_is_imported_by_the_package() -> None:
    modules = {cls.__module__ for cls in ALL_REQUESTS}
    assert modules == {f"protocol.requests.{name}" for name in protocol.requests.__all__}
