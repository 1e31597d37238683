"""Small stores and messages for the tests of the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol.message import NewMessage, StoredMessage, decode_record, java_hash, pack_host
from store.engine import GetStatus, MessageStore
from store.files import FileSystem
from store.options import FlushDiskType, StoreOptions
from tests.fakes import Clock

HOST = pack_host("127.0.0.1", 10911)
SYNC = FlushDiskType.SYNC_FLUSH


def options(root: Path | str, **changes: Any) -> StoreOptions:
    """Files so small that a few messages fill them."""
    values: dict[str, Any] = {
        "store_path_root_dir": str(root),
        "mapped_file_size_commit_log": 4096,
        "mapped_file_size_consume_queue": 400,
        "max_hash_slot_num": 50,
        "max_index_num": 100,
    }
    return StoreOptions(**(values | changes))


def message(body: bytes = b"hello", **changes: Any) -> NewMessage:
    """A message of topic T, queue 0; ``key`` and ``tag`` go into properties, index keys and tags code."""
    key, tag = changes.pop("key", ""), changes.pop("tag", "")
    pairs = [f"{name}\x01{value}" for name, value in (("UNIQ_KEY", key), ("TAGS", tag)) if value]
    values: dict[str, Any] = {
        "topic": "T",
        "queue_id": 0,
        "flag": 0,
        "sys_flag": 0,
        "born_timestamp": 1_600_000_000_000,
        "born_host": HOST,
        "store_host": HOST,
        "body": body,
        "properties": "\x02".join(pairs).encode(),
        "tags_code": java_hash(tag) if tag else 0,
        "keys": (key,) if key else (),
    }
    return NewMessage(**(values | changes))


def open_store(
    root: Path | str, *, clock: Clock | None = None, fs: FileSystem | None = None, **changes: Any
) -> MessageStore:
    return MessageStore.open(options(root, **changes), now_ms=clock or Clock(), fs=fs)


def flush(store: MessageStore) -> None:
    job = store.flush_begin()
    job.run()
    store.flush_done(job)


def maintain(store: MessageStore) -> None:
    """One round of upkeep, run to its end."""
    job = store.maintain_begin()
    while job is not None:
        job.run()
        job = store.maintain_begin() if store.maintain_done(job) else None


def drain(store: MessageStore, topic: str = "T", queue_id: int = 0, offset: int | None = None) -> list[StoredMessage]:
    """Every message that a consumer of the queue gets, from ``offset`` or the queue's begin on."""
    found: list[StoredMessage] = []
    at = store.min_offset(topic, queue_id) if offset is None else offset
    while True:
        result = store.get(topic, queue_id, at, 32, allow_cold=True)
        for data in result.data:
            view = memoryview(data)
            while view:
                record = decode_record(view)
                found.append(record)
                view = view[record.total_size :]
        if result.status not in (GetStatus.FOUND, GetStatus.NO_MATCHED_MESSAGE, GetStatus.MESSAGE_WAS_REMOVING):
            return found
        at = result.next_offset


def bodies(store: MessageStore, topic: str = "T", queue_id: int = 0) -> list[bytes]:
    return [record.body for record in drain(store, topic, queue_id)]


def crash(store: MessageStore) -> None:
    """What the end of the process leaves: the lock is free, nothing else happens."""
    store._lock.release()


def damage(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change a file's bytes behind the store's back."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
