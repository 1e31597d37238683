"""The requests of official clients and tools, byte for byte, and what we answer beside what official 4.9.4 answered.

The store is the one that official broker left, so offsets and sizes have to be the same; times and addresses are not.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from protocol import javajson
from protocol.command import Command
from protocol.frame import FrameDecoder
from tests.gateway.broker.handlers.rig import FakeConnection, Rig

DATA = Path(__file__).parents[3] / "data"
GOLDEN_STORE = {
    "mapped_file_size_commit_log": 16384,
    "mapped_file_size_consume_queue": 1000,
    "max_hash_slot_num": 50,
    "max_index_num": 200,
}
Make = Callable[..., Rig]


def frame(folder: str, name: str) -> Command:
    (command,) = FrameDecoder().receive((DATA / "wire" / folder / f"{name}.bin").read_bytes())
    return command


async def exchange(
    rig: Rig, folder: str, name: str, connection: FakeConnection | None = None
) -> tuple[Command, Command]:
    """Our answer to a golden request, and the golden answer."""
    connection = connection or rig.tool
    request = frame(folder, f"{name}.request")
    rig.router.run(connection, request)  # type: ignore[arg-type]
    with trio.fail_after(5):
        ours = await connection.answers.receive()
    assert ours.opaque == request.opaque
    return ours, frame(folder, f"{name}.response")


def loads(body: bytes) -> Any:
    """A body, whatever its shape."""
    return javajson.loads(body)


def shape(value: Any) -> Any:
    """A body without its numbers and texts: names and nesting only."""
    if isinstance(value, dict):
        return {str(name): shape(member) for name, member in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.fixture
def golden(make_rig: Make, tmp_path: Path) -> Rig:
    """A broker that goes on where official 4.9.4 stopped."""
    shutil.copytree(DATA / "store" / "4.9.4", tmp_path, dirs_exist_ok=True)
    return make_rig(store=GOLDEN_STORE, broker_ip1="127.0.0.1", broker_ip2="127.0.0.1")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        (folder, name)
        for folder in ("4.8.0-json", "4.9.4-json", "5.3.3-json")
        for name in ("error-consumer-list-empty", "error-unknown-code-broker", "error-view-missing")
        if (DATA / "wire" / folder / f"{name}.request.bin").exists()
    ],
)
async def test_refusals_are_the_official_ones(golden: Rig, folder: str, name: str) -> None:
    ours, official = await exchange(golden, folder, name)
    assert (ours.code, ours.remark) == (official.code, official.remark)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        (folder, name)
        for folder in ("4.8.0-json", "4.9.4-json", "4.9.4-rocketmq", "5.3.3-json")
        for name in ("heart-beat", "unregister-client", "lock-batch-mq", "unlock-batch-mq", "get-min-offset",
                     "get-max-offset", "get-earliest-msg-storetime", "search-offset-by-timestamp")
    ],
)  # fmt: skip
async def test_requests_of_clients_are_served(golden: Rig, folder: str, name: str) -> None:
    ours, official = await exchange(golden, folder, name)
    assert ours.code == official.code == 0
    heartbeat_v2 = {"IS_SUPPORT_HEART_BEAT_V2", "IS_SUB_CHANGE"}  # an offer of 5.x that we do not make
    assert ours.fields.keys() == official.fields.keys() - heartbeat_v2
    if official.body:
        theirs = loads(official.body)
        mine = loads(ours.body)
        assert sorted(map(str, mine["lockOKMQSet"])) == sorted(map(str, theirs["lockOKMQSet"]))


@pytest.mark.parametrize("name", ["get-topic-stats-info", "get-consume-stats"])
async def test_queues_reach_as_far_as_official_said(golden: Rig, name: str) -> None:
    ours, official = await exchange(golden, "4.9.4-json", name)
    times = re.compile(rb'"(lastUpdateTimestamp|lastTimestamp)":1\d{12}|"consumeTps":[0-9.]+')

    def entries(body: bytes) -> list[bytes]:
        return sorted(re.findall(rb"\{[^{}]*\}:\{[^{}]*\}", times.sub(b"time", body)))

    one_more_came_later = re.compile(rb'("queueId":2,"topic":"golden"\}:\{.*?"(?:max|broker)Offset"):2')
    newer = re.compile(rb',"pullOffset":[0-9]+')
    assert entries(newer.sub(b"", ours.body)) == entries(one_more_came_later.sub(rb"\1:3", official.body))
    assert len(entries(ours.body)) >= 4


async def test_queue_entries_are_the_official_ones(golden: Rig) -> None:
    ours, official = await exchange(golden, "4.9.4-json", "query-consume-queue")
    assert ours.body == official.body


@pytest.mark.parametrize("name", ["get-consumer-connection-list", "get-producer-connection-list"])
async def test_connections_have_the_official_shape(golden: Rig, name: str) -> None:
    beat = frame("4.9.4-json", "heart-beat.request")
    beat.body = re.sub(rb"push-[0-9a-f]{8}", b"golden-group", beat.body)
    beat.body = beat.body.replace(b"CLIENT_INNER_PRODUCER", b"golden-producer")
    golden.router.run(golden.connect(), beat)  # type: ignore[arg-type]
    ours, official = await exchange(golden, "4.9.4-json", name)
    assert shape(loads(ours.body)) == shape(loads(official.body))


@pytest.mark.parametrize("name", ["update-and-create-topic", "update-and-create-subscriptiongroup",
                                  "delete-subscriptiongroup", "delete-topic-in-broker"])  # fmt: skip
async def test_changes_by_mqadmin_succeed(golden: Rig, name: str) -> None:
    ours, official = await exchange(golden, "4.9.4-json", name)
    assert ours.code == official.code == 0
    assert ours.body == official.body == b""


async def test_runtime_info_has_all_official_keys(golden: Rig) -> None:
    ours, official = await exchange(golden, "4.9.4-json", "get-broker-runtime-info")
    mine, theirs = loads(ours.body)["table"], loads(official.body)["table"]
    assert {key for key in theirs.keys() - mine.keys() if not key.startswith("commitLogDiskRatio_")} == set()
    assert mine["scheduleMessageOffset_1"] == theirs["scheduleMessageOffset_1"]


async def test_configuration_has_all_official_keys(golden: Rig) -> None:
    ours, official = await exchange(golden, "4.9.4-json", "get-broker-config")

    def keys(body: bytes) -> set[str]:
        return {line.partition("=")[0] for line in body.decode().splitlines()}

    assert keys(official.body) - keys(ours.body) == set()
    assert ours.fields.keys() == official.fields.keys()


@pytest.mark.parametrize(
    "name",
    ["get-all-topic-config", "get-all-consumer-offset", "get-all-subscriptiongroup-config", "get-all-delay-offset"],
)
async def test_slaves_get_tables_of_the_official_shape(golden: Rig, name: str) -> None:
    ours, official = await exchange(golden, "4.9.4-json-slave", name)
    assert ours.code == official.code == 0
    mine, theirs = loads(ours.body), loads(official.body)
    for_5x = {"dataVersion"} if name == "get-all-consumer-offset" else set()
    assert mine.keys() == theirs.keys() | for_5x
    for key in mine.keys() & {"topicConfigTable", "subscriptionGroupTable"}:
        known = mine[key].keys() & theirs[key].keys()
        assert known
        for each in known:
            assert shape(mine[key][each]) == shape(theirs[key][each])
