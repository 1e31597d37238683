"""Random lives of a store on a disk that fails, compared with a list.

A *life* opens the store, does random things and ends: closed, killed, or with the loss of power in the middle of any
change of the disk, also while it recovers. After each life everything that was promised must be there:

- what survives of all messages, in the order they were appended, is a prefix, less what retention removed in front;
- it holds everything that was acknowledged under the promise of its flush mode, and everything that a consumer saw;
- each queue gives exactly its messages, in order, and the index finds each of them.

On a disk that also tears inside its sectors, what survives of what nobody was promised may have holes: a torn sector
looks like one that was damaged after it had been written, and then the messages behind it are kept. Nor are keys
promised then: the index relies on whole sectors.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from protocol.message import NewMessage, decode_record, pack_host
from store.engine import GetStatus, MessageStore
from store.options import FlushDiskType, StoreOptions
from tests.fakes import Clock, PowerLossFiles, PowerLost

HOST = pack_host("127.0.0.1", 10911)
TOPICS = ("alpha", "beta")
FILE_SIZE = 6000
QUEUE_FILE_SIZE = 300


class Sent(NamedTuple):
    topic: str
    queue_id: int
    key: str
    body: bytes


def options(sync: bool) -> StoreOptions:
    return StoreOptions(
        store_path_root_dir="/store",
        mapped_file_size_commit_log=FILE_SIZE,
        mapped_file_size_consume_queue=QUEUE_FILE_SIZE,
        max_hash_slot_num=64,
        max_index_num=40,
        flush_disk_type=FlushDiskType.SYNC_FLUSH if sync else FlushDiskType.ASYNC_FLUSH,
    )


class Lives:
    """One random run. ``sent`` is the model."""

    def __init__(self, seed: int, *, sync: bool, tear_inside_sectors: bool = False) -> None:
        self.rng = random.Random(seed)
        self.sync = sync
        self.disk = PowerLossFiles()
        self.disk.tear_inside_sectors = self.holes_allowed = tear_inside_sectors
        self.clock = Clock()
        self.sent: list[Sent] = []
        self.promised = 0  # so many of them must survive what comes next
        self.removed = 0  # so many of them may have been removed as expired
        self.places: dict[str, int] = {}  # key -> where it is in the log
        self.count = 0
        self.crashes = 0

    def run(self, lives: int) -> None:
        for _ in range(lives):
            self.live()
            self.check()

    def live(self) -> None:
        """Open, work, end somehow. Afterwards ``self.disk`` is what the next process finds."""
        rng, disk = self.rng, self.disk
        disk.rng = rng
        returned = flushed = seen = len(self.sent)
        power = rng.random() < 0.7
        disk.only_killed = not power
        if power or rng.random() < 0.5:
            disk.crash_at = disk.steps + rng.randint(1, 120)
        try:
            store = MessageStore.open(options(self.sync), now_ms=self.clock, fs=disk)
            for _ in range(rng.randint(1, 40)):
                action = rng.choice(
                    (*["append", "flush", "maintain", "dispatch", "later"] * 3, "append", "append", "clean")
                )
                if action == "append":
                    batch = self._batch(store.end_offset)
                    messages = [_message(item) for item in batch]
                    store.append(messages, atomic=rng.random() < 0.2)
                    self.places.update({item.key: at.physical_offset for item, at in zip(batch, messages, strict=True)})
                    returned = len(self.sent)
                elif action == "flush":
                    covered = len(self.sent)
                    job = store.flush_begin()
                    job.run()
                    store.flush_done(job)
                    flushed = covered
                elif action == "maintain":
                    maintenance = store.maintain_begin()
                    begin = store.start_offset
                    self.removed = sum(self.places.get(item.key, begin) < begin for item in self.sent)
                    if maintenance is not None:
                        maintenance.run()
                        store.maintain_done(maintenance)
                elif action == "dispatch":
                    store.dispatch_step()
                    seen = self._seen(store)
                elif action == "clean":
                    store.request_cleaning()  # of all files, as they seem to be of 1970
                    self.clock.advance(10_001)
                else:
                    self.clock.advance(rng.randint(1, 20_000))
            if rng.random() < 0.4:
                store.close()
                flushed = returned
        except PowerLost:
            self.crashes += 1
        if power:
            self.promised = max(flushed, seen) if self.sync else flushed
            self.disk = disk.lose_power(rng)
        else:
            self.promised = returned
            self.disk = disk.kill()

    def _batch(self, end_offset: int) -> list[Sent]:
        batch = []
        for _ in range(self.rng.randint(1, 5)):
            self.count += 1
            filling = self.rng.choice((b"\0", b"x", self.rng.randbytes(8)))
            body = b"%d|" % self.count + filling * self.rng.choice((0, 3, 40, 600))
            batch.append(Sent(self.rng.choice(TOPICS), self.rng.randint(0, 2), f"key{self.count}", body[:1200]))
        self.sent += batch
        return batch

    def _seen(self, store: MessageStore) -> int:
        """How many of ``sent`` consumers can see."""
        last = max((number for _, number in read_all(store)), default=0)
        numbers = [_number(item.body) for item in self.sent]
        return numbers.index(last) + 1 if last else 0

    def check(self) -> None:
        """Open once more, without a crash, and compare; what survived is the new model."""
        disk = self.disk
        disk.crash_at = None
        store = MessageStore.open(options(self.sync), now_ms=self.clock, fs=disk)
        while store.dispatch_step():
            pass
        found = read_all(store)
        numbers = [number for _, number in sorted(found)]
        self.places.update({f"key{number}": place for place, number in found})
        expected = [_number(item.body) for item in self.sent]
        there = set(numbers)
        first = next((at for at, number in enumerate(expected) if number in there), min(self.removed, len(expected)))
        if self.holes_allowed:
            first = min(first, self.removed)
        assert first <= self.removed, f"{first} are gone in front, {self.removed} were removed"
        self.sent, expected = self.sent[first:], expected[first:]
        self.promised, self.removed = max(0, self.promised - first), self.removed - first
        if self.holes_allowed:
            assert numbers == [number for number in expected if number in there], "what survives was never sent so"
        else:
            assert numbers == expected[: len(numbers)], "what survives is not a prefix"
        lost = set(expected[: self.promised]) - there
        assert not lost, f"{self.promised} were promised, {len(numbers)} are there, {len(lost)} are lost"
        self.sent = [item for item in self.sent if _number(item.body) in there]
        for topic in TOPICS:
            for queue_id in range(3):
                wanted = [_number(item.body) for item in self.sent if item[:2] == (topic, queue_id)]
                assert [number for _, number in read_queue(store, topic, queue_id)] == wanted
        # Torn inside a sector, properties of a record may pass for good, and so may the header of an index file.
        for item in () if self.holes_allowed else self.sent:
            result = store.query_keys(item.topic, item.key, 64, 0, 1 << 60)
            assert item.body in [decode_record(data).body for data in result.records], item.key
        assert store.damaged_reads == 0 or self.holes_allowed
        if self.rng.random() < 0.5:
            store.close()
            self.disk = disk
        else:
            self.disk = disk.kill()


def _message(item: Sent) -> NewMessage:
    return NewMessage(
        topic=item.topic,
        queue_id=item.queue_id,
        flag=0,
        sys_flag=0,
        born_timestamp=1,
        born_host=HOST,
        store_host=HOST,
        body=item.body,
        properties=f"UNIQ_KEY\x01{item.key}\x02TAGS\x01T".encode(),
        tags_code=84,
        keys=(item.key,),
    )


def _number(body: bytes) -> int:
    return int(body.partition(b"|")[0])


def read_queue(store: MessageStore, topic: str, queue_id: int) -> list[tuple[int, int]]:
    """(physical offset, number) of each message that a consumer of the queue gets."""
    found: list[tuple[int, int]] = []
    offset = store.min_offset(topic, queue_id)
    while True:
        result = store.get(topic, queue_id, offset, 32, allow_cold=True)
        for data in result.data:
            record = decode_record(data)
            assert (record.topic, record.queue_id) == (topic, queue_id)
            found.append((record.physical_offset, _number(record.body)))
        if result.status not in (GetStatus.FOUND, GetStatus.NO_MATCHED_MESSAGE):
            return found
        offset = result.next_offset


def read_all(store: MessageStore) -> list[tuple[int, int]]:
    return [pair for topic in TOPICS for queue_id in range(3) for pair in read_queue(store, topic, queue_id)]
