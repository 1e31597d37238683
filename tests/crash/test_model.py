"""The disk that loses power forgets what POSIX lets it forget, and nothing that was made safe."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from store.files import DirectoryLock
from tests.fakes import SECTOR, PowerLossFiles

SEEDS = 300


@pytest.fixture
def disk() -> PowerLossFiles:
    """With an empty directory ``/d`` that is safe."""
    files = PowerLossFiles()
    files.makedirs("/d")
    return files


def outcomes(disk: PowerLossFiles) -> Iterator[PowerLossFiles]:
    for seed in range(SEEDS):
        yield disk.lose_power(random.Random(seed))


def trees(disk: PowerLossFiles) -> set[tuple[str, ...]]:
    """What may be found in ``/d``."""
    return {tuple(after.listdir("/d")) for after in outcomes(disk)}


def make(disk: PowerLossFiles, name: str, data: bytes = b"", *, safe: bool = False) -> int:
    fd = disk.open(f"/d/{name}", create=True)
    if data:
        disk.write_all(fd, data, 0)
    if safe:
        disk.fdatasync(fd)
        disk.sync_directory("/d")
    return fd


def read(disk: PowerLossFiles, name: str) -> bytes:
    return bytes(disk.contents(f"/d/{name}"))


def test_a_name_needs_a_sync_of_its_directory(disk: PowerLossFiles) -> None:
    """Flushing the file alone does not keep it."""
    disk.fdatasync(make(disk, "a", b"x"))
    assert trees(disk) == {(), ("a",)}
    disk.sync_directory("/d")
    assert trees(disk) == {("a",)}


def test_a_directory_needs_a_sync_of_its_parent(disk: PowerLossFiles) -> None:
    """What is in it is lost with its name, however safe it is inside."""
    disk.makedirs("/d/e", sync=False)
    disk.fdatasync(disk.open("/d/e/a", create=True))
    disk.sync_directory("/d/e")
    assert trees(disk) == {(), ("e",)}
    disk.sync_directory("/d")
    assert {tuple(after.listdir("/d/e")) for after in outcomes(disk)} == {("a",)}


def test_names_come_in_any_order(disk: PowerLossFiles) -> None:
    """A later name may be there without an earlier one."""
    make(disk, "a")
    make(disk, "b")
    assert trees(disk) == {(), ("a",), ("b",), ("a", "b")}


def test_a_rename_is_whole_or_not_there(disk: PowerLossFiles) -> None:
    """The new name is one or the other file; the old name is there exactly if it is not."""
    make(disk, "new", b"new", safe=True)
    make(disk, "old", b"old", safe=True)
    disk.rename("/d/new", "/d/old")
    seen = {(tuple(after.listdir("/d")), read(after, "old")) for after in outcomes(disk)}
    assert seen == {(("new", "old"), b"old"), (("old",), b"new")}
    disk.sync_directory("/d")
    assert trees(disk) == {("old",)}


def test_a_rename_into_another_directory_may_lose_the_file(disk: PowerLossFiles) -> None:
    """If the directory it came from is synced first."""
    disk.makedirs("/e")
    make(disk, "a", b"x", safe=True)
    disk.rename("/d/a", "/e/a")
    disk.sync_directory("/d")
    assert {len(after.listdir("/d") + after.listdir("/e")) for after in outcomes(disk)} == {0, 1}
    disk.sync_directory("/e")
    assert {tuple(after.listdir("/e")) for after in outcomes(disk)} == {("a",)}


def test_an_unlink_may_come_undone(disk: PowerLossFiles) -> None:
    """With the bytes that were safe."""
    make(disk, "a", b"x", safe=True)
    disk.unlink("/d/a")
    assert trees(disk) == {(), ("a",)}
    disk.sync_directory("/d")
    assert trees(disk) == {()}


def test_a_removed_directory_comes_back_with_what_was_in_it(disk: PowerLossFiles) -> None:
    """Or without; once its removal is safe nothing of it comes back, though nobody synced the directory itself."""
    disk.makedirs("/d/e")
    disk.close(disk.open("/d/e/a", create=True))
    disk.sync_directory("/d/e")
    disk.unlink("/d/e/a")
    disk.rmdir("/d/e")
    found = {(tuple(after.listdir("/d")), tuple(after.listdir("/d/e"))) for after in outcomes(disk)}
    assert found == {((), ()), (("e",), ()), (("e",), ("a",))}
    disk.sync_directory("/d")
    assert trees(disk) == {()}


def test_sectors_come_one_by_one(disk: PowerLossFiles) -> None:
    """Each is old or new as a whole, whatever was written in one call."""
    fd = make(disk, "a", b"o" * 3 * SECTOR, safe=True)
    disk.write_all(fd, b"n" * 3 * SECTOR, 0)
    seen = {bytes(read(after, "a")[at] for at in range(0, 3 * SECTOR, SECTOR)) for after in outcomes(disk)}
    assert len(seen) == 8
    assert all(
        set(read(after, "a")[at : at + SECTOR]) in ({ord("o")}, {ord("n")})
        for after in outcomes(disk)
        for at in range(0, 3 * SECTOR, SECTOR)
    )
    disk.fdatasync(fd)
    assert {read(after, "a") for after in outcomes(disk)} == {b"n" * 3 * SECTOR}


def test_a_sector_may_tear_if_a_test_says_so(disk: PowerLossFiles) -> None:
    """The begin of the new content, the end of the old."""
    disk.tear_inside_sectors = True
    fd = make(disk, "a", b"o" * SECTOR, safe=True)
    disk.write_all(fd, b"n" * SECTOR, 0)
    torn = [data for after in outcomes(disk) if len(set(data := read(after, "a"))) == 2]
    assert torn
    assert all(data == data.rstrip(b"o").ljust(SECTOR, b"o") for data in torn)


def test_sizes_are_safe_after_a_flush_only(disk: PowerLossFiles) -> None:
    """A new file may be empty, a cut may come undone, a reservation reads as zeros."""
    fd = disk.create("/d/a", 1000)
    disk.sync_directory("/d")
    assert {len(read(after, "a")) for after in outcomes(disk)} == {0, 1000}
    disk.write_all(fd, b"x" * 1000, 0)
    disk.fdatasync(fd)
    assert {read(after, "a") for after in outcomes(disk)} == {b"x" * 1000}
    disk.truncate(fd, 100)
    assert {read(after, "a") for after in outcomes(disk)} == {b"x" * 1000, b"x" * 100}
    disk.fdatasync(fd)
    disk.reserve(fd, 100, 900)
    assert {read(after, "a") for after in outcomes(disk)} == {b"x" * 100, b"x" * 100 + bytes(900)}


def test_a_killed_process_loses_nothing(disk: PowerLossFiles) -> None:
    """The page cache stays, and so does what is not safe in it."""
    make(disk, "a", b"x")
    after = disk.kill()
    assert read(after, "a") == b"x"
    assert trees(after) == {(), ("a",)}


def test_a_file_opened_for_reading_cannot_be_written(disk: PowerLossFiles) -> None:
    """As with the real system."""
    make(disk, "a", b"x")
    with pytest.raises(OSError, match="reading only"):
        disk.pwrite(disk.open("/d/a", readonly=True), b"y", 0)


def test_a_store_directory_is_safe_when_it_is_locked() -> None:
    """Also if a process before made it and did not live to sync it."""
    disk = PowerLossFiles()
    disk.makedirs("/a/b/store", sync=False)
    DirectoryLock("/a/b/store", "/a/b/store", disk).release()
    assert {after.stat("/a/b/store") is not None for after in outcomes(disk)} == {True}
