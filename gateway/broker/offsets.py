"""OffsetTable: how far each consumer group has come in each queue, and `config/consumerOffset.json`.

The file is official's: keys `topic@group`, queue ids as unquoted numbers. It is written every 5 s
(flushConsumerOffsetInterval) and at the end, so a killed broker repeats up to 5 s of progress, as official does;
consumers have to cope with repetition anyway.

An offset is a count of messages, never negative. The caller passes the end of the queue as `ceiling`, as an offset
beyond it would skip messages that are still to come. Each change gives the table a new DataVersion, which only slaves
are told: the file has none, as in 4.x.

Entries are bounded; who may have one (an existing topic, a valid group, a queue that exists) is checked by the
handlers. The broker's own are few and always have room: its services must not end because clients filled the table.
"""

from collections.abc import Callable, Set
from pathlib import Path

import msgspec
import structlog

from gateway.broker import names
from gateway.broker.configfile import ConfigFile
from gateway.routing import Refused
from protocol.bodies import ConsumerOffsetBody, DataVersion
from protocol.codes import ResponseCode
from store.jsonfile import load_json

MAX_ENTRIES = 1_000_000
MAX_KEYS = 200_000  # pairs of a topic and a group
OWN_KEYS = frozenset(f"{topic}@{names.TRANSACTION_GROUP}" for topic in (names.HALF_TOPIC, names.OP_HALF_TOPIC))
NOT_FOUND = -1

_quoted = msgspec.json.Encoder().encode

log = structlog.get_logger(__name__)


