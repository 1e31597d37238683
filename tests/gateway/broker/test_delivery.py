"""When delayed messages come, and as what."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from gateway.broker import delivery
from gateway.broker.app import _master_services
from gateway.broker.delivery import Delivery, restored
from gateway.broker.names import SCHEDULE_TOPIC
from gateway.broker.pulls import ParkedPull
from protocol.message import parse_properties, tags_code
from store.errors import ColdRead, MessageIllegal, StoreFull
from store.options import BrokerRole, FlushDiskType
from tests.gateway.broker.golden import VERSIONS, golden_records
from tests.gateway.broker.handlers.rig import Rig
from tests.gateway.broker.producing import bodies, send, sent, stored

Make = Callable[..., Rig]


async def test_a_message_comes_when_its_time_has_come(rig: Rig) -> None:
    service = Delivery(rig.broker)
    await sent(rig, DELAY="1", body=b"one")
    await sent(rig, DELAY="2", body=b"two")
    rig.clock.advance(999)
    await service.round()
    assert bodies(rig) == []
    rig.clock.advance(1)
    await service.round()
    assert bodies(rig) == [b"one"]
    rig.clock.advance(4000)
    await service.round()
    assert bodies(rig) == [b"one", b"two"]


async def test_what_consumers_get(rig: Rig) -> None:
    """The message as it was sent, with the marks of its wait, as the official broker leaves them."""
    reply = await sent(rig, queue_id=2, DELAY="1", TAGS="a", KEYS="k1 k2", UNIQ_KEY="u", colour="blue")
    assert (reply.queue_id, reply.queue_offset) == (2, 0)
    (waiting,) = stored(rig, SCHEDULE_TOPIC)
    assert reply.msg_id == waiting.message_id
    rig.clock.advance(1500)
    await Delivery(rig.broker).round()
    (record,) = stored(rig, queue_id=2)
    assert record.properties == waiting.properties
    assert record.properties == {
        "DELAY": "1",
        "TAGS": "a",
        "KEYS": "k1 k2",
        "UNIQ_KEY": "u",
        "colour": "blue",
        "CLUSTER": "DefaultCluster",
        "REAL_TOPIC": "T",
        "REAL_QID": "2",
    }
    assert (record.topic, record.queue_id, record.queue_offset, record.body) == ("T", 2, 0, b"x")
    for field in ("flag", "sys_flag", "born_timestamp", "born_host", "store_host", "reconsume_times"):
        assert getattr(record, field) == getattr(waiting, field), field
    assert (record.store_timestamp, record.prepared_transaction_offset) == (rig.clock.ms, 0)
    assert rig.broker.store.queue_units("T", 2, 0, 10) == [(record.physical_offset, record.total_size, tags_code("a"))]
    assert len(rig.broker.store.query_keys("T", "k2", 10, 0, 1 << 60).records) == 1


async def test_many_at_once_in_their_order(rig: Rig) -> None:
    for number in range(100):
        await sent(rig, queue_id=number % 2, DELAY="1", body=b"%d" % number)
    rig.clock.advance(1000)
    await Delivery(rig.broker).round()
    assert bodies(rig, queue_id=0) == [b"%d" % number for number in range(0, 100, 2)]
    assert bodies(rig, queue_id=1) == [b"%d" % number for number in range(1, 100, 2)]
    assert rig.broker.delays.offset(0) == 100


async def test_parked_pulls_are_woken(rig: Rig) -> None:
    woken: list[str] = []
    pull = ParkedPull(rig.tool, ("T", 0), None, 1e9, lambda: woken.append("T"))  # type: ignore[arg-type]
    await sent(rig, DELAY="1")
    assert rig.broker.pulls.park(pull)
    await Delivery(rig.broker).round()
    assert woken == []
    rig.clock.advance(1000)
    await Delivery(rig.broker).round()
    assert woken == ["T"]


async def test_entries_are_the_same_when_they_are_derived_again(make_rig: Make, tmp_path: Path) -> None:
    rig = make_rig()
    for level in (1, 18, 1, 3):
        await sent(rig, DELAY=str(level), TAGS="a")
        rig.clock.advance(7)
    units = [rig.broker.store.queue_units(SCHEDULE_TOPIC, queue_id, 0, 10) for queue_id in range(18)]
    assert [unit[2] for unit in units[0]] == [1_700_000_000_000 + 1000, 1_700_000_000_014 + 1000]
    make_rig()  # closes the first
    shutil.rmtree(tmp_path / "consumequeue")
    again = make_rig().broker.store
    assert [again.queue_units(SCHEDULE_TOPIC, queue_id, 0, 10) for queue_id in range(18)] == units


async def test_restart_goes_on_where_it_was(make_rig: Make) -> None:
    rig = make_rig()
    await sent(rig, DELAY="1", body=b"one")
    rig.clock.advance(1000)
    await Delivery(rig.broker).round()
    await sent(rig, DELAY="1", body=b"two")
    rig.broker.delays.file.save_if_dirty()
    rig = make_rig()
    rig.clock.advance(1999)
    await Delivery(rig.broker).round()
    assert bodies(rig) == [b"one"]
    rig.clock.advance(1)
    await Delivery(rig.broker).round()
    assert bodies(rig) == [b"one", b"two"]


async def test_queues_beyond_a_shortened_configuration_are_delivered(make_rig: Make) -> None:
    rig = make_rig()
    await sent(rig, DELAY="18")
    rig = make_rig(store={"message_delay_level": "1s"})
    service = Delivery(rig.broker)
    rig.clock.advance(2 * 3_600_000 - 1)
    await service.round()
    assert bodies(rig) == []
    rig.clock.advance(1)
    await service.round()
    assert bodies(rig) == [b"x"]


async def test_a_clock_that_was_set_back_keeps_nobody_waiting(rig: Rig) -> None:
    service = Delivery(rig.broker)
    await sent(rig, DELAY="1")
    await service.round()
    rig.clock.advance(-10_000)
    await service.round()
    assert bodies(rig) == [b"x"]


async def test_full_disk_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Delivery(rig.broker)
    await sent(rig, DELAY="1")
    rig.clock.advance(1000)

    def full(*args: Any, **kwargs: Any) -> int:
        raise StoreFull("no space can be reserved")

    with monkeypatch.context() as patch:
        patch.setattr(rig.broker.store, "append", full)
        await service.round()
        await service.round()
    assert (bodies(rig), rig.broker.delays.offset(0)) == ([], 0)
    rig.clock.advance(delivery.RETRY_MS)
    await service.round()
    assert (bodies(rig), rig.broker.delays.offset(0)) == ([b"x"], 1)


async def test_what_can_never_be_stored_does_not_stop_the_others(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for body in (b"one", b"bad", b"two"):
        await sent(rig, DELAY="1", body=body)
    rig.clock.advance(1000)
    append = rig.broker.store.append

    def refuse_bad(messages: list[Any], **arguments: Any) -> int:
        if any(message.body == b"bad" for message in messages):
            raise MessageIllegal("does not fit")
        return append(messages, **arguments)

    monkeypatch.setattr(rig.broker.store, "append", refuse_bad)
    await Delivery(rig.broker).round()
    assert (bodies(rig), rig.broker.delays.offset(0)) == ([b"one", b"two"], 3)


async def test_unreadable_messages_are_passed_over_and_nothing_comes_early(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull would look for the next readable one; what is not due must stay."""
    await sent(rig, DELAY="1", body=b"damaged")
    rig.clock.advance(500)
    await sent(rig, DELAY="1", body=b"later")
    store = rig.broker.store
    get = store.get

    def without_first(topic: str, queue_id: int, offset: int, *args: Any, **kwargs: Any) -> Any:
        return get(topic, queue_id, max(offset, 1), *args, **kwargs)

    monkeypatch.setattr(store, "get", without_first)
    rig.clock.advance(500)
    await Delivery(rig.broker).round()
    monkeypatch.undo()
    assert (bodies(rig), rig.broker.delays.offset(0)) == ([], 1)
    rig.clock.advance(500)
    await Delivery(rig.broker).round()
    assert bodies(rig) == [b"later"]


