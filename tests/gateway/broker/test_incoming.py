"""What becomes of a send before it reaches the store."""

from pathlib import Path
from typing import Any

import pytest

from gateway.broker import names
from gateway.broker.delay import DelayTable
from gateway.broker.groups import GroupTable
from gateway.broker.incoming import IncomingMessages, asked_queue_id
from gateway.broker.topics import TopicTable
from gateway.config import BrokerOptions
from gateway.routing import Refused
from protocol.bodies import TopicConfig
from protocol.codes import PERM_READ, RequestCode, ResponseCode
from protocol.command import Command
from protocol.errors import RemoteProtocolError
from protocol.message import (
    BORN_HOST_V6,
    MULTI_TAGS,
    BatchItem,
    NewMessage,
    encode_batch,
    java_hash,
    pack_host,
    parse_properties,
)
from protocol.requests.send import SendMessageV2
from store.dispatch import DelayLevels
from store.options import BrokerRole, StoreOptions

UNIQUE = "7F0000010B8218B4AAC2123456780000"


class Bench:
    """An IncomingMessages with its tables, and the topics that it announced."""

    def __init__(self, path: Path, role: BrokerRole = BrokerRole.ASYNC_MASTER, **options: Any) -> None:
        broker = BrokerOptions(
            broker_name="broker-a", broker_ip1="10.1.2.3", broker_ip2="10.1.2.3", listen_port=10911, **options
        )
        store = StoreOptions(store_path_root_dir=str(path), broker_role=role, max_message_size=1000)
        self.created: list[str] = []
        self.topics = TopicTable(broker, path / "topics.json", lambda: 1000)
        self.groups = GroupTable(broker, path / "groups.json", lambda: 1000)
        self.delays = DelayTable(DelayLevels(store.message_delay_level), path / "delayOffset.json", lambda: 1000)
        self.incoming = IncomingMessages(
            broker, store, self.topics, self.groups, lambda: 1000, self.created.append, self.delays
        )
        self.connection: Any = type("FakeConnection", (), {"peer_host": pack_host("10.9.9.9", 77)})()

    def accept(self, topic: str = "T", *, body: bytes = b"body", version: int = 401, **fields: Any) -> NewMessage:
        command = Command(RequestCode.SEND_MESSAGE_V2, body=body, version=version)
        return self.incoming.accept(header(topic, **fields), command, self.connection)


def header(topic: str = "T", **fields: Any) -> SendMessageV2:
    defaults: dict[str, Any] = {
        "producer_group": "g",
        "topic": topic,
        "default_topic": "TBW102",
        "default_topic_queue_nums": 4,
        "queue_id": 0,
        "sys_flag": 0,
        "born_timestamp": 5,
        "flag": 3,
    }
    return SendMessageV2(**defaults | fields)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def refusal(bench: Bench, *args: Any, **fields: Any) -> tuple[ResponseCode, str]:
    with pytest.raises(Refused) as caught:
        bench.accept(*args, **fields)
    return caught.value.code, caught.value.remark


def test_stored_properties_gain_the_cluster_and_lose_wait(bench: Bench) -> None:
    message = bench.accept(properties=f"UNIQ_KEY\x01{UNIQUE}\x02WAIT\x01true\x02TAGS\x01a b")
    assert f"UNIQ_KEY\x01{UNIQUE}\x02TAGS\x01a b\x02CLUSTER\x01DefaultCluster" == message.properties.decode()
    assert message.wait
    assert java_hash("a b") == message.tags_code
    assert message.keys == (UNIQUE,)
    assert not bench.accept(properties="WAIT\x01false").wait


def test_hosts_and_ids(bench: Bench) -> None:
    message = bench.accept()
    assert pack_host("10.9.9.9", 77) == message.born_host
    assert pack_host("10.1.2.3", 10911) == message.store_host
    assert bench.incoming.message_id(255) == "0A01020300002A9F00000000000000FF"


def test_ipv6_producer_is_marked(bench: Bench) -> None:
    bench.connection.peer_host = pack_host("::1", 77)
    assert bench.accept().sys_flag & BORN_HOST_V6


def test_first_send_creates_the_topic_from_the_template(bench: Bench) -> None:
    bench.accept("New")
    assert bench.topics.get("New").write_queue_nums == 4  # type: ignore[union-attr]
    assert bench.created == ["New"]
    bench.accept("New")
    assert bench.created == ["New"]


