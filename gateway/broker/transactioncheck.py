"""Asking producers about half messages that they have not decided; runs on masters only.

A round each transactionCheckInterval, in the order of the half queue, with the rules of official's
TransactionalMessageServiceImpl (spec/store.md 9): who is old enough is stored again with one more check counted and its
producer is asked, one-way; who was asked too often, or is older than the log keeps messages, goes to
TRANS_CHECK_MAX_TIME_TOPIC; who asked for more time is stored again uncounted; at the first one that is too young the
round ends. How far the round came is noted for the next start once the repetitions are as safe as the options promise.
"""

from functools import partial
from typing import NoReturn

import structlog
import trio

from gateway.broker import names
from gateway.broker.offsets import NOT_FOUND
from gateway.broker.ownmessages import copy_message, put, real_place
from gateway.broker.state import Broker
from gateway.broker.transactions import (
    CHECK_TIMES,
    PREPARED_OFFSET,
    Limits,
    Verdict,
    check_times,
    decided_offsets,
    judge,
)
from gateway.routing import Refused
from protocol.codes import RequestCode
from protocol.command import Command
from protocol.message import NewMessage, StoredMessage, decode_record, encode_record, message_id
from protocol.requests.transactions import CheckTransactionState
from store.engine import ColdRead, GetResult
from store.errors import MessageIllegal, StoreError

log = structlog.get_logger(__name__)

BATCH = 32
HOUR_MS = 3_600_000


