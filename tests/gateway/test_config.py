"""Option classes against the official package's keys and defaults."""

import re
from pathlib import Path

import pytest

from gateway import officialkeys
from gateway.config import BrokerOptions, NamesrvOptions, broker_properties, namesrv_properties
from protocol.options import OptionError
from store.options import BrokerRole, FlushDiskType, StoreOptions

GOLDEN = Path(__file__).parent.parent / "data" / "mqadmin"
OWN_KEYS = {"logDir", "metricsPort", "haSyncWholeLog"}
# What the run that made the golden file had set, or what depends on its machine.
SET_BROKER_KEYS = {
    "brokerIP1", "brokerIP2", "brokerName", "defaultTopicQueueNums", "flushConsumerOffsetInterval",
    "flushDelayOffsetInterval", "haListenPort", "listenPort", "mappedFileSizeCommitLog", "mappedFileSizeConsumeQueue",
    "maxHashSlotNum", "maxIndexNum", "namesrvAddr", "rocketmqHome", "storePathCommitLog", "storePathRootDir",
    "transactionCheckInterval", "transactionTimeOut",
}  # fmt: skip
SET_NAMESRV_KEYS = {"kvConfigPath", "configStorePath", "listenPort", "rocketmqHome"}


def golden(name: str) -> dict[str, str]:
    """What the official server answered to GET_BROKER_CONFIG or GET_NAMESRV_CONFIG, as mqadmin prints it."""
    lines = (GOLDEN / name).read_text().splitlines()
    return {m[1]: m[2] for line in lines if (m := re.fullmatch(r"(\w+)\s+=\s+(.*?)\s*", line))}


class TestOfficialKeys:
    def test_a_broker_knows_every_key_with_its_default(self) -> None:
        official = golden("getBrokerConfig.txt")
        ours = broker_properties(BrokerOptions(), StoreOptions())
        assert len(official) > 150
        assert official.keys() - ours.keys() == set()
        by_machine = {
            key for key in official if key.endswith(("ThreadPoolNums", "FutureThreadPoolNums", "ExecutorThreads"))
        }
        compared = official.keys() - SET_BROKER_KEYS - by_machine
        assert {key: ours[key] for key in compared} == {key: official[key] for key in compared}

    def test_a_name_server_knows_every_key_with_its_default(self) -> None:
        official = golden("getNamesrvConfig.txt")
        ours = namesrv_properties(NamesrvOptions())
        compared = official.keys() - SET_NAMESRV_KEYS
        assert {key: ours[key] for key in compared} == {key: official[key] for key in compared}

    def test_a_key_either_has_a_meaning_or_has_none(self) -> None:
        meant = BrokerOptions.declared().keys() | StoreOptions.declared().keys() | NamesrvOptions.declared().keys()
        assert meant & (officialkeys.BROKER.keys() | officialkeys.SERVER.keys() | officialkeys.SINCE_5) == set()

    def test_no_key_is_in_two_classes_of_the_broker(self) -> None:
        assert BrokerOptions.declared().keys() & StoreOptions.declared().keys() == set()

    def test_names_that_the_rule_would_miss(self) -> None:
        assert {"brokerIP1", "brokerIP2", "checkCRCOnRecover"} <= broker_properties(
            BrokerOptions(), StoreOptions()
        ).keys()

    def test_what_was_given_without_effect_is_told_back(self) -> None:
        options = BrokerOptions()
        options.without_effect = {"sendMessageThreadPoolNums": "3"}
        assert broker_properties(options, StoreOptions())["sendMessageThreadPoolNums"] == "3"


