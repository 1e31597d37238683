"""DelayTable: which messages have to wait, how they are put aside, and how far their delivery is.

A message with a level above 0 goes to the queue `level - 1` of SCHEDULE_TOPIC_XXXX instead of its own topic, which it
keeps as a property. A queue's messages all wait equally long, so they are due in their order, and how far a level is
delivered is one number (`config/delayOffset.json`, the official format: the next queue offset by level). It is written
each 10 s, and never ahead of the messages it speaks of: those are flushed and replicated first, as far as the options
promise it; slaves are told what the file says. So no failure loses a delayed message, and those that were delivered in
the seconds before it may come twice.

`gateway.broker.delivery` does the delivering. It sleeps until the first known message is due; `schedule` wakes it when
a queue gets a message that it does not know of.
"""

import re
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Protocol

import trio

from gateway.broker import names
from gateway.broker.configfile import ConfigFile, SaveJob
from gateway.routing import Refused
from protocol.bodies import DelayOffsetBody
from protocol.codes import ResponseCode
from store.dispatch import DelayLevels
from store.jsonfile import load_json

MAX_LEVELS = 32
"""As many as the key messageDelayLevel can name; a queue keeps its messages when the key is shortened."""
_is_number = re.compile(r"[+-]?[0-9]{1,10}").fullmatch
_INT32 = range(-(1 << 31), 1 << 31)


class Ends(Protocol):
    """What the table needs of the store to correct what its file says."""

    def min_offset(self, topic: str, queue_id: int) -> int: ...

    def max_offset(self, topic: str, queue_id: int) -> int: ...


class DelayTable:
    """Delay levels and delivered offsets of one broker."""

    def __init__(self, levels: DelayLevels, path: Path, now_ms: Callable[[], int]) -> None:
        self.levels = levels
        self.heads: dict[int, int] = {}
        """When the first message of a queue is due, in ms, for the queues that delivery knows to hold one."""
        self._path = path
        self._offsets: dict[int, int] = {}  # by level
        self._bell = trio.Event()
        self.file = ConfigFile(path, self.encode, now_ms)
        body = load_json(path, DelayOffsetBody.decode)
        if body is not None:
            self._offsets.update(body.offset_table)

    # ---- putting aside

    def level(self, properties: MutableMapping[str, str]) -> int:
        """The level that the property DELAY names, the highest at most; 0 or less: no delay. Refuses other texts."""
        text = properties.get("DELAY", "0")
        level = int(text) if _is_number(text) else None
        if level is None or level not in _INT32:
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, f"the property DELAY is not a number: {text[:32]}")
        return min(level, self.levels.highest)

    def schedule(self, properties: MutableMapping[str, str], topic: str, queue_id: int, level: int) -> tuple[str, int]:
        """Notes in the properties where the message belongs; returns where it waits until then. `level` is above 0."""
        properties["DELAY"] = str(level)
        properties["REAL_TOPIC"] = topic
        properties["REAL_QID"] = str(queue_id)
        if level - 1 not in self.heads:
            self._bell.set()
        return names.SCHEDULE_TOPIC, level - 1

    async def wait_scheduled(self) -> None:
        """Returns after a message was put aside in a queue that is not among the known heads."""
        await self._bell.wait()
        self._bell = trio.Event()

    # ---- how far delivery is

    def offset(self, queue_id: int) -> int:
        """The queue offset of the first message that is not delivered."""
        return self._offsets.get(queue_id + 1, 0)

    def delivered(self, queue_id: int, next_offset: int) -> None:
        """Everything in front of `next_offset` is delivered."""
        self._offsets[queue_id + 1] = next_offset
        self.file.dirty = True

    def correct(self, ends: Ends) -> None:
        """Moves offsets that lie outside their queues to the nearest end: log and file may be of different age."""
        for queue_id in range(MAX_LEVELS):
            offset = self.offset(queue_id)
            low = ends.min_offset(names.SCHEDULE_TOPIC, queue_id)
            high = ends.max_offset(names.SCHEDULE_TOPIC, queue_id)
            inside = max(low, min(offset, high))
            if inside != offset:
                self.delivered(queue_id, inside)

    def snapshot(self) -> SaveJob | None:
        """What is to be written, None if nothing has changed; follow it with `saved`."""
        return SaveJob(self._path, self.encode()) if self.file.dirty else None

    def saved(self, job: SaveJob, error: OSError | None) -> None:
        """Notes how a write went. What changed while it was under way is the next write's."""
        self.file.save_ended(error)
        if error is None:
            self.file.dirty = job.data != self.encode()

    def encode(self) -> bytes:
        """The text of delayOffset.json."""
        return DelayOffsetBody(offset_table=self._offsets).encode(pretty=True)