class OffsetTable:
    """Offsets by group, topic and queue; `file.dirty` says whether the disk knows them all."""

    def __init__(self, path: Path, now_ms: Callable[[], int]) -> None:
        self._offsets: dict[str, dict[int, int]] = {}
        self._pulled: dict[str, dict[int, int]] = {}
        self._count = 0
        self._now_ms = now_ms
        self._changes = 0
        self._changed_ms = now_ms()
        self.file = ConfigFile(path, self.encode, now_ms)
        body = load_json(path, ConsumerOffsetBody.decode)
        if body is not None:
            self.merge(body)
            self.file.dirty = False

    def __len__(self) -> int:
        """The number of queues in which some group has an offset."""
        return self._count

    # ---- one queue

    def commit(self, group: str, topic: str, queue_id: int, offset: int, *, ceiling: int) -> None:
        """Notes that the group goes on at `offset`, or at `ceiling` if that is less.

        Refuses negative offsets, and a new entry for which there is no room.
        """
        if offset < 0 or queue_id < 0:
            raise Refused(ResponseCode.SYSTEM_ERROR, f"offset {offset} of queue {queue_id}: negative")
        queues = self._offsets.get(f"{topic}@{group}")
        if queues is None or queue_id not in queues:
            queues = self._make_room(f"{topic}@{group}")
            self._count += 1
        queues[queue_id] = min(offset, ceiling)
        self._changed()

    def _make_room(self, key: str) -> dict[int, int]:
        if not self._has_room(key, 1):
            raise _full()
        return self._offsets.setdefault(key, {})

    def _has_room(self, key: str, growth: int) -> bool:
        """Whether the key may have so many entries more; the broker's own always may, and take no room."""
        if key in OWN_KEYS:
            return True
        own = [self._offsets[each] for each in OWN_KEYS if each in self._offsets]
        if self._count - sum(map(len, own)) + growth > MAX_ENTRIES:
            return False
        return len(self._offsets) - len(own) < MAX_KEYS or key in self._offsets

    def query(self, group: str, topic: str, queue_id: int) -> int:
        """Where the group goes on, or NOT_FOUND."""
        queues = self._offsets.get(f"{topic}@{group}")
        return NOT_FOUND if queues is None else queues.get(queue_id, NOT_FOUND)

    def pulled(self, group: str, topic: str, queue_id: int, next_offset: int) -> None:
        """Notes that the group was given what is in front of `next_offset`; only where it has committed an offset."""
        key = f"{topic}@{group}"
        if queue_id in self._offsets.get(key, ()):
            self._pulled.setdefault(key, {})[queue_id] = next_offset

    # ---- whole groups and topics

    def queues(self, group: str, topic: str) -> dict[int, int]:
        """The group's offsets in the topic by queue id; a copy."""
        return dict(self._offsets.get(f"{topic}@{group}", {}))

    def pulled_queues(self, group: str, topic: str) -> dict[int, int]:
        """Up to where the group was given messages of the topic in this run, by queue id; a copy."""
        return dict(self._pulled.get(f"{topic}@{group}", {}))

    def topics_of(self, group: str) -> list[str]:
        """The topics in which the group has offsets."""
        return [topic for topic, owner in map(_split, self._offsets) if owner == group]

    def groups_of(self, topic: str) -> list[str]:
        """The groups that have offsets in the topic."""
        return [group for subject, group in map(_split, self._offsets) if subject == topic]

    def remove_group(self, group: str) -> None:
        for topic in self.topics_of(group):
            self._remove(f"{topic}@{group}")

    def remove_topic(self, topic: str) -> None:
        """A topic created anew under the same name counts from 0 again; old offsets would be beyond its end."""
        for group in self.groups_of(topic):
            self._remove(f"{topic}@{group}")

    def _remove(self, key: str) -> None:
        self._count -= len(self._offsets.pop(key))
        self._pulled.pop(key, None)
        self._changed()

    def clone(self, source: str, target: str, topic: str) -> None:
        """Lets the target group go on where the source group stands in the topic."""
        offsets = self._offsets.get(f"{topic}@{source}")
        if offsets and not self._put(f"{topic}@{target}", dict(offsets)):
            raise _full()

    def merge(self, body: ConsumerOffsetBody) -> None:
        """Takes over the offsets of a file or (on a slave) of the master; keys that are absent there stay.

        Entries that can be nobody's offset, or for which there is no room, are left out and logged.
        """
        for key, offsets in body.offset_table.items():
            sound = {queue_id: offset for queue_id, offset in offsets.items() if queue_id >= 0 and offset >= 0}
            if not (all(_split(key)) and self._put(key, sound)):
                log.warning("consumer_offsets_left_out", key=key, entries=len(offsets))
            elif len(sound) < len(offsets):
                log.warning("consumer_offsets_left_out", key=key, entries=len(offsets) - len(sound))

    def forget_deleted(self, kept: Set[str], is_known: Callable[[str, str], bool]) -> None:
        """On a slave: drops keys that the master has not `kept`, if their topic or group `is_known` no more.

        A topic that is made anew counts from 0 again.
        """
        for key in self._offsets.keys() - kept:
            if not is_known(*_split(key)):
                self._remove(key)

    def _put(self, key: str, offsets: dict[int, int]) -> bool:
        growth = len(offsets) - len(self._offsets.get(key, ()))
        if not self._has_room(key, growth):
            return False
        if offsets:
            self._offsets[key] = offsets
        else:
            self._offsets.pop(key, None)
            self._pulled.pop(key, None)
        self._count += growth
        self._changed()
        return True

    def _changed(self) -> None:
        self._changes += 1
        self._changed_ms = self._now_ms()
        self.file.dirty = True

    @property
    def data_version(self) -> DataVersion:
        """Another one after each change, also of an earlier life."""
        return DataVersion(counter=self._changes, timestamp=self._changed_ms)

    def snapshot(self) -> ConsumerOffsetBody:
        """The offsets as they are now, to be looked at before they change."""
        return ConsumerOffsetBody(data_version=self.data_version, offset_table=self._offsets)

    def encode_for_slaves(self) -> bytes:
        """The text of `snapshot`."""
        # Inside texts line breaks and tabs are escaped, so these are the pretty form's own.
        table = self.encode().translate(None, b"\n\t")
        return b'{"dataVersion":%b,%b' % (self.data_version.encode(), table[1:])

    def encode(self) -> bytes:
        """The text of consumerOffset.json.

        The twin of `ConsumerOffsetBody.encode`, in half of its time: the whole table is written every few seconds.
        """
        entries = []
        for key, queues in self._offsets.items():
            numbers = ",".join([f"{queue_id}:{offset}" for queue_id, offset in sorted(queues.items())])
            entries.append(f"\n\t\t{_quoted(key).decode()}:{{{numbers}\n\t\t}}")
        table = ",".join(entries) + "\n\t" if entries else ""
        return f'{{\n\t"offsetTable":{{{table}}}\n}}'.encode()


def _full() -> Refused:
    remark = f"this broker has its limit of {MAX_ENTRIES} consumer offsets, or of {MAX_KEYS} topics with a group each"
    return Refused(ResponseCode.SYSTEM_BUSY, remark)


def _split(key: str) -> tuple[str, str]:
    """Topic and group. 5.x keeps offsets of `group@broadcast`, too; they stay in the file for its next start."""
    topic, _, group = key.partition("@")
    return topic, group
