"""Delivering delayed messages when their time has come; runs on masters only.

One task for all levels. A round looks at each queue whose first message is due or not known yet, and moves what is due
to where it belongs: up to 32 messages with one append, then others may run. Then it sleeps until the next message is
due, and no longer than `MAX_SLEEP_SECONDS`, as the wall clock may be moved meanwhile.

What a queue entry says of the time of delivery holds even if messageDelayLevel has changed since, with two exceptions,
both official's: a time further ahead than the level's whole delay (the clock was set back) counts as due; and official
4.9.4 writes the hash of the tags in its place when it recovers from a crash, which is then replaced by what the record
says (official delivers at once).

A copy that cannot be stored (a full disk) is tried again each second; the offset moves only behind what is stored.
"""

from functools import partial
from typing import NamedTuple, NoReturn

import structlog
import trio

from gateway.broker import names
from gateway.broker.delay import MAX_LEVELS
from gateway.broker.ownmessages import copy_message, put, real_place
from gateway.broker.state import Broker
from protocol.message import NewMessage, StoredMessage, decode_record
from store.engine import ColdRead
from store.errors import MessageIllegal, StoreError
from store.queuefiles import BLANK_SIZE

log = structlog.get_logger(__name__)

BATCH = 32
MAX_SLEEP_SECONDS = 5.0
RETRY_MS = 1000
_HIGHEST_HASH = (1 << 31) - 1  # as a time of delivery: January 1970


class Due(NamedTuple):
    """What a queue has to deliver now."""

    records: list[StoredMessage]
    next_offset: int
    head_ms: int | None  # when the message behind them is due; None if there is none


class Delivery:
    """The delivery of one broker's delayed messages."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._table = broker.delays
        self._failing = False

    async def run(self) -> NoReturn:
        """Delivers until cancelled."""
        self._table.correct(self._broker.store)
        while True:
            await self.round()
            with trio.move_on_after(self._pause_seconds()):
                await self._table.wait_scheduled()
                storage = self._broker.storage
                if not storage.consumers_see_appends:
                    await storage.flushed.wait_for(storage.appended.offset)

    async def save_forever(self) -> NoReturn:
        """Writes how far delivery is, once what it speaks of is as safe as the options promise."""
        storage = self._broker.storage
        while True:
            await trio.sleep(self._broker.store_options.flush_delay_offset_interval / 1000)
            job = self._table.snapshot()
            if job is None:
                continue
            spoken_of = storage.appended.offset
            await storage.confirm(spoken_of)
            if await storage.flushed.wait_for(spoken_of):
                self._table.saved(job, await storage.write_file(job.run))

    async def round(self) -> None:
        """Delivers all that is due now."""
        for queue_id in range(MAX_LEVELS):
            while self._is_due(queue_id):
                await self._deliver(queue_id)
                await trio.lowlevel.checkpoint()

    def _is_due(self, queue_id: int) -> bool:
        head = self._table.heads.get(queue_id)
        if head is None:
            return self._broker.store.max_offset(names.SCHEDULE_TOPIC, queue_id) > self._table.offset(queue_id)
        now = self._broker.now_ms()
        return not now < head <= self._latest(queue_id, now)

    def _latest(self, queue_id: int, now: int) -> int:
        """A time of delivery behind this one cannot be right."""
        levels = self._table.levels
        return now + (levels.delay_ms(queue_id + 1) if queue_id < levels.highest else 1 << 62)

    def _pause_seconds(self) -> float:
        now = self._broker.now_ms()
        pauses = [(head - now) / 1000 for head in self._table.heads.values()]
        return max(0.0, min([*pauses, MAX_SLEEP_SECONDS]))

    async def _deliver(self, queue_id: int) -> None:
        """Delivers some of what is due in a queue."""
        table = self._table
        read = partial(self._read, queue_id, table.offset(queue_id), self._broker.now_ms())
        try:
            try:
                due = read(allow_cold=False)
            except ColdRead:
                due = await self._broker.storage.read_cold(partial(read, allow_cold=True))
            self._put([message for record in due.records if (message := restored(record)) is not None])
        except StoreError as error:
            table.heads[queue_id] = self._broker.now_ms() + RETRY_MS
            if not self._failing:
                log.error("delayed_messages_wait", level=queue_id + 1, reason=str(error))
            self._failing = True
            return
        if self._failing and due.records:
            log.info("delayed_messages_delivered_again", level=queue_id + 1)
            self._failing = False
        if due.next_offset > table.offset(queue_id):
            table.delivered(queue_id, due.next_offset)
        if due.head_ms is None:
            table.heads.pop(queue_id, None)
        else:
            table.heads[queue_id] = due.head_ms

    def _put(self, messages: list[NewMessage]) -> None:
        """Stores the copies; one that can never be stored is left out and logged."""
        if not messages:
            return
        try:
            put(self._broker, messages)
        except MessageIllegal as error:
            if len(messages) == 1:
                log.error("delayed_message_lost", topic=messages[0].topic, reason=str(error))
                return
            for message in messages:
                self._put([message])

    def _read(self, queue_id: int, offset: int, now: int, *, allow_cold: bool) -> Due:
        """What stands at the offset and is due. Any thread with `allow_cold`; ColdRead without."""
        store = self._broker.store
        offset = max(offset, store.min_offset(names.SCHEDULE_TOPIC, queue_id))
        units = store.queue_units(names.SCHEDULE_TOPIC, queue_id, offset, BATCH, allow_cold=allow_cold)
        count, head = 0, None
        for physical_offset, size, code in units:
            if physical_offset or size != BLANK_SIZE:
                head = self._due_ms(queue_id, offset + count, code)
                if now < head <= self._latest(queue_id, now):
                    break
                head = None
            count += 1
        if count == 0:
            return Due([], offset, head if units else now + RETRY_MS)
        found = store.get(names.SCHEDULE_TOPIC, queue_id, offset, count, allow_cold=allow_cold)
        # It looks further when a message cannot be read, and gives fewer when they are large.
        end = max(offset + 1, min(found.next_offset, offset + count))
        records = [decode_record(data, check_crc=False) for data in found.data]
        records = [record for record in records if record.queue_offset < end]
        return Due(records, end, head if end == offset + count else now)

    def _due_ms(self, queue_id: int, offset: int, code: int) -> int:
        if code > _HIGHEST_HASH:
            return code
        stored = self._broker.store.store_time_at(names.SCHEDULE_TOPIC, queue_id, offset)
        return code if stored < 0 else stored + self._table.levels.delay_ms(queue_id + 1)


def restored(record: StoredMessage) -> NewMessage | None:
    """What consumers get of a delayed message; None if it names no place where it could go."""
    properties = record.properties
    place = real_place(properties)
    if place is None:
        log.error("delayed_message_lost", message_id=record.message_id, reason="it names no topic and queue to go to")
        return None
    return copy_message(record, *place, properties, text=record.properties_data)
