"""From the bytes of the log back to entries: the hot twin of ``Scanner`` and ``derive`` for ordinary records.

Ordinary is a record of the first version with IPv4 hosts and no part of a transaction, whose topic is known to hold
no delayed messages: all that a slave gets under load. ``OrdinaryRecords`` takes a run of them off the bytes without an
object for each record, which makes dispatch a third cheaper, and stops in front of anything else, which is the
scanner's. Where records of one size follow each other it remembers their layout, and takes each of them apart in one
go: twice as fast again. It accepts nothing that the scanner would not; a property test holds it to that, on good and
damaged bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from protocol.message import (
    HEAD,
    HOST_FLAGS,
    MAGIC_V1,
    MAX_PROPERTIES_BYTES,
    MAX_TOPIC_BYTES,
    MIN_RECORD_BYTES,
    PREFIX_V4,
    TRANSACTION_MASK,
    parse_properties,
    tags_code,
)
from store.commitlog import Entry
from store.scan import FIXED_V4

_SPECIAL: Final = TRANSACTION_MASK | HOST_FLAGS
_TOPIC_SHIFT: Final = PREFIX_V4.size + 1  # from a record's begin to its topic, without the body
_TAGS: Final = "\x02TAGS\x01"
_UNIQUE_KEY: Final = "\x02UNIQ_KEY\x01"
_KEYS: Final = "\x02KEYS\x01"
_END_OF_KEYS_AND_TAGS: Final = "S\x01"  # and of few other names
_SOME_UNIQUE_KEY: Final = _UNIQUE_KEY[1:]
_UNIQUE_KEY_BYTES: Final = _SOME_UNIQUE_KEY.encode()
_FIXED: Final = ">8s4xi4xqqi16xq20xi"  # FIXED_V4 with size and magic number in one, and without the CRC
_MAX_LAYOUTS: Final = 64
_MAX_TEXTS: Final = 64  # of a layout, around the unique key
_MAX_LEARNT_BYTES: Final = 512  # of properties; with the two above, some 3 MiB at the worst


class Run(NamedTuple):
    """Records with one store time, one behind the other."""

    entries: list[Entry]
    end: int  # where the record behind them begins in the bytes
    store_timestamp: int


def keys_and_tags_code(text: str) -> tuple[tuple[str, ...], int]:
    """The index keys and the tags code that properties give; ``text`` has a separator in front."""
    unique_key = _value(text, _UNIQUE_KEY) if _UNIQUE_KEY in text else ""
    keys: tuple[str, ...] = (unique_key,) if unique_key else ()
    if _KEYS in text:
        keys += tuple([key for key in _value(text, _KEYS).split(" ") if key])
    return keys, tags_code(_value(text, _TAGS)) if _TAGS in text else 0


def _value(text: str, marker: str) -> str:
    """One property that the text has: as ``parse_properties``, without parsing the others."""
    begin = text.rfind(marker) + len(marker)
    end = text.find("\x02", begin)
    value = text[begin:] if end < 0 else text[begin:end]
    # Of several pairs of one name the last counts that has a value.
    return value or parse_properties(text).get(marker[1:-1], "")


class _Layout:
    """Where what differs stands in records of one size, one length of the body, of the topic and of the unique key."""

    def __init__(self, size: tuple[int, int], topic_length: int, before_key: int, key_length: int) -> None:
        self._size, self._body_length = size
        self._topic_length = topic_length
        self._head = HEAD.pack(self._size, MAGIC_V1)
        shape = f"{_FIXED}{self._body_length}xB{topic_length}sH{before_key}s{key_length}s"
        behind_key = self._size - struct.calcsize(shape)
        self._unpack_from = struct.Struct(f"{shape}{behind_key}s").unpack_from
        self._properties_length = before_key + key_length + behind_key
        self._tags_codes: dict[tuple[bytes, bytes], int] = {}  # by what stands before the unique key and behind it

    def learn(self, before: bytes, behind: bytes, tags_code: int) -> None:
        """Properties with that around an alphanumeric unique key have no other keys, and this code of their tags."""
        if len(self._tags_codes) >= _MAX_TEXTS:
            self._tags_codes.clear()
        self._tags_codes[before, behind] = tags_code

    def take(
        self,
        data: bytes,
        position: int,
        shift: int,
        limit: int,
        store_timestamp: int,
        topics: Mapping[bytes, str],
        entries: list[Entry],
    ) -> int:
        """HOT. Adds the records from ``position`` on that are like this, and returns where the next begins."""
        unpack_from, head, size, tags_codes = self._unpack_from, self._head, self._size, self._tags_codes
        body_length, topic_length, properties_length = self._body_length, self._topic_length, self._properties_length
        last_start = len(data) - size
        room = limit - len(entries)
        while room > 0 and position <= last_start:
            (
                its_head,
                queue_id,
                queue_offset,
                physical_offset,
                sys_flag,
                its_timestamp,
                its_body_length,
                its_topic_length,
                name,
                its_properties_length,
                before,
                key,
                behind,
            ) = unpack_from(data, position)
            topic = topics.get(name)
            code = tags_codes.get((before, behind))
            if (
                topic is None
                or code is None
                or its_head != head
                or its_body_length != body_length
                or its_topic_length != topic_length
                or its_properties_length != properties_length
                or sys_flag & _SPECIAL
                or physical_offset != position + shift
                or its_timestamp != store_timestamp
                or not key.isalnum()
            ):
                break
            entries.append((topic, queue_id, queue_offset, physical_offset, size, code, (key.decode(),)))
            position += size
            room -= 1
        return position


_NO_LAYOUTS: Final[Mapping[tuple[int, int], _Layout]] = {}


class OrdinaryRecords:
    """Takes ordinary records off the bytes of the log; remembers topics and layouts."""

    def __init__(self) -> None:
        self.topics: dict[bytes, str] = {}  # those whose queues hold nothing but tags codes
        self._layouts: dict[tuple[int, int], _Layout] = {}  # by size and body length; learnt one a run at most

    def entries(self, data: bytes, position: int, offset: int, limit: int) -> Run:
        """HOT. The run of up to ``limit`` records from ``position`` on, which is the log's ``offset``.

        ``data`` lies in one file. No entries: the scanner has to look.
        """
        entries: list[Entry] = []
        fixed_at, topics = FIXED_V4.unpack_from, self.topics
        layouts: Mapping[tuple[int, int], _Layout] = self._layouts
        shift = offset - position
        last_start = len(data) - MIN_RECORD_BYTES
        run_timestamp = 0
        size_before = None
        repeated = None
        while position <= last_start and len(entries) < limit:
            total, magic, _, queue_id, queue_offset, physical_offset, sys_flag, store_timestamp, body_length = fixed_at(
                data, position
            )
            if store_timestamp != run_timestamp and entries:
                break
            size = total, body_length
            layout = layouts.get(size)
            if layout is not None:
                end = layout.take(data, position, shift, limit, store_timestamp, topics, entries)
                if end > position:
                    position = end
                    run_timestamp = store_timestamp
                    continue
                layouts = _NO_LAYOUTS  # sizes say little of these records
            end = position + total
            topic_at = position + _TOPIC_SHIFT + body_length
            if (
                magic != MAGIC_V1
                or sys_flag & _SPECIAL
                or physical_offset != position + shift
                or body_length < 0
                or topic_at + 2 > end
                or end > len(data)
            ):
                break
            topic_length = data[topic_at - 1]
            properties_at = topic_at + topic_length + 2
            if topic_length > MAX_TOPIC_BYTES or properties_at > end:
                break
            properties_length = data[properties_at - 2] << 8 | data[properties_at - 1]
            topic = topics.get(data[topic_at : properties_at - 2])
            if properties_at + properties_length != end or properties_length > MAX_PROPERTIES_BYTES or topic is None:
                break
            text = data[properties_at:end].decode("utf-8", "replace")
            before, _, behind = text.partition(_SOME_UNIQUE_KEY)
            key = behind.partition("\x02")[0]
            if (
                not key
                or (before and before[-1] != "\x02")
                or _END_OF_KEYS_AND_TAGS in text
                or _SOME_UNIQUE_KEY in behind
            ):
                keys, code = keys_and_tags_code("\x02" + text)
            else:
                keys, code = (key,), 0
            entries.append((topic, queue_id, queue_offset, physical_offset, total, code, keys))
            if size == size_before and len(keys) == 1 and properties_length <= _MAX_LEARNT_BYTES:
                repeated = size, topic_length, data[properties_at:end], keys[0], code
            size_before = size
            run_timestamp = store_timestamp
            position = end
        if repeated is not None:
            self._learn(*repeated)
        return Run(entries, position, run_timestamp)

    def _learn(self, size: tuple[int, int], topic_length: int, properties: bytes, key: str, tags_code: int) -> None:
        """Remembers how the next records of this size may look, if ``key``, their only one, is the unique key."""
        unique_key = key.encode()
        before, name, behind = properties.partition(_UNIQUE_KEY_BYTES)
        if before and not before.endswith(b"\x02"):
            return
        if not behind.startswith(unique_key) or _UNIQUE_KEY_BYTES in behind:
            return
        before += name
        behind = behind[len(unique_key) :]
        layout = self._layouts.get(size)
        if layout is None:
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[size] = _Layout(size, topic_length, len(before), len(unique_key))
        layout.learn(before, behind, tags_code)
