"""Compare the key index with what the commitlog says, entry by entry, and each file with itself.

Owns a walk over the entries of all index files beside the walk over the log: both are in the order of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from store.commitlog import Entry as LogEntry
from store.findings import Findings
from store.index import KeyIndex
from store.indexfile import ENTRY, HEADER_SIZE, SLOT_SIZE, IndexFile, SlotTable
from store.keyhash import KeyHashes

_STEP = 4096
_SECOND = 1000

Entry = tuple[IndexFile, int, int, int, int]  # file, number, key hash, physical offset, store time in ms


def entries(files: list[IndexFile]) -> Iterator[Entry]:
    """All entries, oldest first."""
    for file in files:
        for first in range(1, file.count, _STEP):
            data = file.entries(first, min(_STEP, file.count - first))
            for number, (key_hash, physical_offset, seconds, _) in enumerate(ENTRY.iter_unpack(data), first):
                yield file, number, key_hash, physical_offset, file.begin_timestamp + seconds * 1000


class IndexChecker:
    """Takes the place of ``KeyIndex`` under a ``Dispatcher``: every entry is a demand."""

    def __init__(
        self,
        index: KeyIndex,
        log_begin: int,
        aborted: bool,
        findings: Findings,
        progress: Callable[[str, int, int], None],
    ) -> None:
        """Checks each file with itself at once. Entries below ``log_begin`` belong to deleted records.

        ``aborted``: a killed broker may leave the newest file in the middle of a flush, and mends it when it starts.
        """
        self._aborted = aborted
        self._findings = findings
        self._log_begin = log_begin
        self._files = index.files
        self._hashes = KeyHashes()
        self.bad = False  # the index has to be made again
        self.keys = 0
        self._missing: dict[str, int] = {}
        self._first_missing: dict[str, int] = {}
        for done, file in enumerate(self._files):
            progress("checking index files", done, len(self._files))
            self._look_at(file)
        self._entries = entries(self._files)
        self._next = next(self._entries, None)
        self._begin = self._next[3] if self._next is not None else 0

    def _damage(self, file: IndexFile, number: int, text: str) -> None:
        self._say(file, f"entry {number}: {text}", file.entry_position(number))

    def _say(self, file: IndexFile, text: str, position: int | None = None) -> None:
        if self._aborted and file is self._files[-1]:
            self._findings.note(file.path, f"{text}; the next start mends it", position)
        else:
            self.bad = True
            self._findings.damage(file.path, text, position)

    # A file with itself

    def _look_at(self, file: IndexFile) -> None:
        """Chains, slots and header must be what the entries give. Nothing is written: the file object is ours."""
        header = (file.used_slots, file.count, file.begin_offset, file.end_offset)
        wrong = file.rebuild()
        if wrong is not None:
            self._damage(file, *wrong)
            file.table = None
            return
        if file.broken_chains:
            self._say(file, f"{file.broken_chains} entries leave out older ones of their chain")
        used_slots, count, begin_offset, end_offset = header
        if file.used_slots != used_slots:
            self._findings.note(file.path, f"header counts {used_slots} used slots, there are {file.used_slots}", 32)
        if count > 1:
            ends = (file.entry(1)[1], file.entry(count - 1)[1])
            if ends != (begin_offset, end_offset):
                text = f"header says log offsets {begin_offset} to {end_offset}, entries {ends[0]} to {ends[1]}"
                self._say(file, text, 16)
        table, file.table = file.table, None
        if table is not None:
            self._compare_slots(file, table)

    def _compare_slots(self, file: IndexFile, table: SlotTable) -> None:
        stored = file.open_table()
        file.table = None
        if stored.slots == table.slots:
            return
        for slot, (found, demanded) in enumerate(zip(stored.slots, table.slots, strict=True)):
            if found != demanded:
                text = f"slot {slot} leads to entry {found}, the newest of its chain is {demanded}"
                self._say(file, text, HEADER_SIZE + SLOT_SIZE * slot)

    # All files with the log

    def put_all(self, entries: Iterable[LogEntry], store_timestamp: int) -> None:
        """The log has these records with these keys."""
        for topic, _, _, physical_offset, _, _, keys in entries:
            if keys:
                self._put(topic, keys, physical_offset, store_timestamp)

    def _put(self, topic: str, keys: tuple[str, ...], physical_offset: int, store_timestamp: int) -> None:
        demanded = [self._hashes.slowly(topic, key) for key in keys]
        self.keys += len(demanded)
        self._skip_to(physical_offset)
        found: dict[int, tuple[IndexFile, int]] = {}
        while self._next is not None and self._next[3] == physical_offset:
            file, number, key_hash, _, time = self._next
            found[key_hash] = (file, number)
            if number > 1 and not -_SECOND < store_timestamp - time < 2 * _SECOND:
                self._damage(file, number, f"its time is {time}, the record's is {store_timestamp}")
            self._next = next(self._entries, None)
        lacking = len(set(demanded) - found.keys())
        if lacking:
            self._lack(physical_offset, lacking)
        for key_hash in found.keys() - set(demanded):
            self._damage(*found[key_hash], f"the record at log offset {physical_offset} has no such key")

    def _skip_to(self, physical_offset: int) -> None:
        """Entries in front of a record: of deleted records, or of none."""
        while self._next is not None and self._next[3] < physical_offset:
            file, number, _, offset, _ = self._next
            if offset >= self._log_begin:
                self._damage(file, number, f"it points to log offset {offset}, where no record with keys is")
            self._next = next(self._entries, None)

    def _lack(self, physical_offset: int, count: int) -> None:
        if physical_offset < self._begin:
            kind = "before"
        elif self._next is None:
            kind = "behind"
        else:
            kind = "between"
        self._first_missing.setdefault(kind, physical_offset)
        self._missing[kind] = self._missing.get(kind, 0) + count

    def finish(self, directory: str, log_end: int, aborted: bool) -> None:
        """The walk is over."""
        while self._next is not None:
            file, number, _, offset, _ = self._next
            if aborted and offset >= log_end:
                self._findings.note(file.path, f"entries from {number} on point behind the end of the log")
                break
            self._damage(file, number, f"it points to log offset {offset}, where no record with keys is")
            self._next = next(self._entries, None)
        for kind, count in self._missing.items():
            first = self._first_missing[kind]
            if kind == "behind" and aborted:
                self._findings.note(directory, f"{count} keys from log offset {first} on are not indexed yet")
                continue
            self.bad = True
            place = {
                "before": "before the first indexed record",
                "behind": "behind the last indexed record",
                "between": "between indexed records",
            }[kind]
            self._findings.damage(directory, f"{count} keys {place} are missing, the first at log offset {first}")