def test_unknown_topic_without_auto_creation(tmp_path: Path) -> None:
    bench = Bench(tmp_path, auto_create_topic_enable=False)
    assert refusal(bench) == (ResponseCode.TOPIC_NOT_EXIST, "topic[T] not exist, apply first please!")


@pytest.mark.parametrize("topic", ["a/b", "..", "a\x00b", "x" * 128, " ", "a.b", "ü"])
def test_illegal_topics_are_refused_and_not_created(bench: Bench, topic: str) -> None:
    assert refusal(bench, topic)[0] == ResponseCode.SYSTEM_ERROR
    assert topic not in bench.topics
    assert bench.created == []


@pytest.mark.parametrize("topic", sorted(names.SEND_FORBIDDEN_TOPICS))
def test_system_topics_take_no_sends(bench: Bench, topic: str) -> None:
    assert refusal(bench, topic)[0] == ResponseCode.NO_PERMISSION


def test_queue_ids(bench: Bench) -> None:
    bench.topics.update([TopicConfig(topic_name="T", read_queue_nums=4, write_queue_nums=4)])
    assert bench.accept(queue_id=3).queue_id == 3
    assert bench.accept(queue_id=-1).queue_id in range(4)
    code, remark = refusal(bench, queue_id=4)
    assert (code, "queueId[4]" in remark) == (ResponseCode.SYSTEM_ERROR, True)
    assert refusal(bench, queue_id=2**31 - 1)[0] == ResponseCode.SYSTEM_ERROR


def test_queue_that_may_only_be_read_takes_what_is_sent_to_it(bench: Bench) -> None:
    """Official looks at the larger of both counts: shrinking the write queues does not fail old producers."""
    bench.topics.update([TopicConfig(topic_name="T", read_queue_nums=8, write_queue_nums=4)])
    assert bench.accept(queue_id=6).queue_id == 6


def test_limits(bench: Bench) -> None:
    bench.accept(body=b"x" * 1000)
    assert refusal(bench, body=b"x" * 1001)[0] == ResponseCode.MESSAGE_ILLEGAL
    assert refusal(bench, properties="k\x01" + "v" * 32767)[0] == ResponseCode.MESSAGE_ILLEGAL


def test_multi_tag_topic(bench: Bench) -> None:
    bench.topics.update([TopicConfig(topic_name="T", topic_filter_type="MULTI_TAG")])  # type: ignore[arg-type]
    assert bench.accept().sys_flag & MULTI_TAGS


def test_slave_refuses_and_creates_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, BrokerRole.SLAVE)
    assert refusal(bench)[0] == ResponseCode.SERVICE_NOT_AVAILABLE
    assert "T" not in bench.topics


def test_before_the_start_time_nothing_is_taken(tmp_path: Path) -> None:
    bench = Bench(tmp_path, start_accept_send_request_time_stamp=1001)
    with pytest.raises(Refused, match="start time"):
        bench.incoming.check_writable("T")


def test_closed_broker_refuses_ordered_topics(tmp_path: Path) -> None:
    bench = Bench(tmp_path, broker_permission=PERM_READ)
    bench.topics.update([TopicConfig(topic_name="T"), TopicConfig(topic_name="Ordered")])
    bench.topics.set_ordered(["Ordered"])
    bench.incoming.check_writable("T")
    with pytest.raises(Refused, match="forbidden"):
        bench.incoming.check_writable("Ordered")


def test_exhausted_retry_goes_to_the_dead_letters(bench: Bench) -> None:
    message = bench.accept("%RETRY%g", reconsume_times=16)
    assert (message.topic, message.queue_id) == ("%DLQ%g", 0)
    assert "%DLQ%g" in bench.created
    assert bench.accept("%RETRY%g", reconsume_times=15).topic == "%RETRY%g"
    assert bench.accept("%RETRY%g", reconsume_times=3, max_reconsume_times=3).topic == "%DLQ%g"
    assert bench.accept("%RETRY%g", reconsume_times=3, max_reconsume_times=3, version=120).topic == "%RETRY%g"


def batch(bench: Bench, items: list[BatchItem], body: bytes | None = None, **fields: Any) -> list[NewMessage]:
    command = Command(RequestCode.SEND_BATCH_MESSAGE, body=encode_batch(items) if body is None else body)
    return bench.incoming.accept_batch(header(**fields), command, bench.connection)


