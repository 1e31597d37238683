"""Nothing promised is lost, wherever the power fails: random lives of a store against a list."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog

from tests.crash.lives import Lives


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Recovery reports each cut; a run has thousands."""
    with structlog.testing.capture_logs():
        yield


LONG = os.environ.get("POCKETMQ_LONG") == "1"
LIVES = 4
RUNS = 3000 if LONG else 80  # of each flush mode; about two crashes each


@pytest.mark.crash
@pytest.mark.parametrize("sync", [True, False], ids=["SYNC_FLUSH", "ASYNC_FLUSH"])
def test_promises_hold_after_any_crash(sync: bool) -> None:
    """Each seed is a run of several lives; a failing seed is named, and repeats exactly."""
    crashes = 0
    for seed in range(RUNS):
        run = Lives(seed, sync=sync)
        try:
            run.run(LIVES)
        except Exception as error:
            raise AssertionError(f"seed {seed}, sync={sync}, crash {run.crashes}: {error}") from error
        crashes += run.crashes
    assert crashes > RUNS  # the runs did crash
