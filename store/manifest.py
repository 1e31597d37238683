"""What the derived files held when a checkpoint vouched for them: ``pocketmq/queues.json`` in the store's root.

Owns the list of queues with their offsets, and of index files. A consume queue folder that disappears leaves no
trace in the log's tail, so a start that reads only the tail would not miss it; this list does. It is written before
the checkpoint it belongs to, and is a lower bound from then on: offsets only grow. Official brokers ignore it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from store.files import FileSystem
from store.jsonfile import load_json, save_json
from store.queue import ConsumeQueue

FILE: Final = "pocketmq/queues.json"
NOWHERE: Final = -1


class KnownQueue(msgspec.Struct, array_like=True, gc=False):
    """One queue at that moment. ``changed_ns``: newest modification time of its files, 0 if not looked at."""

    topic: str
    queue_id: int
    min_offset: int
    max_offset: int
    changed_ns: int = 0
    used_until: int = 0  # offsets below it are taken, although their messages are lost


class Manifest(msgspec.Struct):
    """The derived files for all records below ``offset``."""

    offset: int
    log_begin: int  # that the minimum offsets go with; NOWHERE if they are from before a deletion
    index_end: int  # commitlog offset of the newest indexed record
    index_files: list[str]
    queues: list[KnownQueue]

    @property
    def vouches(self) -> bool:
        """Whether it was written with a checkpoint, and not withdrawn since."""
        return self.offset != NOWHERE


_DECODER = msgspec.json.Decoder(Manifest)


def load(root: str, fs: FileSystem) -> Manifest | None:
    """None if there is none that can be read."""
    return load_json(f"{root}/{FILE}", _DECODER.decode, fs=fs)


def save(root: str, manifest: Manifest, fs: FileSystem) -> None:
    """On disk when it returns. Any thread. OSError."""
    save_json(f"{root}/{FILE}", msgspec.json.encode(manifest), fs=fs)


def withdraw(root: str, fs: FileSystem, floors: Mapping[tuple[str, int], int]) -> None:
    """Nothing vouches for the derived files any more: they are about to be made again. OSError.

    What is left says only which offsets are taken; its ``vouches`` is False.
    """
    queues = [KnownQueue(*name, 0, 0, used_until=floor) for name, floor in floors.items()]
    save(root, Manifest(NOWHERE, 0, 0, [], queues), fs)
    backup = f"{root}/{FILE}.bak"
    if fs.stat(backup) is not None:
        fs.unlink(backup)
        fs.sync_directory(backup.rpartition("/")[0])


def snapshot(queues: Iterable[ConsumeQueue], floors: Mapping[tuple[str, int], int]) -> list[KnownQueue]:
    """The queues that ever held a message; ``floors``: where numbering goes on behind lost messages.

    A queue of which nothing but its floor is left is among them, with no offset of its own.
    """
    known = [
        KnownQueue(queue.topic, queue.queue_id, queue.min_offset, queue.max_offset)
        for queue in queues
        if queue.max_offset
    ]
    if floors:
        left = dict(floors)
        for queue in known:
            queue.used_until = left.pop((queue.topic, queue.queue_id), 0)
        known += [KnownQueue(*name, 0, 0, used_until=floor) for name, floor in left.items()]
    return known


def newest_change(root: str, queue: ConsumeQueue | KnownQueue, fs: FileSystem) -> int:
    """The newest modification time in a queue's directory, in ns; 0 without files."""
    directory = f"{root}/consumequeue/{queue.topic}/{queue.queue_id}"
    statuses = [fs.stat(f"{directory}/{name}") for name in fs.listdir(directory)]
    return max((status.mtime_ns for status in statuses if status is not None), default=0)
