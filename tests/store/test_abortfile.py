"""What the file ``abort`` tells of the last run, and what recovery makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from store.abortfile import AbortFile, Ending
from store.files import FileSystem
from store.options import BrokerRole
from tests.fakes import PowerLossFiles
from tests.store.making import bodies, crash, message, open_store

FILE = 8192
LOG = f"/store/commitlog/{0:020d}"


def abort_file(root: Path) -> AbortFile:
    return AbortFile(str(root / "abort"), FileSystem())


def test_what_the_file_tells(tmp_path: Path) -> None:
    """Only a file that was made here, in this boot, tells of a killed process; official ones are empty or a pid."""
    abort = abort_file(tmp_path)
    assert abort.ending() is Ending.CLOSED
    abort.make()
    assert abort.ending() is Ending.UNKNOWN
    (tmp_path / "abort").write_bytes(b"12345" * 100)
    assert abort.ending() is Ending.UNKNOWN
    abort.vouch(replica=False)
    assert abort.ending() is Ending.KILLED
    abort.vouch(replica=True)
    assert abort.ending() is Ending.KILLED_REPLICA
    abort.make()
    assert abort.ending() is Ending.KILLED_REPLICA
    abort.remove()
    assert abort.ending() is Ending.CLOSED


def test_a_copy_tells_nothing(tmp_path: Path) -> None:
    """It may have been made while the store was written."""
    abort = abort_file(tmp_path)
    abort.make()
    abort.vouch(replica=False)
    (tmp_path / "copy").mkdir()
    shutil.copy2(tmp_path / "abort", tmp_path / "copy")
    assert abort_file(tmp_path / "copy").ending() is Ending.UNKNOWN


def test_no_boot_id(tmp_path: Path) -> None:
    """Where the system does not tell its boot, nothing is concluded."""

    class Nameless(FileSystem):
        def cache_life(self, path: object) -> str:
            return ""

    abort = AbortFile(str(tmp_path / "abort"), Nameless())
    abort.make()
    abort.vouch(replica=False)
    assert abort.ending() is Ending.UNKNOWN


@pytest.mark.parametrize(
    "properties",
    [b"K\x01abc\0", b"UNIQ_KEY\x01" + b"x" * 32 + b"\x02K\x01" + bytes(1100)],
    ids=["last byte", "whole sectors"],
)
@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("how", ["close", "kill"])
def test_zeros_that_were_sent_stay(tmp_path: Path, how: str, is_last: bool, properties: bytes) -> None:
    """Properties may hold any byte; a message with zeros in them is not taken for one whose sectors are gone."""
    store = open_store(tmp_path, mapped_file_size_commit_log=FILE)
    store.append([message(b"before")])
    store.append([message(b"zeros", properties=properties)])
    if not is_last:
        store.append([message(b"behind")])
    expected = bodies(store)
    store.close() if how == "close" else crash(store)
    store = open_store(tmp_path, mapped_file_size_commit_log=FILE)
    assert not store.verdict.cuts
    assert bodies(store) == expected
    store.close()


def filled(role: BrokerRole) -> tuple[PowerLossFiles, bytes, int]:
    """A killed store of that role, with a record whose text crosses a page; its log, and where that record begins."""
    files = PowerLossFiles()
    store = open_store("/store", fs=files, mapped_file_size_commit_log=FILE, broker_role=role)
    source = open_store("/source", fs=files, mapped_file_size_commit_log=FILE)
    source.append([message(b"first" * 740)])
    begin = source.end_offset
    source.append([message(b"second", properties=b"KEYS\x01" + b"k" * 400)])
    data = source.read_raw(0, source.end_offset)
    assert begin + 100 < 4096 < len(data) - 100
    store.append_raw(0, data)
    return files.kill(), data, begin


@pytest.mark.parametrize("role", [BrokerRole.SLAVE, BrokerRole.ASYNC_MASTER])
def test_a_record_that_a_killed_process_wrote_in_part(role: BrokerRole) -> None:
    """A replica's last record may end at any byte, a master's at any page: what is there of it is cut off."""
    files, data, begin = filled(role)
    for end in range(begin + 1, len(data)) if role is BrokerRole.SLAVE else (4096,):
        files.contents(LOG)[: len(data)] = data[:end].ljust(len(data), b"\0")
        store = open_store("/store", fs=files.kill(), mapped_file_size_commit_log=FILE, broker_role=role)
        assert store.end_offset == begin, end
        crash(store)


@pytest.mark.parametrize("power_lost", [False, True])
def test_zeros_between_records(power_lost: bool) -> None:
    """A lost sector ends the log; zeros in what a killed process had written are damage, and what follows stays."""
    files = PowerLossFiles()
    store = open_store("/store", fs=files, mapped_file_size_commit_log=FILE)
    for number in range(40):
        store.append([message(b"%03d" % number * 20)])
    expected = bodies(store)
    files = files.copy() if power_lost else files.kill()
    files.contents(LOG)[1024:1536] = bytes(512)
    store = open_store("/store", fs=files, mapped_file_size_commit_log=FILE)
    found = bodies(store)
    assert bool(store.verdict.cuts) is power_lost
    assert bool(store.verdict.damages) is not power_lost
    assert found[:5] == expected[:5]
    assert (found[-1] == expected[-1]) is not power_lost
    assert len(found) < len(expected)
    store.close()
