"""Half messages: which of them are decided, and what is to be done with one that is not.

A half message stands in RMQ_SYS_TRANS_HALF_TOPIC until its producer commits or rolls back; an op message then notes
the half message's queue offset in RMQ_SYS_TRANS_OP_HALF_TOPIC. One number per queue, kept as the offsets of the group
CID_RMQ_SYS_TRANS, says how far both are done with: every half message in front of it is decided, given up, or repeated
further back in the queue. So the state of all transactions is: both numbers, and the op messages behind the second.

`HalfMessages` holds that state in memory, read once at the start and kept up by each decision. Official brokers read
the op queue again in each round instead. Beyond what they know, it remembers the last decisions and which half message
repeats which, so that a decision that comes twice, or about the first one and about its repetition, is one: the message
is not committed twice, and not asked about again. That memory is bounded, and empty after a restart; what comes then
counts for itself, as official.
"""

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import TypeVar

from protocol.message import StoredMessage

OP_TAG = "d"
CHECK_TIMES = "TRANSACTION_CHECK_TIMES"
IMMUNITY = "CHECK_IMMUNITY_TIME_IN_SECONDS"
PREPARED_OFFSET = "TRAN_PREPARED_QUEUE_OFFSET"
MAX_REMEMBERED = 50_000
CROWD = 100_000
"""Decisions behind one that is missing; when there are more, the next round of checks comes early."""
_GIVEN_UP = -1

V = TypeVar("V")


class HalfMessages:
    """The half messages of one broker by queue offset."""

    def __init__(self, progress: int = 0, op_progress: int = 0) -> None:
        self.progress = progress
        self.op_progress = op_progress
        self._decided: set[int] = set()  # those that are not behind `progress`
        self._ops: dict[int, tuple[int, ...]] = {}  # op queue offset → the half messages it is about
        self._recent: dict[int, None] = {}  # the last that were decided, wherever `progress` is
        self._repeated: dict[int, int] = {}  # the offset of a half message → that of its repetition, or _GIVEN_UP

    def __len__(self) -> int:
        """How many decisions are kept."""
        return len(self._decided)

    @property
    def is_crowded(self) -> bool:
        return len(self._decided) > CROWD

    def is_decided(self, offset: int) -> bool:
        """Whether the producer has decided about this half message or its repetition, as far as is known."""
        if offset in self._decided or offset in self._recent:
            return True
        latest = self.latest(offset)
        return latest != offset and latest != _GIVEN_UP and (latest in self._decided or latest < self.progress)

    def latest(self, offset: int) -> int:
        """The offset of the last repetition of the half message; its own if there is none, -1 if it was given up."""
        while offset in self._repeated:
            offset = self._repeated[offset]
        return offset

    # ---- what happens

    def decided(self, op_offset: int, offsets: Iterable[int]) -> None:
        """An op message says that these half messages are decided."""
        offsets = tuple(offsets)
        self._ops[op_offset] = offsets
        for offset in offsets:
            _remember(self._recent, offset, None)
            if offset >= self.progress:
                self._decided.add(offset)
        self._advance()

    def repeated(self, offset: int, repetition: int) -> None:
        """The half message was stored again."""
        _remember(self._repeated, offset, repetition)

    def given_up(self, offset: int) -> None:
        """The half message was put where nobody asks about it; its producer may still decide."""
        _remember(self._repeated, offset, _GIVEN_UP)

    def passed(self, offset: int) -> None:
        """Nothing in front of `offset` needs to be looked at again."""
        for passed in range(self.progress, offset):
            self._decided.discard(passed)
        self.progress = max(self.progress, offset)
        self._advance()

    def _advance(self) -> None:
        while self.progress in self._decided:
            self._decided.discard(self.progress)
            self.progress += 1
        while (offsets := self._ops.get(self.op_progress)) is not None and all(
            offset < self.progress for offset in offsets
        ):
            del self._ops[self.op_progress]
            self.op_progress += 1


def _remember(memory: dict[int, V], offset: int, value: V) -> None:
    """Notes it in a bounded memory, in which the oldest gives way."""
    if len(memory) >= MAX_REMEMBERED:
        del memory[next(iter(memory))]
    memory[offset] = value


def decided_offsets(op_message: StoredMessage) -> tuple[int, ...]:
    """The half messages that an op message is about: one, or a list as 5.x writes it; none if it is no decision."""
    if op_message.properties.get("TAGS") != OP_TAG:
        return ()
    texts = op_message.body.split(b",")
    return tuple(int(text) for text in texts if text.isdigit() and len(text) < 20)


class Verdict(Enum):
    """What a round of checks does with an undecided half message."""

    WAIT = auto()  # it is too young, and so are all behind it
    POSTPONE = auto()  # its producer wants more time for it than for others
    GIVE_UP = auto()
    ASK = auto()


def judge(
    record: StoredMessage, properties: Mapping[str, str], now: int, round_began: int, limits: "Limits"
) -> Verdict:
    """What to do about a half message; all times in ms, `now` and `round_began` by the broker's clock."""
    age = now - record.born_timestamp
    if check_times(properties) >= limits.check_max or age > limits.reserved_ms:
        return Verdict.GIVE_UP
    if record.store_timestamp >= round_began:
        return Verdict.WAIT
    if IMMUNITY in properties:
        if age < _immunity_ms(properties[IMMUNITY], limits.time_out_ms):
            return Verdict.POSTPONE
    elif 0 <= age < limits.time_out_ms:
        return Verdict.WAIT
    return Verdict.ASK


class Limits:
    """transactionTimeOut, transactionCheckMax and fileReservedTime."""

    __slots__ = ("check_max", "reserved_ms", "time_out_ms")

    def __init__(self, time_out_ms: int, check_max: int, reserved_ms: int) -> None:
        self.time_out_ms = time_out_ms
        self.check_max = check_max
        self.reserved_ms = reserved_ms


def check_times(properties: Mapping[str, str]) -> int:
    """How often the producer was asked."""
    return _number(properties.get(CHECK_TIMES, "0"), 0)


def _immunity_ms(text: str, otherwise: int) -> int:
    seconds = _number(text, -1)
    return otherwise if seconds < 0 else seconds * 1000


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(1 << 31)) else otherwise
