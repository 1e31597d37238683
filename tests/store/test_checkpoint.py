"""The checkpoint page: official times in front, our offset behind, and nothing believed that does not fit."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.checkpoint import NOTHING, SIZE, Checkpoint, CheckpointFile, Times, Vouched, decode, encode
from store.files import FileSystem
from tests.fakes import PowerLossFiles

NOW = 1_700_000_000_000
TIMES = Times(NOW - 3, NOW - 2, NOW - 1)
SAMPLE = Checkpoint(TIMES, Vouched(123456789, 123456700, True))

millis = st.integers(0, NOW)


@given(st.builds(Times, millis, millis, millis), st.none() | st.builds(Vouched, millis, millis, st.booleans()))
def test_round_trip(times: Times, vouched: Vouched | None) -> None:
    """What is written is read."""
    assert decode(encode(Checkpoint(times, vouched)), NOW) == Checkpoint(times, vouched)


def test_official_layout() -> None:
    """4,096 bytes; three longs that an official broker reads; its two 5.x longs stay zero."""
    page = encode(SAMPLE)
    assert len(page) == SIZE
    assert struct.unpack_from(">qqqqq", page) == (*TIMES, 0, 0)


def test_an_official_broker_wrote_in_between() -> None:
    """It changes only the times; our offset is then about another log and does not count."""
    page = bytearray(encode(SAMPLE))
    struct.pack_into(">q", page, 0, NOW)
    assert decode(bytes(page), NOW) == Checkpoint(Times(NOW, NOW - 2, NOW - 1), None)


@given(st.integers(24, SIZE - 1), st.integers(1, 255))
def test_damage_behind_the_times(at: int, change: int) -> None:
    """Either it hits nothing that is used, or our offset does not count; the times do."""
    page = bytearray(encode(SAMPLE))
    page[at] ^= change
    assert decode(bytes(page), NOW) in (SAMPLE, SAMPLE._replace(vouched=None))


@pytest.mark.parametrize("length", [0, 8, 23])
def test_short_pages_vouch_for_nothing(length: int) -> None:
    """As if there were no file."""
    assert decode(encode(SAMPLE)[:length], NOW) == NOTHING


@pytest.mark.parametrize("time", [-1, NOW + 86_400_001, 2**62])
def test_impossible_times_vouch_for_nothing(time: int) -> None:
    """Garbled times must not let recovery skip messages."""
    page = bytearray(encode(SAMPLE))
    struct.pack_into(">q", page, 8, time)
    assert decode(bytes(page), NOW) == NOTHING


def test_every_torn_write_is_safe() -> None:
    """Sector by sector old or new: times are one of both, and our offset counts only with its own times."""
    old, new = encode(SAMPLE), encode(Checkpoint(Times(NOW, NOW, NOW), Vouched(999, 900, False)))
    sectors = SIZE // 512
    for mask in range(1 << sectors):
        page = b"".join(
            (new if mask >> number & 1 else old)[number * 512 : number * 512 + 512] for number in range(sectors)
        )
        found = decode(page, NOW)
        assert found.times in (TIMES, Times(NOW, NOW, NOW))
        assert found.vouched is None or found in (SAMPLE, Checkpoint(Times(NOW, NOW, NOW), Vouched(999, 900, False)))


def test_the_file(tmp_path: Path) -> None:
    """Absent, it vouches for nothing; written, it is read; the two offsets of 5.x stay."""
    path = tmp_path / "checkpoint"
    file = CheckpointFile(str(path), FileSystem())
    assert file.read(NOW) == NOTHING
    file.write(SAMPLE)
    assert file.read(NOW) == SAMPLE
    page = bytearray(path.read_bytes())
    struct.pack_into(">qq", page, 24, 11, 22)
    path.write_bytes(page)
    file.write(SAMPLE._replace(vouched=None))
    assert file.read(NOW) == SAMPLE._replace(vouched=None)
    assert struct.unpack_from(">qq", path.read_bytes(), 24) == (11, 22)


def test_the_first_one_survives_a_loss_of_power() -> None:
    """Its name too, not only its bytes."""
    disk = PowerLossFiles()
    disk.makedirs("/s")
    file = CheckpointFile("/s/checkpoint", disk)
    file.write(SAMPLE)
    steps = disk.steps
    for seed in range(30):
        assert CheckpointFile("/s/checkpoint", disk.lose_power(random.Random(seed))).read(NOW) == SAMPLE
    file.write(SAMPLE)
    assert disk.steps == steps + 2  # a write and its flush: the name is safe for good
