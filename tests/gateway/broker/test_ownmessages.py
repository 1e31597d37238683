"""Messages that the broker itself puts: what is copied, and when nothing is put."""

import pytest

from gateway.broker.ownmessages import copy_message, put, read_message, real_place
from protocol.message import tags_code
from store.engine import MessageStore
from store.errors import MessageIllegal, StoreFull
from tests.gateway.broker.golden import golden_records
from tests.gateway.broker.handlers.rig import Rig
from tests.gateway.broker.producing import bodies, sent, stored


def test_a_copy_keeps_what_is_not_given() -> None:
    (record, *_) = [record for record in golden_records("4.9.4") if record.flag]
    copy = copy_message(record, "T", 3)
    for field in ("flag", "sys_flag", "born_timestamp", "born_host", "store_host", "body", "reconsume_times"):
        assert getattr(copy, field) == getattr(record, field), field
    assert (copy.topic, copy.queue_id, copy.properties) == ("T", 3, record.properties_data)
    assert copy.tags_code == tags_code("TagA")
    assert copy.keys == (record.properties["UNIQ_KEY"], "key-1", "key-2")
    assert (copy.wait, copy.prepared_transaction_offset) == (False, 0)


def test_a_copy_takes_what_is_given() -> None:
    (record, *_) = golden_records("4.9.4")
    changes = {"TAGS": "b", "größe": "内"}
    copy = copy_message(record, "T", 3, changes, sys_flag=8, reconsume_times=2, prepared_transaction_offset=9)
    assert copy.properties.decode() == "TAGS\x01b\x02größe\x01内"
    assert (copy.sys_flag, copy.reconsume_times, copy.prepared_transaction_offset) == (8, 2, 9)
    assert (copy.tags_code, copy.keys) == (tags_code("b"), ())


def test_real_place() -> None:
    assert real_place({"REAL_TOPIC": "T", "REAL_QID": "65535"}) == ("T", 65535)
    assert real_place({"REAL_TOPIC": "T", "REAL_QID": "65536"}) is None
    assert real_place({"REAL_TOPIC": "T"}) is None
    assert real_place({"REAL_TOPIC": "RMQ_SYS_TRANS_OP_HALF_TOPIC", "REAL_QID": "0"}) is None


async def test_nothing_is_put_while_the_store_takes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await sent(rig)
    (record,) = stored(rig)
    monkeypatch.setattr(MessageStore, "writable", (False, "disk full: 91 %"))
    with pytest.raises(StoreFull, match="91 %"):
        put(rig.broker, [copy_message(record, "T", 0)])
    monkeypatch.undo()
    put(rig.broker, [copy_message(record, "T", 0)])
    assert bodies(rig) == [b"x", b"x"]
    assert rig.broker.stats.stored == 2


async def test_properties_above_the_limit_of_a_record(rig: Rig) -> None:
    await sent(rig)
    (record,) = stored(rig)
    put(rig.broker, [copy_message(record, "T", 0, {"k": "v" * 32765})])
    with pytest.raises(MessageIllegal):
        put(rig.broker, [copy_message(record, "T", 0, {"k": "v" * 32766})])
    assert len(stored(rig)) == 2


async def test_reading(rig: Rig) -> None:
    await sent(rig)
    record = await read_message(rig.broker, 0)
    assert record is not None
    assert record.body == b"x"
    assert await read_message(rig.broker, 1) is None
