"""What may be deleted, and when a disk counts as full. Decisions only: the engine deletes.

Owns the rules of deleteWhen, fileReservedTime and the disk ratios, and the disk-full state. A disk's use is a
percentage rounded up (``DiskUsage.percent``), of the commitlog's and of the consume queues' file system.

    use above      what happens
    75 (diskMaxUsedSpaceRatio)  expired files go at any hour
    85             with cleanFileForciblyEnable the oldest files go although they are not expired
    90             besides, messages are refused (disk full) until it is 90 again, or 85 if cleaning looks first

Never more than ten files a round, never the newest, oldest first, and not past the first one that stays: files are
deleted from the front only, or the log would have a hole.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from store.options import StoreOptions
from store.queue import ConsumeQueue

FORCED_PERCENT: Final = 85
FULL_PERCENT: Final = 90
MAX_FILES_A_ROUND: Final = 10
MANUAL_ROUNDS: Final = 20  # what an operator's "delete expired files" lasts
_HOUR_MS: Final = 3_600_000

_SCHEDULE_TOPIC: Final = "SCHEDULE_TOPIC_XXXX"
_KEPT_TOPICS: Final = frozenset({_SCHEDULE_TOPIC, "RMQ_SYS_TRANS_HALF_TOPIC", "RMQ_SYS_TRANS_OP_HALF_TOPIC"})
_LIGHT_PREFIX: Final = "%LMQ%"


class Verdict(NamedTuple):
    """How many of the oldest commitlog files to delete now, and why."""

    files: int
    reason: str  # for the log line: "hour", "space", "forced", "manual"; "" when nothing is to be looked at


NOTHING: Final = Verdict(0, "")


def delete_hours(text: str) -> frozenset[int]:
    """Hours of ``deleteWhen``: numbers with ``;`` between them. What is no hour is left out."""
    parts = (part.strip() for part in text.split(";"))
    return frozenset(hour for hour in (int(part) for part in parts if part.isdecimal()) if hour < 24)


class Retention:
    """The decisions of one store; remembers only whether the disk is full and what an operator asked for."""

    __slots__ = ("_manual_rounds", "_options", "disk_full")

    def __init__(self, options: StoreOptions) -> None:
        self._options = options
        self._manual_rounds = 0
        self.disk_full = False

    def request_manual(self) -> None:
        """An operator asks to delete expired files at once (DELETE_EXPIRED_COMMITLOG)."""
        self._manual_rounds = MANUAL_ROUNDS

    def probe(self, commitlog_percent: int) -> bool:
        """The look between two cleanings, each 10 s; returns ``disk_full``."""
        self.disk_full = commitlog_percent > FULL_PERCENT
        return self.disk_full

    def decide(self, now_ms: int, modified_ms: Sequence[int], commitlog_percent: int, queues_percent: int) -> Verdict:
        """One round of cleaning. ``modified_ms``: modification times of the commitlog files, oldest file first.

        Also moves ``disk_full``: set above 90 %, cleared at 85 % and below.
        """
        percent = max(commitlog_percent, queues_percent)
        if percent > FULL_PERCENT:
            self.disk_full = True
        elif percent <= FORCED_PERCENT:
            self.disk_full = False
        reason = self._reason(now_ms, percent)
        if not reason:
            return NOTHING
        deletable = modified_ms[: max(0, len(modified_ms) - 1)][:MAX_FILES_A_ROUND]
        if reason == "forced":
            return Verdict(len(deletable), reason)
        oldest_kept = now_ms - self._options.file_reserved_time * _HOUR_MS
        count = 0
        for modified in deletable:
            if modified > oldest_kept:
                break
            count += 1
        return Verdict(count, reason)

    def _reason(self, now_ms: int, percent: int) -> str:
        manual = self._manual_rounds > 0
        if manual:
            self._manual_rounds -= 1
        if percent > FORCED_PERCENT and self._options.clean_file_forcibly_enable:
            return "forced"
        if percent > self._options.disk_max_used_space_ratio:
            return "space"
        if datetime.fromtimestamp(now_ms / 1000).hour in delete_hours(self._options.delete_when):
            return "hour"
        return "manual" if manual else ""


def expired_queues(queues: Iterable[ConsumeQueue], commitlog_min: int) -> list[ConsumeQueue]:
    """Queues whose last message is deleted, for the operator's CLEAN_EXPIRED_CONSUMEQUEUE.

    A queue that never had a message stays, and so do the delay levels: their offsets must not begin anew.
    """
    return [queue for queue in queues if queue.topic != _SCHEDULE_TOPIC and 0 < queue.max_physical_end <= commitlog_min]


def unused_queues(queues: Iterable[ConsumeQueue], topics: Container[str]) -> list[ConsumeQueue]:
    """Queues of topics that are not configured any more (DELETE_TOPIC_IN_BROKER, CLEAN_UNUSED_TOPIC).

    Delay, transaction and light queues stay, whatever the topic table says: nobody configures them.
    """
    return [
        queue
        for queue in queues
        if queue.topic not in topics and queue.topic not in _KEPT_TOPICS and not queue.topic.startswith(_LIGHT_PREFIX)
    ]
