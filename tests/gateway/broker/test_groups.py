"""The group table: default groups, automatic creation, and what is on disk."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.broker import groups
from gateway.broker.groups import GroupTable
from gateway.routing import Refused
from protocol.bodies import DataVersion, GroupTableBody, SubscriptionGroupConfig
from protocol.codes import ResponseCode
from tests.gateway.broker.fakes import Clock


@dataclass
class Options:
    auto_create_subscription_group: bool = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "subscriptionGroup.json"


@pytest.fixture
def table(path: Path, clock: Clock) -> GroupTable:
    return GroupTable(Options(), path, clock)


def test_default_groups(table: GroupTable, path: Path) -> None:
    assert table.names() == [
        "TOOLS_CONSUMER",
        "FILTERSRV_CONSUMER",
        "SELF_TEST_C_GROUP",
        "CID_ONS-HTTP-PROXY",
        "CID_ONSAPI_PULL",
        "CID_ONSAPI_PERMISSION",
        "CID_ONSAPI_OWNER",
    ]
    assert not path.exists()


def test_a_group_comes_into_being_when_asked_for(table: GroupTable, path: Path) -> None:
    assert table.get("g") is None
    config = table.find("g")
    assert config == SubscriptionGroupConfig(group_name="g")
    assert table.find("g") is config
    assert table.data_version.counter == 1
    assert json.loads(path.read_bytes())["subscriptionGroupTable"]["g"] == {
        "brokerId": 0,
        "consumeBroadcastEnable": True,
        "consumeEnable": True,
        "consumeFromMinEnable": True,
        "groupName": "g",
        "notifyConsumerIdsChangedEnable": True,
        "retryMaxTimes": 16,
        "retryQueueNums": 1,
        "whichBrokerWhenConsumeSlowly": 1,
    }


def test_without_automatic_creation_only_system_groups_do(path: Path, clock: Clock) -> None:
    table = GroupTable(Options(auto_create_subscription_group=False), path, clock)
    assert table.find("CID_RMQ_SYS_TRANS").group_name == "CID_RMQ_SYS_TRANS"
    with pytest.raises(Refused) as refused:
        table.find("g")
    assert refused.value.code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST
    assert "g" not in table


@pytest.mark.parametrize("group", ["", "x/../../y", "a b", "a\0", "g" * 256])
def test_illegal_names_create_nothing(table: GroupTable, group: str) -> None:
    with pytest.raises(Refused):
        table.find(group)
    with pytest.raises(Refused):
        table.update([SubscriptionGroupConfig(group_name=group)])
    assert len(table) == 7


def test_update_replaces_all_or_nothing(table: GroupTable) -> None:
    table.update([SubscriptionGroupConfig(group_name="g", retry_max_times=3)])
    assert table.find("g").retry_max_times == 3
    with pytest.raises(Refused, match="retry queues"):
        table.update(
            [SubscriptionGroupConfig(group_name="h"), SubscriptionGroupConfig(group_name="g", retry_queue_nums=-1)]
        )
    assert "h" not in table
    assert table.find("g").retry_queue_nums == 1


def test_deletion(table: GroupTable, path: Path, clock: Clock) -> None:
    table.find("g")
    assert table.delete("g")
    assert not table.delete("g")
    assert "g" not in GroupTable(Options(), path, clock)


def test_groups_are_bounded(table: GroupTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MAX_GROUPS", 8)
    table.find("g")
    with pytest.raises(Refused, match="limit of 8 groups"):
        table.find("h")
    with pytest.raises(Refused, match="limit of 8 groups"):
        table.update([SubscriptionGroupConfig(group_name="h")])


def test_all_groups_together_are_bounded(table: GroupTable, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = {"broker_id": -(2**63), "which_broker_when_consume_slowly": -(2**63), "retry_max_times": -(2**31)}
    for letter in "abc":
        table.update([SubscriptionGroupConfig(group_name=letter * 255, **huge)])  # type: ignore[arg-type]
    size = len(table.encode(pretty=False))
    assert size <= table._bytes + 200
    monkeypatch.setattr(groups, "MAX_TABLE_BYTES", table._bytes + 200)
    table.update([SubscriptionGroupConfig(group_name="a" * 255)])
    with pytest.raises(Refused, match="limit of"):
        table.find("d" * 255)
    table.delete("a" * 255)
    table.find("d" * 255)


@given(st.lists(st.text("abcXYZ019%|-_", min_size=1, max_size=255), unique=True, max_size=8), st.integers(0, 1024))
def test_any_table_survives_the_file(tmp_path_factory: pytest.TempPathFactory, names: list[str], queues: int) -> None:
    path = tmp_path_factory.mktemp("config") / "subscriptionGroup.json"
    table = GroupTable(Options(), path, Clock())
    table.update(SubscriptionGroupConfig(group_name=name, retry_queue_nums=queues) for name in names)
    again = GroupTable(Options(), path, Clock())
    assert again.snapshot().subscription_group_table == table.snapshot().subscription_group_table


def test_the_fast_text_is_the_declared_one(table: GroupTable) -> None:
    for change in (
        lambda: None,
        lambda: table.find("a"),
        lambda: table.update([SubscriptionGroupConfig(group_name="a", retry_max_times=3)]),
        lambda: table.delete("a"),
    ):
        change()
        for pretty in (True, False):
            assert table.encode(pretty=pretty) == table.snapshot().encode(pretty=pretty)


OF_5X = {"consumeTimeoutMinute": 7, "groupRetryPolicy": {"type": "CUSTOMIZED"}, "attributes": {}}
FORBIDDEN = {"forbiddenTable": {"a": {"T": 1}, "b": {"T": 1}}}


def test_settings_of_5x_are_in_the_file(table: GroupTable, path: Path, clock: Clock) -> None:
    table.update([SubscriptionGroupConfig(group_name="a", others=OF_5X), SubscriptionGroupConfig(group_name="b")])
    entries = json.loads(path.read_bytes())["subscriptionGroupTable"]
    assert {name: entries["a"][name] for name in OF_5X} == OF_5X
    assert not entries["b"].keys() & OF_5X.keys()
    again = GroupTable(Options(), path, clock)
    assert again.find("a").others == OF_5X
    assert again.snapshot() == table.snapshot()


def test_what_5x_has_beside_the_groups_is_kept(table: GroupTable, path: Path, clock: Clock) -> None:
    groups_of_5x = {name: SubscriptionGroupConfig(group_name=name, others=OF_5X) for name in "ab"}
    version = DataVersion(counter=9, timestamp=1)
    master = GroupTableBody(data_version=version, subscription_group_table=groups_of_5x, others=FORBIDDEN)
    table.replace(GroupTableBody.decode(master.encode()))
    assert table.snapshot() == master
    again = GroupTable(Options(), path, clock)
    assert (again.find("a"), again.snapshot().others) == (groups_of_5x["a"], FORBIDDEN)
    for pretty in (True, False):
        assert table.encode(pretty=pretty) == master.encode(pretty=pretty)
    table.delete("a")
    assert json.loads(path.read_bytes())["forbiddenTable"] == {"b": {"T": 1}}
    assert master.others == FORBIDDEN
    table.replace(GroupTableBody(subscription_group_table=groups_of_5x))
    assert "forbiddenTable" not in json.loads(path.read_bytes())


def test_settings_of_5x_count_in_the_table(table: GroupTable, monkeypatch: pytest.MonkeyPatch) -> None:
    large = [SubscriptionGroupConfig(group_name=name, others={"x": ["ä" * 5000]}) for name in "ab"]
    table.update(large[:1])
    size = len(table.encode(pretty=False))
    assert size <= table._bytes + 200
    monkeypatch.setattr(groups, "MAX_TABLE_BYTES", table._bytes + 600)
    with pytest.raises(Refused, match="limit of"):
        table.update(large[1:])
    table.update([SubscriptionGroupConfig(group_name="a")])
    table.update(large[1:])
    with pytest.raises(Refused, match="limit of"):
        table.update(large[:1])
    table.delete("b")
    table.update(large[:1])


def test_names_in_the_file_that_may_not_be_are_left_out(path: Path, clock: Clock) -> None:
    path.parent.mkdir()
    table = {name: {"groupName": name} for name in ("good", "x/../../y")}
    path.write_bytes(json.dumps({"subscriptionGroupTable": table}).encode())
    found = GroupTable(Options(), path, clock).names()
    assert "good" in found
    assert "x/../../y" not in found


def test_a_slave_becomes_its_masters_table(table: GroupTable, path: Path, clock: Clock, tmp_path: Path) -> None:
    master = GroupTable(Options(), tmp_path / "master" / "subscriptionGroup.json", clock)
    master.update([SubscriptionGroupConfig(group_name="a", consume_enable=False)])
    assert table.replace(GroupTableBody.decode(master.snapshot().encode()))
    assert table.snapshot() == master.snapshot()
    assert not table.replace(master.snapshot())
    assert GroupTable(Options(), path, clock).snapshot() == master.snapshot()
