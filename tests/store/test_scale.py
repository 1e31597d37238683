"""Ten thousand queues and a hundred log files (a tenth of that in the short run) with 1,024 or fewer open files."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.store.making import crash, drain, maintain, message, open_store

LONG = os.environ.get("POCKETMQ_LONG") == "1"
TOPICS = 500 if LONG else 60
QUEUES = 20
LOG_FILE = 1 << 16
SIZES: dict[str, Any] = {"mapped_file_size_commit_log": LOG_FILE, "mapped_file_size_consume_queue": 400}


@pytest.fixture
def few_files() -> Iterator[None]:
    """Fewer descriptors than queues, beside those that the process has for other reasons."""
    gc.collect()  # other tests let go of stores as a kill does
    others = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(others + (1000 if LONG else 550), hard), hard))
    with structlog.testing.capture_logs():
        yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.usefixtures("few_files")
def test_many_queues_and_files(tmp_path: Path) -> None:
    """All can be written, flushed, read and found again, by a clean and by an unclean start."""
    store = open_store(tmp_path, **SIZES)
    padding = b"x" * 520
    for topic in range(TOPICS):
        store.append(
            [message(b"%d|" % queue_id + padding, topic=f"T{topic}", queue_id=queue_id) for queue_id in range(QUEUES)]
        )
    assert len(store._log.bases()) >= TOPICS / 6
    maintain(store)
    store.append([message(b"last", topic=f"T{topic}") for topic in range(0, TOPICS, 7)])
    crash(store)
    store = open_store(tmp_path, **SIZES)
    assert len(list(store.queues())) == TOPICS * QUEUES
    for topic in range(0, TOPICS, 7):
        assert [len(record.body) for record in drain(store, f"T{topic}", 0)] == [522, 4]
        assert drain(store, f"T{topic}", QUEUES - 1)[0].body.startswith(b"%d|" % (QUEUES - 1))
    store.close()
    store = open_store(tmp_path, **SIZES)
    assert store.verdict.clean
    assert len(list(store.queues())) == TOPICS * QUEUES
    store.close()