class TestDerivedValues:
    def test_the_commitlog_lies_under_the_root(self) -> None:
        assert StoreOptions(store_path_root_dir="/x").store_path_commit_log == "/x/commitlog"
        assert StoreOptions(store_path_root_dir="/x", store_path_commit_log="/y").store_path_commit_log == "/y"

    def test_a_tilde_is_the_home_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/u")
        assert StoreOptions().store_path_root_dir == "/home/u/store"
        assert StoreOptions(store_path_root_dir="~/mq").store_path_commit_log == "/home/u/mq/commitlog"
        assert BrokerOptions(log_dir="~/l").log_dir == "/home/u/l"
        assert NamesrvOptions().kv_config_path == "/home/u/namesrv/kvConfig.json"

    @pytest.mark.parametrize(("given", "held"), [(20, 20), (21, 40), (6_000_000, 6_000_000)])
    def test_a_consume_queue_file_holds_whole_units(self, given: int, held: int) -> None:
        assert StoreOptions(mapped_file_size_consume_queue=given).mapped_file_size_consume_queue == held

    @pytest.mark.parametrize(("given", "held"), [(5, 10), (75, 75), (99, 95)])
    def test_the_disk_ratio_is_held_in_bounds(self, given: int, held: int) -> None:
        assert StoreOptions(disk_max_used_space_ratio=given).disk_max_used_space_ratio == held


class TestBounds:
    @pytest.mark.parametrize(
        ("key", "text"),
        [
            ("flushDiskType", "SYNC"),
            ("brokerRole", "MASTER"),
            ("deleteWhen", "24"),
            ("deleteWhen", "4,5"),
            ("messageDelayLevel", "1s 5x"),
            ("messageDelayLevel", ""),
            ("maxMessageSize", "0"),
            ("haListenPort", "65536"),
        ],
    )
    def test_store_values_that_are_refused(self, key: str, text: str) -> None:
        with pytest.raises(OptionError, match=f"^{key}="):
            StoreOptions.from_properties({key: text})

    @pytest.mark.parametrize(
        ("key", "text"), [("deleteWhen", "4"), ("deleteWhen", "00;04;23"), ("messageDelayLevel", "1s 2d")]
    )
    def test_store_values_that_are_taken(self, key: str, text: str) -> None:
        assert StoreOptions.from_properties({key: text}).to_properties()[key] == text

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            ("namesrvAddr", "localhost"),
            ("namesrvAddr", "a:1 b:2"),
            ("brokerIP1", "1.2.3.4:10911"),
            ("brokerIP1", ""),
            ("brokerName", "../x"),
            ("brokerName", ""),
            ("brokerName", "x" * 128),
            ("brokerPermission", "8"),
            ("listenPort", "65535"),
            ("metricsPort", "-1"),
        ],
    )
    def test_broker_values_that_are_refused(self, key: str, text: str) -> None:
        with pytest.raises(OptionError, match=f"^{key}="):
            BrokerOptions.from_properties({key: text})

    def test_nothing_moves_a_path_a_port_or_an_identity_while_running(self) -> None:
        for options in (BrokerOptions(), StoreOptions(), NamesrvOptions()):
            movable = {key for key, spec in options.declared().items() if not spec.fixed}
            moving = {
                k for k in movable if re.search(r"[pP]ath|Port$|Dir$|rocketmqHome|brokerName|brokerId", k)
            }
            assert moving == set()

    def test_what_is_settled_at_the_start_is_not_said_to_have_changed(self) -> None:
        options = StoreOptions()
        with pytest.raises(OptionError, match=r"^flushDiskType=SYNC_FLUSH: cannot change while running"):
            options.change({"flushDiskType": "SYNC_FLUSH"})
        assert options.flush_disk_type is FlushDiskType.ASYNC_FLUSH

    def test_a_master_may_begin_and_cease_to_wait_for_slaves(self) -> None:
        options = StoreOptions()
        assert options.change({"brokerRole": "SYNC_MASTER"}) == ["brokerRole"]
        assert options.broker_role is BrokerRole.SYNC_MASTER
        assert options.change({"brokerRole": "ASYNC_MASTER"}) == ["brokerRole"]

    @pytest.mark.parametrize(("role", "other"), [("SLAVE", "SYNC_MASTER"), ("ASYNC_MASTER", "SLAVE")])
    def test_nobody_becomes_or_ceases_to_be_a_slave_while_running(self, role: str, other: str) -> None:
        options = StoreOptions.from_properties({"brokerRole": role})
        with pytest.raises(OptionError, match=f"^brokerRole={other}: cannot change while running"):
            options.change({"brokerRole": other})
        assert options.broker_role.value == role
