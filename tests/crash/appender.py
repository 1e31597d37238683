"""A process that appends until it is killed; it acknowledges by a line on stdout when a promise holds."""

from __future__ import annotations

import sys

import structlog

from store.engine import MessageStore
from store.options import FlushDiskType
from tests.store.making import flush, maintain, message, options


def main(root: str, mode: str, first: int) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    store = MessageStore.open(
        options(
            root,
            mapped_file_size_commit_log=1 << 16,
            mapped_file_size_consume_queue=2000,
            flush_disk_type=FlushDiskType[mode],
        )
    )
    sys.stdout.write(f"open {store.end_offset}\n")
    number = first
    while True:
        batch = [message(b"%d|" % (number + at) + b"x" * (at * 37 % 400), queue_id=at % 3) for at in range(7)]
        store.append(batch)
        number += len(batch)
        if mode == "SYNC_FLUSH":
            flush(store)
            store.dispatch_step()
        if number % 70 == 0:
            maintain(store)
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
