"""SIGKILL of a real process in the middle of its work: everything acknowledged is there, rounds after rounds."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from store.engine import MessageStore
from tests.store.making import drain, options

ROOT = Path(__file__).parent.parent.parent
ROUNDS = 60 if os.environ.get("POCKETMQ_LONG") == "1" else 4


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


def numbers_in(store: MessageStore) -> list[int]:
    records = [record for queue_id in range(3) for record in drain(store, "T", queue_id)]
    records.sort(key=lambda record: record.physical_offset)
    return [int(record.body.partition(b"|")[0]) for record in records]


@pytest.mark.crash
@pytest.mark.parametrize("mode", ["ASYNC_FLUSH", "SYNC_FLUSH"])
def test_nothing_acknowledged_is_lost(tmp_path: Path, seeded_random: random.Random, mode: str) -> None:
    """The store holds all numbers up to the last acknowledged one, perhaps some more, without a hole."""
    stored = 0
    for _ in range(ROUNDS):
        command = [sys.executable, "-m", "tests.crash.appender", str(tmp_path), mode, str(stored)]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline().startswith("open")
                for _ in range(seeded_random.randint(1, 150)):
                    line = process.stdout.readline()
            finally:
                process.kill()
            rest = process.stdout.read().split("\n")[:-1]  # the last part may be half a line
            acknowledged = int(rest[-1] if rest else line)
        sizes = {"mapped_file_size_commit_log": 1 << 16, "mapped_file_size_consume_queue": 2000}
        store = MessageStore.open(options(tmp_path, **sizes))
        found = numbers_in(store)
        assert found == list(range(len(found)))
        assert len(found) >= acknowledged
        assert store.damaged_reads == 0
        stored = len(found)
        store.close()
