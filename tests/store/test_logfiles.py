"""Looking at log files that may be short, missing, sparse or of another store."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.message import HEAD, MAGIC_BLANK, encode_record
from store.errors import StoreDamaged
from store.files import FileSystem
from store.logfiles import LogFiles, find_record_in_files
from tests.store.making import message

SIZE = 4096


def write(directory: Path, number: int, content: bytes, size: int = SIZE) -> None:
    (directory / f"{number * SIZE:020d}").write_bytes(content.ljust(size, b"\0"))


def record(offset: int) -> bytes:
    new = message(b"body")
    new.physical_offset, new.queue_offset, new.store_timestamp = offset, 0, 1
    return encode_record(new)


def files(directory: Path) -> LogFiles:
    return LogFiles(str(directory), SIZE, FileSystem())


def test_listing(tmp_path: Path) -> None:
    """Files by their offsets; everything else is a stranger, and an absent directory is empty."""
    assert files(tmp_path / "none").bases == []
    write(tmp_path, 2, b"")
    write(tmp_path, 0, b"")
    (tmp_path / "notes").touch()
    (tmp_path / f"{SIZE:020d}").mkdir()
    found = files(tmp_path)
    assert found.bases == [0, 2 * SIZE]
    assert sorted(Path(path).name for path in found.strangers) == [f"{SIZE:020d}", "notes"]
    assert found.next_base(1) == 2 * SIZE
    assert found.next_base(2 * SIZE + 1) is None


@pytest.mark.parametrize("sizes", [[SIZE + 1], [SIZE, 2 * SIZE], [1000, 1000]])
def test_other_sizes_are_refused(tmp_path: Path, sizes: list[int]) -> None:
    """Larger files, or all of one other size: the key is wrong, not the store."""
    for number, size in enumerate(sizes):
        write(tmp_path, number, b"", size)
    with pytest.raises(StoreDamaged, match="mappedFileSizeCommitLog"):
        files(tmp_path)


def test_an_offset_between_files_is_refused(tmp_path: Path) -> None:
    """Names are multiples of the size."""
    (tmp_path / f"{SIZE + 1:020d}").write_bytes(bytes(SIZE))
    with pytest.raises(StoreDamaged, match="mappedFileSizeCommitLog"):
        files(tmp_path)


def test_reading_stays_in_a_file(tmp_path: Path) -> None:
    """Nothing for a missing file, less at the end of a short one."""
    write(tmp_path, 0, b"a" * SIZE)
    write(tmp_path, 1, b"b" * 100, 100)
    found = files(tmp_path)
    assert found.read(SIZE - 10, 100) == b"a" * 10
    assert found.read(SIZE + 90, 100) == b"b" * 10
    assert found.read(2 * SIZE, 100) == b""


def test_finding_data(tmp_path: Path) -> None:
    """The first byte that is not zero, over holes and files; and where data ends."""
    write(tmp_path, 0, bytes(10) + b"x")
    write(tmp_path, 2, bytes(3000) + b"yy" + bytes(20) + b"z")
    found = files(tmp_path)
    assert found.next_nonzero(0) == 10
    assert found.next_nonzero(11) == 2 * SIZE + 3000
    assert found.next_nonzero(2 * SIZE + 3023) is None
    assert found.end_of_data(2 * SIZE, 2 * SIZE) == 2 * SIZE + 3023
    assert found.end_of_data(0, 100) == 100


def test_finding_a_record(tmp_path: Path) -> None:
    """In any file from an offset on; a filler alone is none, the record behind it is."""
    write(tmp_path, 0, bytes(50) + record(50))
    write(tmp_path, 1, HEAD.pack(SIZE, MAGIC_BLANK))
    write(tmp_path, 3, record(3 * SIZE))
    found = files(tmp_path)
    assert find_record_in_files(found, 0) == 50
    assert find_record_in_files(found, 51) == 3 * SIZE
    assert find_record_in_files(found, 3 * SIZE + 1) is None
