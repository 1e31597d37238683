"""The topic table: which topics exist by themselves, who may create others, and what is on disk."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.broker import topics
from gateway.broker.topics import TopicTable
from gateway.routing import Refused
from protocol.bodies import DataVersion, TopicConfig, TopicFilterType, TopicTableBody
from protocol.codes import ResponseCode
from tests.gateway.broker.fakes import Clock


@dataclass
class Options:
    broker_cluster_name: str = "DefaultCluster"
    broker_name: str = "broker-a"
    auto_create_topic_enable: bool = True
    default_topic_queue_nums: int = 8
    cluster_topic_enable: bool = True
    broker_topic_enable: bool = True
    trace_topic_enable: bool = False
    msg_trace_topic_name: str = "RMQ_SYS_TRACE_TOPIC"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "topics.json"


Open = Callable[..., TopicTable]


@pytest.fixture
def open_table(path: Path, clock: Clock) -> Open:
    def open_table(**options: object) -> TopicTable:
        return TopicTable(Options(**options), path, clock)  # type: ignore[arg-type]

    return open_table


def shape(table: TopicTable) -> dict[str, tuple[int, int, int]]:
    return {c.topic_name: (c.read_queue_nums, c.write_queue_nums, c.perm) for c in table.configs()}


def _any_topic(name: str, has_type: bool) -> TopicConfig:
    return TopicConfig(
        topic_name=name,
        read_queue_nums=65_536,
        write_queue_nums=65_536,
        perm=15,
        topic_sys_flag=-(2**31),
        topic_filter_type=TopicFilterType.SINGLE_TAG,
        attributes={"message.type": "NORMAL"} if has_type else None,
    )


# ---- topics of the broker itself


def test_system_topics_of_a_fresh_broker(open_table: Open, path: Path) -> None:
    assert shape(open_table()) == {
        "SELF_TEST_TOPIC": (1, 1, 6),
        "TBW102": (8, 8, 7),
        "BenchmarkTest": (1024, 1024, 6),
        "DefaultCluster": (16, 16, 7),
        "broker-a": (1, 1, 7),
        "OFFSET_MOVED_EVENT": (1, 1, 6),
        "SCHEDULE_TOPIC_XXXX": (18, 18, 6),
        "DefaultCluster_REPLY_TOPIC": (1, 1, 6),
    }
    assert not path.exists()


def test_options_decide_about_system_topics(open_table: Open) -> None:
    table = open_table(
        auto_create_topic_enable=False,
        cluster_topic_enable=False,
        broker_topic_enable=False,
        trace_topic_enable=True,
        msg_trace_topic_name="my_trace",
    )
    topics = shape(table)
    assert "TBW102" not in topics
    assert topics["DefaultCluster"] == (16, 16, 1)
    assert topics["broker-a"] == (1, 1, 1)
    assert topics["my_trace"] == (1, 1, 6)
    assert table.is_system("my_trace")


def test_system_topics_are_listed_and_protected(open_table: Open) -> None:
    table = open_table()
    for topic in ("TBW102", "DefaultCluster", "broker-a", "DefaultCluster_REPLY_TOPIC", "RMQ_SYS_TRANS_HALF_TOPIC"):
        assert topic in table.system_topics()
        with pytest.raises(Refused, match=rf"The topic\[{topic}\] is conflict with system topic\."):
            table.update([TopicConfig(topic_name=topic)])
        with pytest.raises(Refused, match="conflict with system topic"):
            table.delete(topic)
    assert not table.is_system("orders")


# ---- creation by a send


def test_a_send_creates_its_topic_from_the_template(open_table: Open) -> None:
    table = open_table()
    config = table.create_on_send("orders", "TBW102", 4)
    assert table.get("orders") is config
    assert (config.read_queue_nums, config.write_queue_nums, config.perm) == (4, 4, 6)
    assert (config.order, config.topic_sys_flag, config.topic_filter_type) == (False, 0, "SINGLE_TAG")


@pytest.mark.parametrize(("asked", "queues"), [(4, 4), (8, 8), (9, 8), (2**31 - 1, 8), (0, 1), (-1, 1), (-(2**31), 1)])
def test_the_template_bounds_the_queues(open_table: Open, asked: int, queues: int) -> None:
    assert open_table().create_on_send("orders", "TBW102", asked).write_queue_nums == queues


def test_a_template_other_than_tbw102_needs_the_inherit_bit(open_table: Open) -> None:
    table = open_table()
    assert table.create_on_send("of_cluster", "DefaultCluster", 99).write_queue_nums == 16
    for template in ("BenchmarkTest", "unknown"):
        with pytest.raises(Refused) as refused:
            table.create_on_send("orders", template, 4)
        assert refused.value.code == ResponseCode.TOPIC_NOT_EXIST
        assert refused.value.remark.startswith("topic[orders] not exist")
    assert "orders" not in table


def test_a_topic_inherits_the_filter_type(open_table: Open, path: Path) -> None:
    table = open_table()
    table.replace(
        TopicTableBody(
            data_version=DataVersion(counter=9, timestamp=9),
            topic_config_table={
                "TBW102": TopicConfig(topic_name="TBW102", perm=7, topic_filter_type=TopicFilterType.MULTI_TAG)
            },
        )
    )
    assert table.create_on_send("orders", "TBW102", 4).topic_filter_type == "MULTI_TAG"


def test_without_auto_creation_a_send_is_refused(open_table: Open, path: Path) -> None:
    open_table().create_on_send("kept", "TBW102", 4)  # writes TBW102 to disk, too
    table = open_table(auto_create_topic_enable=False)
    assert "kept" in table
    assert "TBW102" not in table
    with pytest.raises(Refused) as refused:
        table.create_on_send("orders", "TBW102", 4)
    assert refused.value.code == ResponseCode.TOPIC_NOT_EXIST


def test_a_retry_topic_needs_no_template(open_table: Open) -> None:
    table = open_table(auto_create_topic_enable=False)
    config = table.create_on_send("%RETRY%g", "TBW102", 4)
    assert (config.write_queue_nums, config.perm) == (1, 6)


@pytest.mark.parametrize("topic", ["..", "a/b", "a\0b", "", "ä", "x" * 128, "%RETRY%../../x"])
def test_illegal_names_create_nothing(open_table: Open, topic: str) -> None:
    table = open_table()
    before = table.names()
    with pytest.raises(Refused):
        table.create_on_send(topic, "TBW102", 4)
    with pytest.raises(Refused):
        table.create_if_absent(topic, 1)
    with pytest.raises(Refused):
        table.update([TopicConfig(topic_name=topic)])
    with pytest.raises(Refused):
        table.delete(topic)
    assert table.names() == before


def test_creation_for_own_needs_happens_once(open_table: Open) -> None:
    table = open_table()
    config, created = table.create_if_absent("%DLQ%g", 1, perm=2, topic_sys_flag=2)
    assert created
    assert (config.perm, config.topic_sys_flag) == (2, 2)
    assert table.create_if_absent("%DLQ%g", 7) == (config, False)


# ---- changes by name


def test_update_creates_and_replaces(open_table: Open) -> None:
    table = open_table()
    table.update([TopicConfig(topic_name="orders", read_queue_nums=4, write_queue_nums=2, perm=4)])
    assert shape(table)["orders"] == (4, 2, 4)
    table.update([TopicConfig(topic_name="orders", read_queue_nums=0, write_queue_nums=0)])
    assert shape(table)["orders"] == (0, 0, 6)


def test_an_update_of_many_is_all_or_nothing(open_table: Open) -> None:
    table = open_table()
    with pytest.raises(Refused):
        table.update([TopicConfig(topic_name="good"), TopicConfig(topic_name="b/ad")])
    assert "good" not in table
    assert table.update([TopicConfig(topic_name="a"), TopicConfig(topic_name="b")]) == ["a", "b"]
    version = table.data_version
    assert table.update([]) == []
    assert table.data_version == version


@pytest.mark.parametrize(
    "config",
    [
        TopicConfig(topic_name="t", read_queue_nums=-1),
        TopicConfig(topic_name="t", write_queue_nums=-1),
        TopicConfig(topic_name="t", read_queue_nums=topics.MAX_QUEUES + 1),
        TopicConfig(topic_name="t", write_queue_nums=2**31 - 1),
        TopicConfig(topic_name="t", perm=-1),
        TopicConfig(topic_name="t", perm=16),
    ],
)
def test_nonsense_settings_are_refused(open_table: Open, config: TopicConfig) -> None:
    table = open_table()
    with pytest.raises(Refused):
        table.update([config])
    assert "t" not in table


def test_deletion(open_table: Open) -> None:
    table = open_table()
    table.update([TopicConfig(topic_name="orders")])
    assert table.delete("orders")
    assert "orders" not in table
    assert table.get("orders") is None
    assert not table.delete("orders")


def test_topics_are_bounded(open_table: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    table = open_table()
    monkeypatch.setattr(topics, "MAX_TOPICS", len(table) + 1)
    table.create_on_send("one", "TBW102", 4)
    with pytest.raises(Refused, match="limit"):
        table.create_on_send("two", "TBW102", 4)
    with pytest.raises(Refused, match="limit"):
        table.update([TopicConfig(topic_name="two")])
    table.update([TopicConfig(topic_name="one", perm=2)])


def test_all_topics_together_are_bounded(open_table: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    table = open_table()
    table.update([TopicConfig(topic_name=letter * 127) for letter in "abc"])
    monkeypatch.setattr(topics, "MAX_TABLE_BYTES", table._bytes + 200)
    for letter in "abc":
        table.update([TopicConfig(topic_name=letter * 127, perm=2)])
    with pytest.raises(Refused, match="bytes in a registration"):
        table.create_on_send("d" * 127, "TBW102", 4)
    with pytest.raises(Refused, match="bytes in a registration"):
        table.update([TopicConfig(topic_name="a" * 127, attributes={"message.type": "x" * 500})])
    table.delete("a" * 127)
    table.create_on_send("d" * 127, "TBW102", 4)


@given(st.lists(st.builds(_any_topic, st.text("abc%|", min_size=1, max_size=127), st.booleans()), max_size=20))
def test_a_registration_never_takes_more_than_is_counted(
    tmp_path_factory: pytest.TempPathFactory, configs: list[TopicConfig]
) -> None:
    table = TopicTable(Options(), tmp_path_factory.mktemp("config") / "topics.json", Clock())
    table.update(configs)
    for config in configs[::2]:
        table.delete(config.topic_name)
    assert len(table.encode(pretty=False)) <= table._bytes + 200
    assert table._bytes == sum(map(topics._text_bytes, table.configs()))


# ---- order flags


def test_name_servers_own_the_order_flag(open_table: Open) -> None:
    table = open_table()
    table.update([TopicConfig(topic_name="a", order=True), TopicConfig(topic_name="b")])
    assert not table.is_ordered("a")
    assert table.set_ordered({"a", "unknown"})
    assert table.is_ordered("a")
    table.update([TopicConfig(topic_name="a", perm=2)])
    assert table.is_ordered("a")
    assert not table.set_ordered({"a"})
    assert table.set_ordered(set())
    assert not table.is_ordered("a")
    assert not table.is_ordered("unknown")


# ---- versions and disk


def test_each_change_has_its_version(open_table: Open, clock: Clock) -> None:
    table = open_table()
    versions = [table.data_version]
    for change in (
        lambda: table.create_on_send("a", "TBW102", 4),
        lambda: table.create_if_absent("b", 1),
        lambda: table.update([TopicConfig(topic_name="c")]),
        lambda: table.set_ordered({"a"}),
        lambda: table.delete("a"),
        lambda: table.next_version(),
    ):
        clock.advance(5)
        change()
        versions.append(table.data_version)
    assert [version.counter for version in versions] == [0, 1, 2, 3, 4, 5, 6]
    assert versions[-1].timestamp == clock.ms


def test_topics_survive_a_restart(open_table: Open, path: Path) -> None:
    table = open_table()
    table.create_on_send("a", "TBW102", 4)
    table.update([TopicConfig(topic_name="b", read_queue_nums=3, write_queue_nums=2, perm=4, topic_sys_flag=1)])
    again = open_table()
    assert again.snapshot() == table.snapshot()
    assert again.data_version == table.data_version


def test_the_file_has_the_official_form(open_table: Open, path: Path) -> None:
    table = open_table(auto_create_topic_enable=False)
    table.update([TopicConfig(topic_name="orders", read_queue_nums=8, write_queue_nums=8)])
    text = path.read_text()
    assert text.startswith('{\n\t"dataVersion":{\n\t\t"counter":1,\n\t\t"timestamp":1700000000000\n\t},\n')
    assert json.loads(text)["topicConfigTable"]["orders"] == {
        "order": False,
        "perm": 6,
        "readQueueNums": 8,
        "topicFilterType": "SINGLE_TAG",
        "topicName": "orders",
        "topicSysFlag": 0,
        "writeQueueNums": 8,
    }


def test_what_the_file_says_of_system_topics_wins(open_table: Open, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"topicConfigTable":{"BenchmarkTest":{"readQueueNums":4,"writeQueueNums":4,"perm":6}}}')
    table = open_table()
    assert shape(table)["BenchmarkTest"] == (4, 4, 6)
    assert shape(table)["TBW102"] == (8, 8, 7)


def test_names_in_the_file_that_may_not_be_are_left_out(open_table: Open, path: Path) -> None:
    path.parent.mkdir()
    names = ["good", "%RETRY%x/../../y", "..", "broker-a"]
    table = {name: {"topicName": name} for name in names}
    path.write_bytes(json.dumps({"topicConfigTable": table}).encode())
    found = open_table().names()
    assert "good" in found
    assert not {"..", "%RETRY%x/../../y"} & set(found)


def test_a_damaged_file_falls_back_to_the_one_before(open_table: Open, path: Path) -> None:
    table = open_table()
    table.update([TopicConfig(topic_name="a")])
    table.update([TopicConfig(topic_name="b")])
    path.write_bytes(b'{"dataVersion":{"coun')
    again = open_table()
    assert "a" in again
    assert "b" not in again


@given(
    st.dictionaries(
        st.text("abcXYZ019%|-_", min_size=1, max_size=127),
        st.tuples(st.integers(0, topics.MAX_QUEUES), st.integers(0, topics.MAX_QUEUES), st.integers(0, 15)),
        max_size=8,
    )
)
def test_any_table_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, tuple[int, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("config") / "topics.json"
    table = TopicTable(Options(), path, Clock())
    table.update(
        TopicConfig(topic_name=name, read_queue_nums=read, write_queue_nums=write, perm=perm)
        for name, (read, write, perm) in wanted.items()
    )
    assert TopicTable(Options(), path, Clock()).snapshot().topic_config_table == table.snapshot().topic_config_table


def test_the_fast_text_is_the_declared_one(open_table: Open) -> None:
    table = open_table()
    for change in (
        lambda: None,
        lambda: table.update([TopicConfig(topic_name="a", attributes={"message.type": "FIFO"})]),
        lambda: table.update([TopicConfig(topic_name="a", perm=2), TopicConfig(topic_name="b")]),
        lambda: table.set_ordered({"b"}),
        lambda: table.delete("a"),
    ):
        change()
        for pretty in (True, False):
            assert table.encode(pretty=pretty) == table.snapshot().encode(pretty=pretty)


# ---- slaves


def test_a_slave_becomes_its_masters_table(open_table: Open, clock: Clock, tmp_path: Path) -> None:
    master = TopicTable(Options(), tmp_path / "master" / "topics.json", clock)
    master.update([TopicConfig(topic_name="a")])
    slave = open_table()
    clock.advance(1)  # or both tables would have the same version
    slave.create_on_send("only_here", "TBW102", 4)
    assert slave.replace(TopicTableBody.decode(master.snapshot().encode()))
    assert slave.snapshot() == master.snapshot()
    assert slave.get("only_here") is None
    assert slave.get("a") is not None
    assert not slave.replace(master.snapshot())
    assert open_table().snapshot() == master.snapshot()
