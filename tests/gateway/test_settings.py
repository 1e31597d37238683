"""How files, environment and command line become options."""

import re
from pathlib import Path

import pytest

from gateway.config import ConfigError
from gateway.settings import (
    MAX_FILE_BYTES,
    PROTECTIONS,
    load_both,
    load_broker,
    load_namesrv,
    parse_overrides,
    read_properties,
)
from store.options import BrokerRole, FlushDiskType

ROOT = Path(__file__).parent.parent.parent
CONF_FILES = sorted((ROOT / "conf").rglob("*.properties"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "broker.properties"


class TestFiles:
    def test_java_syntax(self, file: Path) -> None:
        file.write_text("# c\n! c\n a = 1 \nb:2\nc d\ne=x\\\n   y\nf=\\u0041\\t|\ng\n")
        assert read_properties(str(file)) == {"a": "1", "b": "2", "c": "d", "e": "xy", "f": "A\t|", "g": ""}

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
    def test_encodings(self, file: Path, encoding: str) -> None:
        file.write_bytes("brokerName=Mühle".encode(encoding))
        assert read_properties(str(file)) == {"brokerName": "Mühle"}

    def test_windows_line_ends(self, file: Path) -> None:
        file.write_bytes(b"brokerId=0\r\nbrokerName=a\r\n")
        assert read_properties(str(file)) == {"brokerId": "0", "brokerName": "a"}

    def test_a_missing_file_is_named(self, file: Path) -> None:
        with pytest.raises(ConfigError, match=f"^cannot read {file}: No such file or directory$"):
            load_broker(str(file))

    def test_a_directory_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=f"^cannot read {tmp_path}: Is a directory$"):
            load_broker(str(tmp_path))

    def test_a_broken_escape_names_the_file(self, file: Path) -> None:
        file.write_text("brokerName=\\u12x4")
        with pytest.raises(ConfigError, match=f"^{file}: "):
            load_broker(str(file))

    def test_a_huge_file_is_not_read(self, file: Path) -> None:
        file.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
        with pytest.raises(ConfigError, match="larger than"):
            load_broker(str(file))


class TestPrecedence:
    def test_file_over_environment_over_default(self, file: Path) -> None:
        environ = {"NAMESRV_ADDR": "env:1"}
        assert load_broker().options.namesrv_addr == ""
        assert load_broker(environ=environ).options.namesrv_addr == "env:1"
        file.write_text("namesrvAddr=file:2")
        assert load_broker(str(file), environ=environ).options.namesrv_addr == "file:2"
        assert load_broker(str(file), {"namesrvAddr": "cli:3"}, environ=environ).options.namesrv_addr == "cli:3"

    def test_command_line_over_file(self, file: Path) -> None:
        file.write_text("brokerName=a\nflushDiskType=SYNC_FLUSH\n")
        configuration = load_broker(str(file), {"brokerName": "b"})
        assert configuration.options.broker_name == "b"
        assert configuration.options.source == str(file)
        assert configuration.store_options.flush_disk_type is FlushDiskType.SYNC_FLUSH

    def test_words_become_overrides(self) -> None:
        assert parse_overrides(["a=1", "b = c=d ", "e="]) == {"a": "1", "b": "c=d", "e": ""}

    @pytest.mark.parametrize("word", ["a", "=1", " =1", ""])
    def test_a_word_without_a_key_or_a_value_is_refused(self, word: str) -> None:
        with pytest.raises(ConfigError, match="expected key=value"):
            parse_overrides([word])


class TestBadValues:
    def test_the_line_names_file_key_value_and_what_is_allowed(self, file: Path) -> None:
        file.write_text("maxMessageSize=4MB")
        with pytest.raises(ConfigError) as caught:
            load_broker(str(file))
        assert str(caught.value) == f"{file}: maxMessageSize=4MB: allowed is a whole number from 1 to 2147483647"

    def test_the_line_says_when_it_was_the_command_line_or_the_environment(self) -> None:
        with pytest.raises(ConfigError, match=r"^command line: listenPort=x: "):
            load_broker(None, {"listenPort": "x"})
        with pytest.raises(ConfigError, match=r"^environment: namesrvAddr=nowhere: "):
            load_broker(environ={"NAMESRV_ADDR": "nowhere"})

    def test_a_broker_needs_an_address_that_messages_can_carry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(*words: object, **more: object) -> None:
            raise OSError("Name or service not known")

        monkeypatch.setattr("socket.getaddrinfo", unknown)
        with pytest.raises(ConfigError, match=r"^command line: brokerIP1=mq-0: allowed .*: Name or service not known$"):
            load_broker(None, {"brokerIP1": "mq-0"})

    def test_a_name_server_checks_its_own_keys(self) -> None:
        with pytest.raises(ConfigError, match=r"^command line: listenPort=70000: "):
            load_namesrv(None, {"listenPort": "70000"})


class TestRemarks:
    def test_a_misspelt_key_is_reported_with_the_one_that_was_meant(self, file: Path) -> None:
        file.write_text("brokerIp1=10.0.0.1\nflushDisktype=SYNC_FLUSH\n")
        configuration = load_broker(str(file), {"autoCreateTopics": "true"})
        assert [str(remark) for remark in configuration.remarks] == [
            f"unknown_config_key key=brokerIp1 given_in={file} did_you_mean=brokerIP1",
            f"unknown_config_key key=flushDisktype given_in={file} did_you_mean=flushDiskType",
            "unknown_config_key key=autoCreateTopics given_in=command line did_you_mean=autoCreateTopicEnable",
        ]

    def test_a_key_like_no_other_is_reported_without_a_guess(self) -> None:
        (remark,) = load_broker(None, {"zzz": "1"}).remarks
        assert remark.facts == {"key": "zzz", "given_in": "command line"}

    def test_keys_without_effect_are_named_once(self) -> None:
        given = {"sendMessageThreadPoolNums": "16", "transientStorePoolEnable": "true", "timerWheelEnable": "true"}
        configuration = load_broker(None, given)
        (remark,) = configuration.remarks
        assert str(remark) == (
            "config_keys_without_effect keys=sendMessageThreadPoolNums, timerWheelEnable, transientStorePoolEnable"
        )
        assert configuration.options.without_effect == given

    def test_a_plain_configuration_needs_no_remark(self) -> None:
        assert load_broker(None, {"brokerName": "a"}).remarks == []
        assert load_namesrv().remarks == []


class TestIdentity:
    @pytest.mark.parametrize("role", ["ASYNC_MASTER", "SYNC_MASTER"])
    def test_a_master_has_id_0_and_says_so(self, role: str) -> None:
        configuration = load_broker(None, {"brokerRole": role, "brokerId": "3"})
        assert configuration.options.broker_id == 0
        assert [str(remark) for remark in configuration.remarks] == ["broker_id_of_a_master_is_0 given=3"]

    @pytest.mark.parametrize("number", [None, "0", "-1"])
    def test_a_slave_needs_an_id(self, number: str | None) -> None:
        given = {"brokerRole": "SLAVE"} | ({"brokerId": number} if number else {})
        with pytest.raises(ConfigError, match=r"brokerId=.*: a SLAVE needs a number above 0"):
            load_broker(None, given)

    def test_a_slave_with_an_id(self) -> None:
        configuration = load_broker(None, {"brokerRole": "SLAVE", "brokerId": "1"})
        assert configuration.store_options.broker_role is BrokerRole.SLAVE
        assert configuration.options.broker_id == 1

    @pytest.mark.parametrize("address", ["host", "a:1;b:2"])
    def test_the_masters_address_is_one(self, address: str) -> None:
        with pytest.raises(ConfigError, match=r"haMasterAddress=.*: allowed is one host:port"):
            load_broker(None, {"haMasterAddress": address})


class TestPorts:
    @pytest.mark.parametrize(
        ("given", "ha_port"),
        [
            ({}, 10912),
            ({"listenPort": "20000"}, 20001),
            ({"listenPort": "20000", "haListenPort": "3"}, 3),
            ({"listenPort": "0"}, 0),
        ],
    )
    def test_the_port_for_slaves(self, given: dict[str, str], ha_port: int) -> None:
        assert load_broker(None, given).store_options.ha_listen_port == ha_port

    @pytest.mark.parametrize("port", ["1", "2"])
    def test_there_must_be_room_for_the_fast_port(self, port: str) -> None:
        with pytest.raises(ConfigError, match="listenPort - 2, must be above 0"):
            load_broker(None, {"listenPort": port})

    @pytest.mark.parametrize("port", ["20000", "19998"])
    def test_two_listeners_cannot_share_a_port(self, port: str) -> None:
        with pytest.raises(ConfigError, match=f"haListenPort={port}: listenPort=20000 uses this port"):
            load_broker(None, {"listenPort": "20000", "haListenPort": port})


class TestBoth:
    def test_defaults_lie_under_data(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        namesrv, broker = load_both()
        assert broker.store_options.store_path_root_dir == str(tmp_path / "data" / "store")
        assert namesrv.options.kv_config_path == str(tmp_path / "data" / "namesrv" / "kvConfig.json")
        assert (namesrv.options.listen_port, namesrv.options.metrics_port) == (9876, 5556)
        assert (broker.options.listen_port, broker.options.metrics_port) == (10911, 5557)
        assert broker.remarks == []

    def test_each_key_reaches_its_server(self) -> None:
        given = {
            "listenPort": "1000",
            "namesrvPort": "2000",
            "namesrvMetricsPort": "0",
            "clusterTest": "true",
            "logDir": "/l",
        }
        namesrv, broker = load_both(None, given)
        assert (broker.options.listen_port, namesrv.options.listen_port) == (1000, 2000)
        assert (broker.options.metrics_port, namesrv.options.metrics_port) == (5557, 0)
        assert (broker.options.log_dir, namesrv.options.log_dir) == ("/l", "/l")
        assert namesrv.options.cluster_test
        assert broker.remarks == []

    def test_a_bad_port_is_named_as_it_was_given(self) -> None:
        with pytest.raises(ConfigError, match=r"^command line: namesrvPort=x: "):
            load_both(None, {"namesrvPort": "x"})

    def test_the_environment_does_not_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NAMESRV_ADDR", "elsewhere:9876")
        assert load_both()[1].options.namesrv_addr == ""


class TestSampleFiles:
    def test_names_are_those_of_the_official_package(self) -> None:
        pairs = ["broker-a-s", "broker-a", "broker-b-s", "broker-b"]
        expected = {"2m-noslave": ["broker-a", "broker-b", "broker-trace"], "2m-2s-sync": pairs, "2m-2s-async": pairs}
        found = {folder: sorted(f.stem for f in CONF_FILES if f.parent.name == folder) for folder in expected}
        assert found == {folder: sorted(names) for folder, names in expected.items()}

    @pytest.mark.parametrize("file", CONF_FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
    def test_each_starts_as_it_is(self, file: Path) -> None:
        configuration = load_broker(str(file))
        assert configuration.remarks == []
        assert (configuration.options.broker_id > 0) == file.stem.endswith("-s")
        is_slave = configuration.store_options.broker_role is BrokerRole.SLAVE
        assert is_slave == file.stem.endswith("-s")
        assert configuration.store_options.file_reserved_time == 48


def test_name_servers_on_one_machine_share_nothing() -> None:
    """What the README has them started with leaves no default that both would use."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [words.split() for words in re.findall(r"nohup sh mqnamesrv (listenPort=.*) &$", text, re.M)]
    first, second = (load_namesrv(None, parse_overrides(words)).options for words in commands)
    assert first.listen_port != second.listen_port
    assert first.kv_config_path != second.kv_config_path
    assert first.config_store_path != second.config_store_path


class TestProtections:
    @pytest.mark.parametrize("key", PROTECTIONS)
    def test_what_is_not_there_is_refused(self, key: str) -> None:
        with pytest.raises(ConfigError, match=f"^command line: {key}=true: this broker .*; only .* is allowed$"):
            load_broker(None, {key: "true"})

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            ("aclEnable", "TRUE"),
            ("aclEnable", "yes"),
            ("enableControllerMode", " True "),
            ("storeType", "defaultRocksDB"),
            ("storeType", "RocksDB"),
            ("storeType", "DEFAULTROCKSDB"),
            ("minInSyncReplicas", "2"),
            ("minInSyncReplicas", "two"),
        ],
    )
    def test_however_it_is_written(self, key: str, text: str) -> None:
        with pytest.raises(ConfigError, match=f"{key}={text.strip()}: "):
            load_broker(None, {key: text})

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            *((key, text) for key, (_, allowed) in PROTECTIONS.items() for text in allowed),
            ("aclEnable", "FALSE"),
            ("storeType", "Default"),
            ("storeType", ""),
        ],
    )
    def test_what_promises_nothing_is_accepted(self, key: str, text: str) -> None:
        load_broker(None, {key: text})

    def test_the_line_names_the_file_and_what_is_allowed(self, file: Path) -> None:
        file.write_text("storeType=defaultRocksDB\n")
        for load in (load_broker, load_both):
            with pytest.raises(ConfigError) as caught:
                load(str(file))
            line = f"{file}: storeType=defaultRocksDB: this broker has no such store; only default is allowed"
            assert str(caught.value) == line

    def test_slaves_that_act_as_masters_are_only_named(self) -> None:
        (remark,) = load_broker(None, {"enableSlaveActingMaster": "true"}).remarks
        assert str(remark) == "config_keys_without_effect keys=enableSlaveActingMaster"