async def test_cold_messages_are_read_in_a_thread(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await sent(rig, DELAY="1")
    rig.clock.advance(1000)
    queue_units = rig.broker.store.queue_units

    def cold(*args: Any, allow_cold: bool = True) -> Any:
        if not allow_cold:
            raise ColdRead
        return queue_units(*args, allow_cold=allow_cold)

    monkeypatch.setattr(rig.broker.store, "queue_units", cold)
    await Delivery(rig.broker).round()
    assert bodies(rig) == [b"x"]


@pytest.mark.parametrize(
    "change",
    [
        {"REAL_TOPIC": "RMQ_SYS_TRANS_HALF_TOPIC"},
        {"REAL_TOPIC": SCHEDULE_TOPIC},
        {"REAL_TOPIC": "%RETRY%x/../../y"},
        {"REAL_TOPIC": ""},
        {"REAL_QID": ""},
        {"REAL_QID": "-1"},
        {"REAL_QID": "65536"},
        {"REAL_QID": "9" * 30},
        {"REAL_QID": "١"},  # noqa: RUF001
    ],
)
async def test_a_message_without_a_place_to_go_is_given_up(rig: Rig, change: dict[str, str]) -> None:
    """Such as those that an official broker's directory may hold."""
    await sent(rig, DELAY="1")
    (record,) = stored(rig, SCHEDULE_TOPIC)
    assert restored(record) is not None
    properties = record.properties | change
    record.properties_data = "\x02".join(f"{name}\x01{value}" for name, value in properties.items()).encode()
    assert restored(record) is None


async def test_a_slave_leaves_it_to_its_master(make_rig: Make) -> None:
    assert _master_services(make_rig().broker) != []
    assert _master_services(make_rig(store={"broker_role": BrokerRole.SLAVE}, broker_id=1).broker) == []


# ---- the service as it runs


class Running:
    """A broker with its delivery running, and both of its clocks."""

    def __init__(self, rig: Rig, clock: trio.testing.MockClock) -> None:
        self.rig = rig
        self.clock = clock
        self.service = Delivery(rig.broker)

    async def wait(self, ms: int) -> None:
        """Lets time pass, and everybody do what is due then."""
        await trio.testing.wait_all_tasks_blocked()
        self.rig.clock.advance(ms)
        self.clock.jump(ms / 1000 + 1e-6)  # sums of floats must not fall short
        await trio.testing.wait_all_tasks_blocked()


async def in_line(work: Callable[[], Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return work()


@pytest.fixture
def run(make_rig: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Running]:
    def run(clock: trio.testing.MockClock, **arguments: Any) -> Running:
        rig = make_rig(**arguments)
        monkeypatch.setattr(rig.broker.storage, "read_cold", in_line)
        monkeypatch.setattr(rig.broker.storage, "write_file", in_line)
        return Running(rig, clock)

    return run


async def test_it_sleeps_until_the_next_message_is_due(
    run: Callable[..., Running],
    mock_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = run(mock_clock)
    rounds: list[int] = []
    one_round = running.service.round

    async def counted() -> None:
        rounds.append(running.rig.clock.ms)
        await one_round()

    monkeypatch.setattr(running.service, "round", counted)
    nursery.start_soon(running.service.run)
    await running.wait(0)
    await sent(running.rig, DELAY="1")
    await running.wait(400)
    await sent(running.rig, DELAY="1")
    await running.wait(599)
    assert (len(rounds), bodies(running.rig)) == (2, [])
    await running.wait(1)
    assert bodies(running.rig) == [b"x"]
    await running.wait(400)
    assert bodies(running.rig) == [b"x", b"x"]
    assert len(rounds) == 4


async def test_a_shorter_delay_wakes_it(
    run: Callable[..., Running], mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    running = run(mock_clock)
    nursery.start_soon(running.service.run)
    await sent(running.rig, DELAY="3", body=b"long")
    await running.wait(1000)
    await sent(running.rig, DELAY="1", body=b"short")
    await running.wait(1000)
    assert bodies(running.rig) == [b"short"]


async def test_synchronous_flush(
    run: Callable[..., Running], mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """A message is known to its queue once it is flushed, which may be after the sender is heard."""
    running = run(mock_clock, store={"flush_disk_type": FlushDiskType.SYNC_FLUSH})
    storage = running.rig.broker.storage
    nursery.start_soon(running.service.run)
    await running.wait(0)
    send(running.rig, DELAY="1")
    await running.wait(300)
    await storage.flush()
    await running.wait(699)
    await storage.flush()
    assert bodies(running.rig) == []
    await running.wait(1)
    await storage.flush()
    assert bodies(running.rig) == [b"x"]


async def test_the_file_waits_for_the_flush(
    run: Callable[..., Running], mock_clock: trio.testing.MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """If power is lost, a delayed message is delivered or still to be delivered."""
    running = run(mock_clock)
    file = tmp_path / "config" / "delayOffset.json"
    nursery.start_soon(running.service.run)
    nursery.start_soon(running.service.save_forever)
    await sent(running.rig, DELAY="1")
    await running.wait(1000)
    assert bodies(running.rig) == [b"x"]
    await running.wait(30_000)
    assert not file.exists()
    await running.rig.broker.storage.flush()
    await running.wait(0)
    assert file.read_bytes() == b'{\n\t"offsetTable":{1:1\n\t}\n}'


# ---- beside the official broker


@pytest.mark.parametrize("version", VERSIONS)
def test_official_delayed_messages_are_restored_as_official_brokers_did(version: str) -> None:
    """Each message that waited in an official store, against what that broker made of it."""
    waited, came = {}, {}
    for record in golden_records(version):
        if record.topic == SCHEDULE_TOPIC:
            waited[record.properties["UNIQ_KEY"], record.reconsume_times] = record
        elif "DELAY" in record.properties and record.topic != "OFFSET_MOVED_EVENT":
            came[record.properties["UNIQ_KEY"], record.reconsume_times] = record
    assert len(came) >= 11
    for key, official in came.items():
        ours = restored(waited[key])
        assert ours is not None
        assert (ours.topic, ours.queue_id, ours.body) == (official.topic, official.queue_id, official.body)
        assert parse_properties(ours.properties.decode()) == official.properties
        for field in ("flag", "sys_flag", "born_timestamp", "born_host", "store_host", "reconsume_times"):
            assert getattr(ours, field) == getattr(official, field), field
        assert ours.prepared_transaction_offset == official.prepared_transaction_offset