class TransactionCheck:
    """The checks of one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._halves = broker.half_messages
        self._found: dict[int, StoredMessage] = {}  # half messages that were read and not looked at yet

    async def run(self) -> NoReturn:
        """Checks until cancelled."""
        await self.recall()
        while True:
            await self._pause()
            try:
                await self.round()
            except (StoreError, Refused) as error:
                log.error("transactions_not_checked", reason=str(error))

    async def _pause(self) -> None:
        """Until the next round; it comes early if one undecided half message holds up many that are decided."""
        options = self._broker.options
        left = options.transaction_check_interval
        while left > 0:
            step = min(left, max(1000, options.transaction_time_out))
            await trio.sleep(step / 1000)
            left = 0 if self._halves.is_crowded else left - step

    async def recall(self) -> None:
        """Reads what was decided before the start."""
        store, halves = self._broker.store, self._halves
        halves.progress = self._start(names.HALF_TOPIC)
        halves.op_progress = self._start(names.OP_HALF_TOPIC)
        offset, end = halves.op_progress, store.max_offset(names.OP_HALF_TOPIC, 0)
        while offset < end:
            result = await self._read(names.OP_HALF_TOPIC, offset)
            next_offset = min(end, max(offset + 1, result.next_offset))
            ops = {record.queue_offset: record for record in map(decode_record, result.data)}
            for op_offset in range(offset, next_offset):  # one that cannot be read must not hold up the others
                halves.decided(op_offset, decided_offsets(ops[op_offset]) if op_offset in ops else ())
            offset = next_offset
            await trio.lowlevel.checkpoint()

    def _start(self, topic: str) -> int:
        """Where the checks stand in a queue, held between the queue's ends."""
        low, high = self._broker.store.min_offset(topic, 0), self._broker.store.max_offset(topic, 0)
        known = self._broker.offsets.query(names.TRANSACTION_GROUP, topic, 0)
        return low if known == NOT_FOUND else max(low, min(known, high))

    async def note_forever(self) -> NoReturn:
        """Keeps how far the checks are, for the next write of the offset table."""
        while True:
            await trio.sleep(self._broker.options.flush_consumer_offset_interval / 1000)
            await self.note_progress()

    async def note_progress(self) -> None:
        """Notes how far the checks are now, once all that they stored is safe."""
        storage, halves = self._broker.storage, self._halves
        known = [(names.HALF_TOPIC, halves.progress), (names.OP_HALF_TOPIC, halves.op_progress)]
        spoken_of = storage.appended.offset
        await storage.confirm(spoken_of)
        if not await storage.flushed.wait_for(spoken_of):
            return
        for topic, offset in known:
            if self._broker.offsets.query(names.TRANSACTION_GROUP, topic, 0) != offset:
                self._broker.offsets.commit(names.TRANSACTION_GROUP, topic, 0, offset, ceiling=offset)

    # ---- one round

    async def round(self) -> None:
        """Looks at each half message that is not decided, until it meets one that is too young. Raises StoreError."""
        halves, options = self._halves, self._broker.options
        began = self._broker.now_ms()
        limits = Limits(
            options.transaction_time_out,
            options.transaction_check_max,
            self._broker.store_options.file_reserved_time * HOUR_MS,
        )
        self._found.clear()
        halves.passed(self._broker.store.min_offset(names.HALF_TOPIC, 0))
        while halves.progress < self._broker.store.max_offset(names.HALF_TOPIC, 0):
            offset = halves.progress
            record = await self._half(offset)
            await trio.lowlevel.checkpoint()
            if offset != halves.progress:
                continue  # it was decided meanwhile
            if record is not None and not self._treat(record, began, limits):
                return
            halves.passed(offset + 1)

    def _treat(self, record: StoredMessage, began: int, limits: Limits) -> bool:
        """Does what is due with an undecided half message; False if it and those behind it have to wait."""
        properties = record.properties
        verdict = judge(record, properties, self._broker.now_ms(), began, limits)
        place = real_place(properties)
        if verdict is Verdict.WAIT:
            return False
        if verdict is Verdict.GIVE_UP or place is None:
            self._give_up(record, properties)
            return True
        try:
            if verdict is Verdict.POSTPONE:
                self._postpone(record, properties)
            else:
                properties[CHECK_TIMES] = str(check_times(properties) + 1)
                self._ask(record, self._repeat(record, properties), properties, place)
        except MessageIllegal:  # it has no room for the mark of another check
            self._give_up(record, properties)
        return True

    def _postpone(self, record: StoredMessage, properties: dict[str, str]) -> None:
        """Looks at it again in the next round, unless its first copy was decided before a restart."""
        first = properties.setdefault(PREPARED_OFFSET, str(record.queue_offset))
        if not (first.isascii() and first.isdigit() and self._halves.is_decided(int(first[:19]))):
            self._repeat(record, properties)

    def _repeat(self, record: StoredMessage, properties: dict[str, str]) -> NewMessage:
        """Stores the half message again behind all others, so that the queue's progress need not wait for it."""
        repetition = copy_message(record, names.HALF_TOPIC, 0, properties)
        put(self._broker, [repetition])
        self._halves.repeated(record.queue_offset, repetition.queue_offset)
        return repetition

    def _give_up(self, record: StoredMessage, properties: dict[str, str]) -> None:
        self._broker.incoming.create_topic(names.TRANS_CHECK_MAX_TIME_TOPIC, 1)
        put(self._broker, [copy_message(record, names.TRANS_CHECK_MAX_TIME_TOPIC, 0)])
        self._halves.given_up(record.queue_offset)
        log.warning(
            "transaction_given_up",
            topic=properties.get("REAL_TOPIC"),
            producer_group=properties.get("PGROUP"),
            message_id=record.message_id,
            checks=check_times(properties),
        )

    def _ask(
        self, record: StoredMessage, repetition: NewMessage, properties: dict[str, str], place: tuple[str, int]
    ) -> None:
        """Asks one producer of the group; its answer is an END_TRANSACTION about the repetition."""
        group = properties.get("PGROUP", "")
        producer = self._broker.clients.pick_producer(group)
        if producer is None:
            log.debug("no_producer_to_ask", producer_group=group)
            return
        header = CheckTransactionState(
            tran_state_table_offset=repetition.queue_offset,
            commit_log_offset=repetition.physical_offset,
            msg_id=properties.get("UNIQ_KEY"),
            transaction_id=properties.get("UNIQ_KEY"),
            offset_msg_id=message_id(repetition.store_host, repetition.physical_offset),
        )
        question = copy_message(record, *place, properties)
        question.queue_offset = repetition.queue_offset
        question.physical_offset = repetition.physical_offset
        question.store_timestamp = record.store_timestamp
        producer.notify(Command(RequestCode.CHECK_TRANSACTION_STATE, header=header, body=encode_record(question)))

    # ---- reading

    async def _half(self, offset: int) -> StoredMessage | None:
        """The half message at the offset; None if it cannot be read."""
        if offset not in self._found:
            result = await self._read(names.HALF_TOPIC, offset)
            records = [decode_record(data, check_crc=False) for data in result.data]
            self._found = {record.queue_offset: record for record in records}
        return self._found.pop(offset, None)

    async def _read(self, topic: str, offset: int) -> GetResult:
        read = partial(self._broker.store.get, topic, 0, offset, BATCH)
        try:
            return read(allow_cold=False)
        except ColdRead:
            return await self._broker.storage.read_cold(partial(read, allow_cold=True))
