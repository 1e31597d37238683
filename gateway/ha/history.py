"""Whether a slave's log and its master's are one log, and where the slave goes on. Pure: facts in, verdict out.

The HA wire carries offsets only, so two logs that differ would be joined without a word (spec/ha.md 5, points 1, 2, 10,
11). Three things are looked at before a slave's offset is believed: names and file size, the two ranges of offsets, and
the bytes that stand before the slave's end.

The bytes compared are the last `WINDOW_BYTES` that both have, or more, so that the head of at least one message is
among them: it carries its offset and its store time, so equal bytes at one offset were written once, by one master.
What lies further back is taken to be equal, because logs part at the end of one of them and do not meet again.
"""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple
from zlib import crc32

from protocol.codes import ResponseCode
from protocol.message import HEAD, MAGIC_V1, MAGIC_V2, MIN_RECORD_BYTES

WINDOW_BYTES = 1 << 20
MAX_CHECK_BYTES = 64 << 20  # that one question makes a master read
_MAGICS = tuple(HEAD.pack(0, magic)[4:] for magic in (MAGIC_V1, MAGIC_V2))
_MAGIC_POSITION = 4
_OFFSET_POSITION = 28

# What official brokers say to VIEW_MESSAGE_BY_ID where no message begins. They take the four bytes there for its
# length, answer with so many bytes if they have them (none for 0), and fail on a negative length.
_ABSENT = ("can not find message by the offset", "IllegalArgumentException")

ReadRaw = Callable[[int, int], bytes]
"""`read(offset, limit)`: bytes of the log from `offset`, at least one; may be fewer than `limit`."""


class Holdings(NamedTuple):
    """What a broker is and which part of its log it has."""

    cluster: str
    broker: str
    file_size: int
    start: int
    end: int


class Sameness(Enum):
    """What the comparison of one message shows."""

    SAME = "same"
    DIFFERENT = "different"
    UNKNOWN = "unknown"


class Parting(NamedTuple):
    """Between which offsets, both included, the first byte stands at which two logs differ."""

    earliest: int
    latest: int

    def __str__(self) -> str:
        if self.earliest == self.latest:
            return f"They are equal up to offset {self.latest}."
        return f"They part between offset {self.earliest} and {self.latest}."


# ---- verdicts: None, or one line that a person can act on


def why_not(master: Holdings, slave: Holdings) -> str | None:
    """Why these two cannot be joined, as far as names and offsets tell. An empty slave has start == end."""
    if (slave.cluster, slave.broker) != (master.cluster, master.broker):
        return (
            f"the slave belongs to {slave.cluster}/{slave.broker}, the master is {master.cluster}/{master.broker};"
            " check brokerClusterName, brokerName and haMasterAddress"
        )
    if slave.file_size != master.file_size:
        return f"the slave's mappedFileSizeCommitLog is {slave.file_size}, the master's {master.file_size}"
    if slave.start == slave.end:
        return None
    if slave.end > master.end:
        return ahead(slave.end, master.end)
    if slave.end < master.start:
        return behind(slave.end, master.start)
    return None


def ahead(slave_end: int, master_end: int) -> str:
    """The slave has more than the master: somebody wrote there, or the master lost its tail."""
    return (
        f"the slave's log ends at {slave_end}, the master's at {master_end}: the slave has {slave_end - master_end}"
        " bytes that the master lacks. If they matter, start the slave as the master (brokerId=0) instead; if not,"
        " stop the slave, move commitlog, consumequeue and index of its store away and start it again"
    )


def behind(slave_end: int, master_start: int) -> str:
    """The slave was away for so long that the master has deleted what it needs next."""
    return (
        f"the slave's log ends at {slave_end}, the master's oldest byte is {master_start}: {master_start - slave_end}"
        " bytes are gone. Stop the slave, move commitlog, consumequeue and index of its store away and start it again"
        " (haSyncWholeLog=true copies all that the master still has)"
    )


