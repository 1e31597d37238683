"""From the bytes of the log back to entries: the hot twin of ``Scanner`` and ``derive`` for ordinary records.

Ordinary is a record of the first version with IPv4 hosts and no part of a transaction, whose topic is known to hold
no delayed messages: all that a slave gets under load. ``ordinary_entries`` takes a run of them off the bytes without an
object for each record, which makes dispatch a third cheaper, and stops in front of anything else, which is the
scanner's. It accepts nothing that the scanner would not; a property test holds it to that, on good and damaged bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from protocol.message import (
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


def ordinary_entries(data: bytes, position: int, offset: int, limit: int, topics: Mapping[bytes, str]) -> Run:
    """HOT. The run of up to ``limit`` ordinary records from ``position`` on, which is the log's ``offset``.

    ``topics``: the names of ordinary topics. ``data`` lies in one file. No entries: the scanner has to look.
    """
    entries: list[Entry] = []
    fixed_at = FIXED_V4.unpack_from
    shift = offset - position
    last_start = len(data) - MIN_RECORD_BYTES
    run_timestamp = 0
    while position <= last_start and len(entries) < limit:
        total, magic, _, queue_id, queue_offset, physical_offset, sys_flag, store_timestamp, body_length = fixed_at(
            data, position
        )
        end = position + total
        topic_at = position + _TOPIC_SHIFT + body_length
        if (
            magic != MAGIC_V1
            or sys_flag & _SPECIAL
            or physical_offset != position + shift
            or body_length < 0
            or topic_at + 2 > end
            or end > len(data)
            or (store_timestamp != run_timestamp and entries)
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
        run_timestamp = store_timestamp
        position = end
    return Run(entries, position, run_timestamp)