def test_batch_items_share_the_envelope(bench: Bench) -> None:
    items = [
        BatchItem(1, b"one", b"TAGS\x01a"),
        BatchItem(2, b"two", b"KEYS\x01k1 k2\x02"),
        BatchItem(3, b"three", b""),
    ]
    first, second, third = batch(bench, items, queue_id=2, properties="UNIQ_KEY\x01id1")
    assert [(m.flag, m.body) for m in (first, second, third)] == [(1, b"one"), (2, b"two"), (3, b"three")]
    assert {2} == {m.queue_id for m in (first, second, third)}
    assert first.properties == b"TAGS\x01a\x02UNIQ_KEY\x01id1\x02CLUSTER\x01DefaultCluster"
    assert second.properties == b"KEYS\x01k1 k2\x02UNIQ_KEY\x01id1\x02CLUSTER\x01DefaultCluster"
    assert java_hash("a") == first.tags_code
    assert second.keys == ("id1", "k1", "k2")


@pytest.mark.parametrize("body", [b"", b"\x00" * 3, b"\x00\x00\x00\xff" + b"\x00" * 30])
def test_malformed_batches_are_illegal(bench: Bench, body: bytes) -> None:
    with pytest.raises((Refused, RemoteProtocolError)) as caught:
        batch(bench, [], body)
    error: Any = caught.value
    assert (error.code if isinstance(error, Refused) else error.response_code) == ResponseCode.MESSAGE_ILLEGAL


def test_batch_above_the_limit(bench: Bench) -> None:
    with pytest.raises(Refused) as caught:
        batch(bench, [BatchItem(0, b"x" * 600, b"")] * 2)
    assert caught.value.code == ResponseCode.MESSAGE_ILLEGAL


def test_batch_that_would_take_far_more_than_it_brings(bench: Bench) -> None:
    items = [BatchItem(0, b"x", b"")] * 20
    assert len(batch(bench, items)) == 20
    with pytest.raises(Refused, match="the limit is 4000") as caught:
        batch(bench, items, properties="a\x01" + "b" * 200)
    assert caught.value.code == ResponseCode.MESSAGE_ILLEGAL


# ---- what is set aside


def stored_properties(message: NewMessage) -> dict[str, str]:
    return parse_properties(message.properties.decode())


def test_delayed_message_waits_in_the_schedule_topic(bench: Bench) -> None:
    message = bench.accept("T", queue_id=3, properties=f"UNIQ_KEY\x01{UNIQUE}\x02DELAY\x012\x02TAGS\x01a")
    assert (message.topic, message.queue_id, asked_queue_id(message)) == ("SCHEDULE_TOPIC_XXXX", 1, 3)
    assert stored_properties(message) == {
        "UNIQ_KEY": UNIQUE,
        "DELAY": "2",
        "TAGS": "a",
        "CLUSTER": "DefaultCluster",
        "REAL_TOPIC": "T",
        "REAL_QID": "3",
    }
    assert message.wait
    assert message.keys == (UNIQUE,)
    assert "T" in bench.topics


def test_highest_level_is_a_ceiling(bench: Bench) -> None:
    message = bench.accept(properties="DELAY\x0199")
    assert (message.queue_id, stored_properties(message)["DELAY"]) == (17, "18")


@pytest.mark.parametrize("level", ["0", "-1"])
def test_no_level_no_delay(bench: Bench, level: str) -> None:
    message = bench.accept(properties=f"DELAY\x01{level}")
    assert (message.topic, asked_queue_id(message)) == ("T", 0)


def test_delay_that_is_no_number_is_refused(bench: Bench) -> None:
    assert refusal(bench, properties="DELAY\x01soon")[0] == ResponseCode.MESSAGE_ILLEGAL


def test_prepared_and_rolled_back_messages_are_not_delayed(bench: Bench) -> None:
    for kind, topic in ((0x4, "T"), (0xC, "T"), (0x8, "SCHEDULE_TOPIC_XXXX")):
        assert bench.accept(sys_flag=kind, properties="DELAY\x011").topic == topic


