"""Queue offsets that are taken although their messages are lost: where numbering goes on behind them.

A queue offset that was ever seen in use is not given to another message: a consumer may have gone past it, and would
never get that message. Records can be lost with a part of the log, and a queue's files with records that expired
before. So the highest offset of each queue is remembered in the manifest, until the queue has reached it on disk:

- A queue that is empty is placed at its floor at once, in its own files and in the form that official brokers use.
  From then on it is a queue like any other.
- One that still has messages goes on at its floor with the next message, with blank units in between. Until that
  is on disk, each manifest repeats the floor.
"""

from __future__ import annotations

from typing import Final

import structlog

from protocol.message import MIN_RECORD_BYTES
from store.consumequeue import ConsumeQueues
from store.errors import StoreError
from store.manifest import Manifest

log = structlog.get_logger(__name__)

Floors = dict[tuple[str, int], int]
_PLAUSIBLE_FILES: Final = 4


def seen_floors(queues: ConsumeQueues, manifest: Manifest | None, log_end: int, log_file_size: int) -> Floors:
    """The highest offset of each queue that was ever seen in use.

    The manifest is believed. A queue's own files may be garbled, so what they say must be possible: their records
    hardly behind the log, and no more of them than would ever have fitted into it.
    """
    limit = log_end + _PLAUSIBLE_FILES * log_file_size
    floors: Floors = {}
    for queue in queues:
        if queue.max_physical_end <= limit and queue.max_offset <= limit // MIN_RECORD_BYTES:
            floors[queue.name] = queue.max_offset
    for known in manifest.queues if manifest is not None else ():
        name = (known.topic, known.queue_id)
        floors[name] = max(floors.get(name, 0), known.max_offset, known.used_until)
    return floors


def settle(floors: Floors, queues: ConsumeQueues) -> bool:
    """When the queues are what the log says: keep the floors above them. True if a queue was placed at its floor."""
    placed = False
    for name, floor in list(floors.items()):
        queue = queues.queue(*name)
        reached = queue.max_offset if queue is not None else 0
        if reached >= floor:
            del floors[name]
            continue
        log.warning("queue_offsets_skipped", topic=name[0], queue_id=name[1], begin=reached, end=floor - 1)
        if queue is not None and queue.min_offset < queue.max_offset:
            continue
        try:
            queues.place(*name, floor)
        except StoreError as error:  # a full disk: the manifest remembers it
            log.warning("queue_not_placed", topic=name[0], queue_id=name[1], offset=floor, reason=str(error))
        else:
            del floors[name]
            placed = True
    return placed
