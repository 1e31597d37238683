"""What GET_BROKER_RUNTIME_INFO answers: all keys of 4.9.4 and of 5.3.3, every value a text.

Tools fail on a missing key (rocketmq-exporter loses all of a broker's figures), so what this design has not got is
there with the value that official shows when idle: thread pools never queue, the page cache is never locked, timers are
never behind. Two spellings of one rate are given, as 4.x tools read one and 5.x tools the other.
"""

import math
import os
from pathlib import Path

from gateway.broker.handlers.admin import delivered_offsets
from gateway.broker.names import SCHEDULE_TOPIC
from gateway.broker.state import Broker
from gateway.config import broker_properties
from protocol.codes import VERSION
from store.options import BrokerRole

VERSION_TEXT = "V4_9_4"
UNMEASURED = {
    "dispatchMaxBuffer": "0",
    "pageCacheLockTimeMills": "0",
    "remainTransientStoreBufferNumbs": str(2**31 - 1),
    "timerReadBehind": "0",
    "timerOffsetBehind": "0",
    "timerCongestNum": "0",
    "timerEnqueueTps": "0.0",
    "timerDequeueTps": "0.0",
}
POOLS = ("send", "pull", "query", "litePull", "ack")
POOL_CAPACITY = "100000"  # official's default where we have no key for it


def runtime_info(broker: Broker, earliest_message_ms: int) -> dict[str, str]:
    """The figures by key; `earliest_message_ms` is the store time of the oldest message, -1 without one."""
    return (
        UNMEASURED
        | _identity(broker)
        | _traffic(broker)
        | _log_figures(broker, earliest_message_ms)
        | _delay_figures(broker)
        | _disk_figures(broker)
        | _pool_figures(broker)
    )


def _identity(broker: Broker) -> dict[str, str]:
    started_ms = broker.stats.started_ms
    return {
        "bootTimestamp": str(started_ms),
        "runtime": duration_text(broker.now_ms() - started_ms),
        "brokerVersion": str(VERSION),
        "brokerVersionDesc": VERSION_TEXT,
        "brokerActive": "false" if broker.store_options.broker_role is BrokerRole.SLAVE else "true",
        "startAcceptSendRequestTimeStamp": str(broker.options.start_accept_send_request_time_stamp),
    }


def _traffic(broker: Broker) -> dict[str, str]:
    stats = broker.stats
    stored = max(stats.stored, 1)  # readers divide by it
    return {
        "putMessageTimesTotal": str(stored),
        "putMessageFailedTimes": str(stats.failed),
        "putMessageSizeTotal": str(stats.stored_bytes),
        "putMessageAverageSize": str(stats.stored_bytes / stored),
        "putMessageEntireTimeMax": str(stats.put_times.longest_ms),
        "putMessageDistributeTime": stats.put_times.distribution(),
        "putLatency99": f"{stats.put_times.percentile(0.99):.2f}",
        "putLatency999": f"{stats.put_times.percentile(0.999):.2f}",
        "getMessageEntireTimeMax": str(stats.longest_read_ms),
        "putTps": stats.stored_rates(),
        "getFoundTps": stats.found_rates(),
        "getMissTps": stats.missed_rates(),
        "getTotalTps": stats.pull_rates(),
        "getTransferedTps": stats.delivered_rates(),
        "getTransferredTps": stats.delivered_rates(),
        "msgPutTotalYesterdayMorning": str(stats.stored_yesterday_morning),
        "msgPutTotalTodayMorning": str(stats.stored_this_morning),
        "msgPutTotalTodayNow": str(stats.stored),
        "msgGetTotalYesterdayMorning": str(stats.delivered_yesterday_morning),
        "msgGetTotalTodayMorning": str(stats.delivered_this_morning),
        "msgGetTotalTodayNow": str(stats.delivered),
    }


def _log_figures(broker: Broker, earliest_message_ms: int) -> dict[str, str]:
    store = broker.store
    return {
        "commitLogMinOffset": str(store.start_offset),
        "commitLogMaxOffset": str(store.end_offset),
        "dispatchBehindBytes": str(store.end_offset - store.dispatched_offset),
        "remainHowManyDataToFlush": size_text(store.end_offset - store.flushed_offset),
        "remainHowManyDataToCommit": size_text(0),
        "earliestMessageTimeStamp": str(earliest_message_ms),
    }


def _delay_figures(broker: Broker) -> dict[str, str]:
    return {
        f"scheduleMessageOffset_{level}": f"{offset},{broker.store.max_offset(SCHEDULE_TOPIC, level - 1)}"
        for level, offset in delivered_offsets(broker).offset_table.items()
    }


def _disk_figures(broker: Broker) -> dict[str, str]:
    root = Path(broker.store_options.store_path_root_dir)
    log_path = broker.store_options.store_path_commit_log or str(root / "commitlog")
    total, free, _ = _disk(root)
    log_ratio = str(_disk(Path(log_path))[2])
    return {
        "commitLogDiskRatio": log_ratio,
        f"commitLogDiskRatio_{log_path}": log_ratio,
        "consumeQueueDiskRatio": str(_disk(root)[2]),
        "commitLogDirCapacity": f"Total : {size_text(total)}, Free : {size_text(free)}.",
    }


def _disk(path: Path) -> tuple[int, int, float]:
    """Bytes of the file system, bytes that are free for us, and the used share of what could be ours; -1 unknown."""
    try:
        figures = os.statvfs(path)
    except OSError:
        return 0, 0, -1.0
    block = figures.f_frsize
    used, free = (figures.f_blocks - figures.f_bfree) * block, figures.f_bavail * block
    return figures.f_blocks * block, free, used / (used + free) if used + free else -1.0


def _pool_figures(broker: Broker) -> dict[str, str]:
    properties = broker_properties(broker.options, broker.store_options)
    figures = {
        "EndTransactionQueueSize": "0",
        "EndTransactionThreadPoolQueueCapacity": properties.get("endTransactionPoolQueueCapacity", POOL_CAPACITY),
    }
    for pool in POOLS:
        figures[f"{pool}ThreadPoolQueueSize"] = "0"
        figures[f"{pool}ThreadPoolQueueHeadWaitTimeMills"] = "0"
        key = f"{pool}ThreadPoolQueueCapacity"
        figures[key] = properties.get(key, POOL_CAPACITY)
    return figures


def duration_text(milliseconds: int) -> str:
    """`[ 1 days, 2 hours, 3 minutes, 4 seconds ]`, which tools show as it is."""
    seconds = max(milliseconds, 0) // 1000
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"[ {days} days, {hours} hours, {minutes} minutes, {seconds} seconds ]"


def size_text(size: int) -> str:
    """`512 B`, `1.5 KiB`, `99.9 GiB`: rocketmq-exporter splits it at the blank."""
    if size < 1024:
        return f"{max(size, 0)} B"
    exponent = min(int(math.log2(size)) // 10, 6)
    return f"{size / 1024**exponent:.1f} {'KMGTPE'[exponent - 1]}iB"
