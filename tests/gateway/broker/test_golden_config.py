"""The configuration files of official brokers: read, and written back as they were."""

from pathlib import Path
from typing import Any

import pytest

from gateway.broker.groups import GroupTable
from gateway.broker.offsets import OffsetTable
from gateway.broker.topics import TopicTable
from gateway.config import BrokerOptions
from protocol import javajson
from tests.gateway.broker.fakes import Clock

STORES = Path(__file__).parents[2] / "data" / "store"
VERSIONS = sorted(path.name for path in STORES.iterdir())
OPTIONS = BrokerOptions(broker_name="broker-a", broker_ip1="127.0.0.1", broker_ip2="127.0.0.1")


@pytest.fixture(params=VERSIONS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an official broker's config folder."""
    version: str = request.param
    folder = tmp_path / version
    folder.mkdir()
    for file in (STORES / version / "config").glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def loads(text: bytes) -> Any:
    """A file's content, whatever its shape."""
    return javajson.loads(text)


def test_there_are_files_of_every_version() -> None:
    assert VERSIONS == ["4.8.0", "4.9.4", "5.3.3"]


def test_topics(config: Path) -> None:
    file = config / "topics.json"
    official = loads(file.read_bytes())
    table = TopicTable(OPTIONS, file, Clock())
    assert table.is_system("DefaultCluster_REPLY_TOPIC")
    assert table.get("golden") is not None
    table.file.save()
    ours = loads(file.read_bytes())
    assert ours["topicConfigTable"] == official["topicConfigTable"]
    official["dataVersion"].pop("stateVersion", None)  # 0 is not written
    assert ours["dataVersion"] == official["dataVersion"]


def test_groups(config: Path) -> None:
    file = config / "subscriptionGroup.json"
    official = loads(file.read_bytes())
    table = GroupTable(OPTIONS, file, Clock())
    assert table.get("golden-group") is not None
    table.file.save()
    ours = loads(file.read_bytes())
    for group, config in official["subscriptionGroupTable"].items():
        assert ours["subscriptionGroupTable"][group] == config
    official["dataVersion"].pop("stateVersion", None)  # 0 is not written
    assert {**ours, "subscriptionGroupTable": {}} == {**official, "subscriptionGroupTable": {}}


def test_offsets(config: Path) -> None:
    file = config / "consumerOffset.json"
    official = loads(file.read_bytes())
    text = file.read_bytes()
    table = OffsetTable(file, Clock())
    assert table.query("golden-group", "golden", 0) >= 10
    table.file.save()
    ours = loads(file.read_bytes())
    assert ours["offsetTable"] == official["offsetTable"]
    if "dataVersion" not in official:  # 4.x: byte for byte
        assert file.read_bytes() == text
