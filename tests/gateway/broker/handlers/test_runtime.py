"""A running broker's configuration and figures."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.broker.handlers import admin, runtime
from gateway.broker.handlers.runtimeinfo import duration_text, size_text
from protocol.bodies import BrokerStatsData, KVTable
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command
from protocol.requests.runtime import ViewBrokerStatsData
from store.options import BrokerRole
from tests.gateway.broker.handlers.rig import Rig
from tests.gateway.broker.producing import send

Make = Callable[..., Rig]

# What rocketmq-exporter (BrokerRuntimeStats) reads without looking whether it is there, and what 5.3.3 tools read.
WANTED = {
    "bootTimestamp",
    "runtime",
    "putMessageEntireTimeMax",
    "putMessageTimesTotal",
    "putMessageFailedTimes",
    "putMessageSizeTotal",
    "putMessageDistributeTime",
    "putMessageAverageSize",
    "dispatchMaxBuffer",
    "getMessageEntireTimeMax",
    "putTps",
    "getFoundTps",
    "getMissTps",
    "getTotalTps",
    "getTransferedTps",
    "putLatency99",
    "putLatency999",
    "commitLogDiskRatio",
    "consumeQueueDiskRatio",
    "commitLogMinOffset",
    "commitLogMaxOffset",
    "brokerVersionDesc",
    "brokerVersion",
    "msgPutTotalYesterdayMorning",
    "msgPutTotalTodayMorning",
    "msgPutTotalTodayNow",
    "msgGetTotalYesterdayMorning",
    "msgGetTotalTodayMorning",
    "msgGetTotalTodayNow",
    "sendThreadPoolQueueSize",
    "sendThreadPoolQueueCapacity",
    "sendThreadPoolQueueHeadWaitTimeMills",
    "pullThreadPoolQueueSize",
    "pullThreadPoolQueueCapacity",
    "pullThreadPoolQueueHeadWaitTimeMills",
    "queryThreadPoolQueueSize",
    "queryThreadPoolQueueCapacity",
    "queryThreadPoolQueueHeadWaitTimeMills",
    "EndTransactionQueueSize",
    "EndTransactionThreadPoolQueueCapacity",
    "dispatchBehindBytes",
    "pageCacheLockTimeMills",
    "earliestMessageTimeStamp",
    "startAcceptSendRequestTimeStamp",
    "remainTransientStoreBufferNumbs",
    "remainHowManyDataToFlush",
    "commitLogDirCapacity",
    "getTransferredTps",
    "brokerActive",
    "timerReadBehind",
    "timerOffsetBehind",
    "timerCongestNum",
    "timerEnqueueTps",
    "timerDequeueTps",
}


async def info(rig: Rig) -> dict[str, str]:
    answer = await rig.ask(RequestCode.GET_BROKER_RUNTIME_INFO)
    assert answer.code == ResponseCode.SUCCESS
    return KVTable.decode(answer.body).table


async def test_no_figure_is_missing(rig: Rig) -> None:
    figures = await info(rig)
    assert WANTED - figures.keys() == set()
    assert all(figures.values())


async def test_figures_of_a_used_broker(rig: Rig) -> None:
    (message,) = rig.store_messages("T", 0, 1)
    rig.broker.stats.messages_stored(10, 2000)
    rig.broker.stats.pull_answered(4)
    figures = await info(rig)
    assert figures["earliestMessageTimeStamp"] == str(rig.clock.ms)
    assert figures["commitLogMaxOffset"] == str(message.size)
    assert figures["dispatchBehindBytes"] == "0"
    assert figures["remainHowManyDataToFlush"] == f"{message.size} B"
    assert (figures["putMessageTimesTotal"], figures["putMessageAverageSize"]) == ("10", "200.0")
    assert (figures["msgPutTotalTodayNow"], figures["msgGetTotalTodayNow"]) == ("10", "4")
    assert figures["brokerVersionDesc"] == "V4_9_4"
    assert figures["sendThreadPoolQueueCapacity"] == "10000"


async def test_times_of_sends_and_reads(rig: Rig) -> None:
    figures = await info(rig)
    assert (figures["putMessageEntireTimeMax"], figures["getMessageEntireTimeMax"]) == ("0", "0")
    assert (figures["putMessageDistributeTime"], figures["putLatency99"]) == ("null", "0.00")
    rig.broker.stats.put_times.note(100, 0.030)
    rig.broker.stats.read_took(0.007)
    rig.broker.stats.read_took(0.004)
    for _ in range(60):
        rig.broker.stats.sample()
    figures = await info(rig)
    assert (figures["putMessageEntireTimeMax"], figures["getMessageEntireTimeMax"]) == ("30", "7")
    assert "[10~50ms]:100 " in figures["putMessageDistributeTime"]
    assert (figures["putLatency99"], figures["putLatency999"]) == ("29.98", "29.98")


@pytest.mark.parametrize("role", [BrokerRole.ASYNC_MASTER, BrokerRole.SYNC_MASTER])
async def test_the_time_of_each_send_counts(make_rig: Make, role: BrokerRole) -> None:
    """Also of those whose promise could not be kept: a SYNC_MASTER has no slave here."""
    rig = make_rig(store={"broker_role": role})
    for _ in range(3):
        send(rig)
        await rig.tool.answers.receive()
    rig.broker.stats.put_times.turn()
    counts = [int(part.partition(":")[2]) for part in rig.broker.stats.put_times.distribution().split()]
    assert (sum(counts), rig.tool.waiting) == (3, 0)


async def test_figures_that_readers_take_apart(rig: Rig) -> None:
    figures = await info(rig)
    for rate in ("putTps", "getFoundTps", "getMissTps", "getTotalTps", "getTransferedTps", "getTransferredTps"):
        assert len([float(part) for part in figures[rate].split(" ")]) == 3
    words = figures["commitLogDirCapacity"].split(" ")
    assert (words[0], words[1], words[4], words[5]) == ("Total", ":", "Free", ":")
    assert float(words[2]) >= float(words[6]) or words[3] != words[7].rstrip(".")
    assert 0 <= float(figures["commitLogDiskRatio"]) <= 1


async def test_an_empty_broker_divides_by_nothing(rig: Rig) -> None:
    figures = await info(rig)
    assert (figures["putMessageTimesTotal"], figures["putMessageAverageSize"]) == ("1", "0.0")
    assert figures["earliestMessageTimeStamp"] == "-1"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (-5, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (107_270_373_376, "99.9 GiB"),
        (2**50, "1.0 PiB"),
        (2**62, "4.0 EiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_durations() -> None:
    assert duration_text(0) == "[ 0 days, 0 hours, 0 minutes, 0 seconds ]"
    assert duration_text(((26 * 60 + 3) * 60 + 4) * 1000 + 999) == "[ 1 days, 2 hours, 3 minutes, 4 seconds ]"
    assert duration_text(-1) == "[ 0 days, 0 hours, 0 minutes, 0 seconds ]"


# ---- configuration


async def config(rig: Rig) -> dict[str, str]:
    answer = await rig.ask(RequestCode.GET_BROKER_CONFIG)
    assert json.loads(answer.fields["version"]).keys() == {"counter", "timestamp"}
    return dict(line.split("=", 1) for line in answer.body.decode().splitlines())


async def change(rig: Rig, text: str) -> Command:
    return await rig.ask(RequestCode.UPDATE_BROKER_CONFIG, body=text.encode())


async def test_the_configuration_has_keys_of_all_parts(rig: Rig) -> None:
    keys = await config(rig)
    assert keys["brokerName"] == "broker-a"
    assert keys["flushDiskType"] == "ASYNC_FLUSH"
    assert keys["sendThreadPoolQueueCapacity"] == "10000"


async def test_a_change_counts_at_once(rig: Rig) -> None:
    answer = await change(rig, "slaveReadEnable=true\nmaxMessageSize=1000\n")
    assert answer.code == ResponseCode.SUCCESS
    assert rig.broker.options.slave_read_enable
    assert rig.broker.store_options.max_message_size == 1000
    keys = await config(rig)
    assert (keys["slaveReadEnable"], keys["maxMessageSize"]) == ("true", "1000")


async def test_what_an_answer_may_hold_changes_for_the_next_pull(rig: Rig) -> None:
    rig.store_messages("T", 0, 5)
    assert rig.broker.store.get("T", 0, 0, 32).count == 5
    await change(rig, "maxTransferCountOnMessageInMemory=2")
    assert rig.broker.store.get("T", 0, 0, 32).count == 2
    assert not rig.broker.store.get("T", 0, 0, 32).cold
    await change(rig, "accessMessageInMemoryMaxRatio=0\nmaxTransferCountOnMessageInDisk=3")
    assert rig.broker.store.get("T", 0, 0, 32).count == 3
    assert rig.broker.store.get("T", 0, 0, 32).cold


@pytest.mark.parametrize(
    "text",
    [
        "maxMessageSize=2000\nflushDiskType=SYNC_FLUSH",
        "maxMessageSize=2000\nbrokerRole=SLAVE",
        "maxMessageSize=2000\nslaveReadEnable=perhaps",
        "slaveReadEnable=true\nmaxMessageSize=-1",
        "slaveReadEnable=true\nstorePathRootDir=/tmp/elsewhere",
        "slaveReadEnable=true\nlistenPort=1",
        "slaveReadEnable=true\nbrokerName=other",
        "maxMessageSize=2000\nnamesrvAddr=10.6.6.6:9876",
        "maxMessageSize=2000\nrocketmqHome=/tmp/x",
        "maxMessageSize=\\u12",
    ],
)
async def test_a_change_happens_wholly_or_not_at_all(rig: Rig, text: str) -> None:
    before = await config(rig)
    answer = await change(rig, text)
    assert answer.code in (ResponseCode.SYSTEM_ERROR, ResponseCode.NO_PERMISSION)
    assert answer.remark
    assert await config(rig) == before


async def test_text_that_is_none_is_refused(rig: Rig) -> None:
    answer = await rig.ask(RequestCode.UPDATE_BROKER_CONFIG, body=b"\xff\xfe=\x00")
    assert (answer.code, answer.remark) == (ResponseCode.SYSTEM_ERROR, "string2Properties error")


async def test_unknown_and_idle_keys_are_ignored_and_logged(rig: Rig) -> None:
    with capture_logs() as logs:
        assert (await change(rig, "slaveReadEnabel=true\nsendThreadPoolQueueCapacity=5")).code == 0
    told = {entry["event"]: entry["keys"] for entry in logs if "keys" in entry}
    assert told == {
        "unknown_config_keys": ["slaveReadEnabel"],
        "config_keys_without_effect": ["sendThreadPoolQueueCapacity"],
    }


async def test_a_change_lasts_in_the_file_that_was_given(rig: Rig, tmp_path: Path) -> None:
    file = tmp_path / "broker.conf"
    file.write_text("# mine\nbrokerName=broker-a\n")
    rig.broker.options.source = str(file)
    await change(rig, "slaveReadEnable=true")
    assert file.read_text() == "# mine\nbrokerName=broker-a\nslaveReadEnable=true\n"


async def test_a_change_that_cannot_last_does_not_happen(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, changes: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(runtime, "save_properties", fail)
    rig.broker.options.source = "/etc/broker.conf"
    answer = await change(rig, "slaveReadEnable=true\nmaxMessageSize=1000")
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert "Read-only file system" in (answer.remark or "")
    assert not rig.broker.options.slave_read_enable
    assert rig.broker.store_options.max_message_size == 4 << 20


async def test_a_new_permission_makes_name_servers_take_the_topics_anew(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    monkeypatch.setattr(rig.broker.registration, "topic_changed", lambda: told.append(True))
    version = rig.broker.topics.data_version
    await change(rig, "slaveReadEnable=true")
    assert (rig.broker.topics.data_version, told) == (version, [])
    await change(rig, "brokerPermission=4")
    assert rig.broker.topics.data_version.counter == version.counter + 1
    assert told == [True]


# ---- statistics


async def test_statistics_of_a_topic(rig: Rig) -> None:
    rig.broker.metrics.messages_stored(rig.store_messages("T", 0, 3))
    rig.broker.traffic.sample()
    answer = await rig.ask(
        RequestCode.VIEW_BROKER_STATS_DATA, ViewBrokerStatsData(stats_name="TOPIC_PUT_NUMS", stats_key="T")
    )
    assert answer.code == ResponseCode.SUCCESS
    data = BrokerStatsData.decode(answer.body)
    assert (data.stats_minute.sum, data.stats_hour.sum) == (3, 0)
    answer = await rig.ask(
        RequestCode.VIEW_BROKER_STATS_DATA, ViewBrokerStatsData(stats_name="GROUP_GET_NUMS", stats_key="T@g")
    )
    assert (answer.code, answer.remark) == (ResponseCode.SYSTEM_ERROR, "The stats <GROUP_GET_NUMS> <T@g> not exist")


# ---- housekeeping


async def test_queues_whose_messages_are_deleted_go_on_request(make_rig: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "QUEUES_IN_SLICE", 2)
    rig = make_rig(store={"mapped_file_size_commit_log": 4096, "delete_when": "", "file_reserved_time": 1})
    for number in range(5):
        rig.store_messages(f"old{number}", 0, 1)
    while rig.broker.store.end_offset < 4096:
        rig.store_messages("T", 0, 1)
    oldest = min((Path(rig.broker.store_options.store_path_root_dir) / "commitlog").iterdir())
    os.utime(oldest, (rig.clock.ms / 1000 - 7200, rig.clock.ms / 1000 - 7200))
    upkeep(rig)
    assert (await rig.ask(RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE)).code == ResponseCode.SUCCESS
    assert len(list(rig.broker.store.queues())) == 6, "nothing has been deleted yet: deleteWhen names no hour"

    assert (await rig.ask(RequestCode.DELETE_EXPIRED_COMMITLOG)).code == ResponseCode.SUCCESS
    upkeep(rig)
    assert rig.broker.store.start_offset == 4096
    assert (await rig.ask(RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE)).code == ResponseCode.SUCCESS
    assert list(rig.broker.store.queues()) == [("T", 0)]


def upkeep(rig: Rig) -> None:
    """The next round of cleaning, with what it deletes."""
    rig.clock.advance(10_001)
    job = rig.broker.store.maintain_begin()
    while job is not None:
        job.run()
        job = rig.broker.store.maintain_begin() if rig.broker.store.maintain_done(job) else None
