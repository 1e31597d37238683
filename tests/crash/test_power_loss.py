"""Nothing promised is lost, wherever the power fails: random lives of a store against a list."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from tests.crash.lives import Lives


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Recovery reports each cut; a run has thousands."""
    with structlog.testing.capture_logs():
        yield


ROOT = Path(__file__).parent.parent.parent
LONG = os.environ.get("POCKETMQ_LONG") == "1"
LIVES = 4
RUNS = 500 if LONG else 80  # of each flush mode; about two crashes each
FIRST_SEED = int(os.environ.get("POCKETMQ_SEED") or 0)

MODES = pytest.mark.parametrize("sync", [True, False], ids=["SYNC_FLUSH", "ASYNC_FLUSH"])
BLOCKS = pytest.mark.parametrize("block", range(6 if LONG else 1))  # of seeds
Record = Callable[[str, object], None]

TRACE = """
import structlog
from tests.crash.lives import Lives
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
for seed in range(3):
    for sync in (True, False):
        run = Lives(seed, sync=sync)
        run.run(4)
        print(run.disk.trace, run.disk.steps, run.crashes, len(run.sent))
"""


def survive(block: int, runs: int, record: Record, *, sync: bool, tear_inside_sectors: bool = False) -> None:
    """Each seed is a run of several lives; a failing seed is named, and repeats exactly."""
    crashes = messages = 0
    first = FIRST_SEED + block * runs
    for seed in range(first, first + runs):
        run = Lives(seed, sync=sync, tear_inside_sectors=tear_inside_sectors)
        try:
            run.run(LIVES)
        except Exception as error:
            raise AssertionError(f"seed {seed}, sync={sync}, crash {run.crashes}: {error}") from error
        crashes += run.crashes
        messages += run.count
    record("seeds", f"{first} to {first + runs - 1}")
    record("crashes", crashes)
    record("messages", messages)
    assert crashes > runs  # the runs did crash


@pytest.mark.crash
@MODES
@BLOCKS
def test_promises_hold_after_any_crash(block: int, sync: bool, record_property: Record) -> None:
    """What survives is a prefix with everything in it that was promised."""
    survive(block, RUNS, record_property, sync=sync)


@pytest.mark.crash
@MODES
@BLOCKS
def test_promises_hold_even_if_sectors_tear(block: int, sync: bool, record_property: Record) -> None:
    """No drive should do that; still nothing is lost that was promised."""
    survive(block, RUNS // 4, record_property, sync=sync, tear_inside_sectors=True)


@pytest.mark.crash
def test_a_seed_repeats_exactly() -> None:
    """Call for call and byte for byte, also in a process that orders its sets in another way."""
    traces = [
        subprocess.run(
            [sys.executable, "-c", TRACE],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert traces[0] == traces[1]
    assert len(set(traces[0].split("\n"))) == 7
