"""A file system that is really full: a small tmpfs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from store.engine import MessageStore
from store.errors import StoreFull
from tests.store.making import bodies, flush, maintain, message, open_store

BIG: dict[str, Any] = {"mapped_file_size_commit_log": 1 << 20, "mapped_file_size_consume_queue": 20_000}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Three megabytes."""
    target = tmp_path / "disk"
    target.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(target)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted: {made.stderr.strip()}")
    with structlog.testing.capture_logs():
        yield target
    subprocess.run(["umount", "-l", str(target)], check=True)


def fill_up(store: MessageStore, first: int = 0) -> int:
    """Append until it is refused; how many were taken."""
    count = first
    for _ in range(10_000):
        try:
            store.append([message(b"%06d" % count + b"x" * 2000, key=f"k{count}")])
        except StoreFull:
            return count
        count += 1
    raise AssertionError("the disk never was full")


@pytest.mark.crash
def test_a_full_disk(small_disk: Path) -> None:
    """Sends are refused, reads go on, nothing is torn, and when space returns it goes on by itself."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(500_000))
    store = open_store(small_disk / "store", **BIG)
    taken = fill_up(store)
    assert taken > 500
    with pytest.raises(StoreFull, match="space"):
        store.append([message(b"x" * 2000)] * 3)
    assert [body[:6] for body in bodies(store)] == [b"%06d" % number for number in range(taken)]
    assert store.writable[0]
    ballast.unlink()
    maintain(store)
    more = fill_up(store, taken)
    assert more > taken + 100
    flush(store)
    store._lock.release()  # killed while it was full
    store = open_store(small_disk / "store", **BIG)
    assert [body[:6] for body in bodies(store)] == [b"%06d" % number for number in range(more)]
    assert store.damaged_reads == 0
    assert not store.verdict.cuts
    store._lock.release()