def test_half_message_waits_for_its_commit(bench: Bench) -> None:
    message = bench.accept(
        "T", queue_id=2, sys_flag=0x4 | 0x1, properties="TRAN_MSG\x01true\x02PGROUP\x01p\x02DELAY\x011"
    )
    assert (message.topic, message.queue_id, asked_queue_id(message)) == ("RMQ_SYS_TRANS_HALF_TOPIC", 0, 2)
    assert message.sys_flag == 0x1
    assert stored_properties(message) == {
        "TRAN_MSG": "true",
        "PGROUP": "p",
        "DELAY": "1",
        "CLUSTER": "DefaultCluster",
        "REAL_TOPIC": "T",
        "REAL_QID": "2",
    }
    assert bench.topics.get("RMQ_SYS_TRANS_HALF_TOPIC").write_queue_nums == 1  # type: ignore[union-attr]
    assert bench.created == ["T", "RMQ_SYS_TRANS_HALF_TOPIC"]


def test_half_messages_may_be_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, reject_transaction_message=True)
    code, remark = refusal(bench, properties="TRAN_MSG\x01TRUE")
    assert (code, "transaction message is forbidden" in remark) == (ResponseCode.NO_PERMISSION, True)
    assert bench.accept(properties="TRAN_MSG\x01false").topic == "T"


def test_retry_that_carries_the_mark_of_a_half_message_is_a_retry(bench: Bench) -> None:
    """Clients below 4.6.1 leave it in what they send back."""
    message = bench.accept("%RETRY%g", reconsume_times=1, properties="TRAN_MSG\x01true\x02DELAY\x014")
    assert (message.topic, stored_properties(message)["REAL_TOPIC"]) == ("SCHEDULE_TOPIC_XXXX", "%RETRY%g")


def test_dead_letters_are_not_delayed(bench: Bench) -> None:
    message = bench.accept("%RETRY%g", reconsume_times=16, properties="DELAY\x014\x02TRAN_MSG\x01true")
    assert (message.topic, stored_properties(message)["DELAY"]) == ("%DLQ%g", "0")


@pytest.mark.parametrize("name", ["TIMER_DELAY_SEC", "TIMER_DELAY_MS", "TIMER_DELIVER_MS"])
def test_timer_messages_are_refused(bench: Bench, name: str) -> None:
    """Delivering them at once would be worse."""
    code, remark = refusal(bench, properties=f"{name}\x0120")
    assert (code, "timerWheelEnable is false" in remark) == (ResponseCode.SYSTEM_ERROR, True)
    assert refusal(bench, properties=f"TRAN_MSG\x01true\x02{name}\x0120")[0] == ResponseCode.SYSTEM_ERROR
    with pytest.raises(Refused, match="timer message"):
        batch(bench, [BatchItem(0, b"x", f"{name}\x0120".encode())])
    assert bench.accept(properties=f"{name}\x0120\x02DELAY\x013").topic == "SCHEDULE_TOPIC_XXXX"
    assert bench.accept(properties=f"{name}\x0120\x02TIMER_OUT_MS\x015").topic == "T"
    dead = bench.accept("%RETRY%g", reconsume_times=16, properties=f"{name}\x0120\x02DELAY\x014")
    assert dead.topic == "%DLQ%g", "its level counted while it was retried"


def test_what_is_added_counts_for_the_limit(bench: Bench) -> None:
    room = 32767 - len("DELAY\x011\x02k\x01\x02CLUSTER\x01DefaultCluster")
    text = "DELAY\x01{}\x02k\x01" + "v" * room
    bench.accept(properties=text.format(0))
    assert refusal(bench, properties=text.format(1))[0] == ResponseCode.MESSAGE_ILLEGAL


@pytest.mark.parametrize(
    ("envelope", "item"),
    [
        ({"properties": "DELAY\x011"}, b""),
        ({"properties": "TRAN_MSG\x01true"}, b""),
        ({"sys_flag": 4}, b""),
        ({}, b"DELAY\x011"),
    ],
)
def test_batch_can_be_neither_delayed_nor_half(bench: Bench, envelope: dict[str, Any], item: bytes) -> None:
    with pytest.raises(Refused) as caught:
        batch(bench, [BatchItem(0, b"x", b""), BatchItem(0, b"x", item)], **envelope)
    assert caught.value.code == ResponseCode.MESSAGE_ILLEGAL
    assert len(batch(bench, [BatchItem(0, b"x", b"DELAY\x010")], properties="DELAY\x010")) == 1