def differs(slave_end: int, parting: Parting | None = None) -> str:
    """Both have these offsets, with other bytes."""
    where = "" if parting is None else f"{parting} "
    return (
        f"the bytes before offset {slave_end} are not the master's: the two logs were written by different masters."
        f" {where}Keep the one whose messages matter; the other: stop it, move commitlog, consumequeue and index of"
        " its store away and start it again"
    )


def never_sent(report: int, run_start: int) -> str:
    """A slave of unknown history claims bytes that were written in this run and never sent to it."""
    return (
        f"the slave reports offset {report}, this master found its log ending at {run_start} when it started and has"
        " not sent the slave what lies between: the slave has other bytes there"
    )


# ---- where a slave goes on


def begin_for_empty(start: int, end: int, file_size: int, *, whole: bool) -> int:
    """Where an empty slave begins: the master's oldest byte, or (as official) its last file that has data."""
    if whole or end == start:
        return start
    return max(start, (end - 1) - (end - 1) % file_size)


def window(start: int, end: int, read: ReadRaw, step: int) -> int:
    """From where on [start, end) is compared: the last `step` bytes or more, with the head of at least one message.

    A body or filler can be longer, so the search goes back until one is found.
    """
    begin = end
    while begin > start:
        begin = max(start, begin - step)
        if last_message(read_range(begin, end, read), begin) is not None:
            break
        step *= 2
    return begin


def last_message(data: bytes, offset: int) -> int | None:
    """Offset of the last message that begins in `data`, which are the log's bytes from `offset` on.

    A message is known by its magic number and by its own offset, which it carries: nothing else looks like that.
    """
    end = len(data)
    while end > 0:
        at = max(data.rfind(magic, 0, end) for magic in _MAGICS)
        if at < 0:
            return None
        begin = at - _MAGIC_POSITION
        if begin >= 0 and begin + MIN_RECORD_BYTES <= len(data):
            own_offset = int.from_bytes(data[begin + _OFFSET_POSITION : begin + _OFFSET_POSITION + 8], "big")
            if own_offset == offset + begin:
                return own_offset
        end = at + _MAGIC_POSITION - 1
    return None


def last_message_before(low: int, end: int, read: ReadRaw) -> tuple[int | None, bytes]:
    """Where the last message in [low, end) begins, None if none does, and its bytes, cut off at `end`."""
    begin = window(low, end, read, WINDOW_BYTES)
    data = read_range(begin, end, read)
    at = last_message(data, begin)
    return at, b"" if at is None else data[at - begin :]


def last_whole_message_before(low: int, end: int, read: ReadRaw) -> tuple[int | None, bytes]:
    """The same for the last message that also ends in [low, end): a log may be cut off inside one."""
    at, data = last_message_before(low, end, read)
    if at is not None and int.from_bytes(data[:4], "big") > len(data):
        return last_message_before(low, at, read)
    return at, data


def same_message(ours: bytes, code: int, remark: str | None, theirs: bytes) -> Sameness:
    """Compares our message with an official broker's answer to VIEW_MESSAGE_BY_ID for its place.

    Either may be cut off: where a link broke, or at the offset up to which is compared. But an answer too short for a
    message shows that none begins there.
    """
    if code == ResponseCode.SUCCESS:
        common = min(len(ours), len(theirs))
        is_message = len(theirs) >= MIN_RECORD_BYTES
        return Sameness.SAME if is_message and ours[:common] == theirs[:common] else Sameness.DIFFERENT
    if code == ResponseCode.SYSTEM_ERROR and any(words in (remark or "") for words in _ABSENT):
        return Sameness.DIFFERENT
    return Sameness.UNKNOWN


# ---- bytes


def read_range(begin: int, end: int, read: ReadRaw) -> bytes:
    """The log's bytes [begin, end)."""
    parts = []
    while begin < end:
        data = read(begin, end - begin)
        parts.append(data)
        begin += len(data)
    return b"".join(parts)


def checksum(begin: int, end: int, read: ReadRaw) -> int:
    """CRC-32 of the log's bytes [begin, end)."""
    crc = 0
    while begin < end:
        data = read(begin, min(end - begin, WINDOW_BYTES))
        crc = crc32(data, crc)
        begin += len(data)
    return crc
