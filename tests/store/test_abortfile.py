"""What the file ``abort`` tells of the last run, and what recovery makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from store.abortfile import AbortFile, Ending
from store.errors import StoreError
from store.faults import Failpoints, FaultyFiles
from store.files import FileSystem
from store.options import BrokerRole
from tests.fakes import PowerLossFiles, PowerLost
from tests.store.making import bodies, crash, message, open_store

FILE = 8192
LOG = f"/store/commitlog/{0:020d}"


def store_directory(root: Path, fs: FileSystem | None = None) -> AbortFile:
    """An open store as far as its abort file looks at it."""
    (root / "commitlog").mkdir(parents=True)
    (root / "lock").write_bytes(b"lock")
    abort = AbortFile(str(root), str(root / "commitlog"), fs or FileSystem())
    assert abort.ending() is Ending.CLOSED
    abort.make()
    return abort


def vouch(abort: AbortFile, *, replica: bool = False) -> None:
    with abort.recovering(replica=replica):
        pass


def test_what_the_file_tells(tmp_path: Path) -> None:
    """Only a note of our own tells of a killed process; official files are empty or hold a process id."""
    abort = store_directory(tmp_path / "store")
    assert abort.ending() is Ending.UNKNOWN
    (tmp_path / "store" / "abort").write_bytes(b"12345" * 100)
    assert abort.ending() is Ending.UNKNOWN
    for replica, ending in ((False, Ending.KILLED), (True, Ending.KILLED_REPLICA)):
        vouch(abort, replica=replica)
        assert abort.ending() is ending
        abort.make()
        assert abort.ending() is ending
    abort.distrust()
    assert abort.ending() is Ending.UNKNOWN
    abort.remove()
    assert abort.ending() is Ending.CLOSED


def copied(root: Path) -> None:
    """Put back from a copy that was made while the store was written."""
    shutil.copytree(root, root.parent / "copy")
    shutil.copytree(root.parent / "copy", root, dirs_exist_ok=True)


def official_start(root: Path) -> None:
    (root / "lock").write_bytes(b"lock")


def other_commit_log(root: Path) -> None:
    (root / "commitlog").rename(root.parent / "elsewhere")
    (root / "commitlog").mkdir()


def other_place(root: Path) -> None:
    root.rename(root.parent / "moved")
    shutil.copytree(root.parent / "moved", root)


@pytest.mark.parametrize("change", [copied, official_start, other_commit_log, other_place])
def test_a_note_that_something_contradicts(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Copies, and directories that an official broker was started on, tell nothing."""
    abort = store_directory(tmp_path / "store")
    vouch(abort)
    assert abort.ending() is Ending.KILLED
    wait_until_clocks_differ(tmp_path / "store" / "lock")
    change(tmp_path / "store")
    assert abort.ending() is Ending.UNKNOWN


def wait_until_clocks_differ(path: Path) -> None:
    """A file's time has the kernel's resolution of some milliseconds."""
    probe = path.with_name("probe")
    while True:
        probe.write_bytes(b"")
        if probe.stat().st_ctime_ns > path.stat().st_ctime_ns:
            probe.unlink()
            return


def test_no_boot_id(tmp_path: Path) -> None:
    """Where the system does not tell its boot, nothing is concluded."""

    class Nameless(FileSystem):
        def boot_id(self) -> str:
            raise FileNotFoundError

    abort = store_directory(tmp_path / "store", Nameless())
    vouch(abort)
    assert abort.ending() is Ending.UNKNOWN


@pytest.mark.parametrize("role", [BrokerRole.ASYNC_MASTER, BrokerRole.SLAVE])
def test_starts_that_end_again(role: BrokerRole) -> None:
    """No step of a start leaves the file empty or half written, in the same role or in another."""
    files = PowerLossFiles()
    store = open_store("/store", fs=files)
    store.append([message(b"zeros", properties=b"K\x01" + bytes(1100) + b"end")])
    steps = 0
    while True:
        steps += 1
        disk = files.kill()
        disk.only_killed = True
        disk.crash_at = disk.steps + steps
        with suppress(PowerLost):
            again = open_store("/store", fs=disk, broker_role=role)
            assert bodies(again) == [b"zeros"]
            break
    assert steps > 1


@pytest.mark.parametrize("where", ["flush", "close", "recovery"])
def test_a_failed_flush_takes_the_note_away(where: str) -> None:
    """The system drops what it could not write: zeros are then what was forgotten."""
    files, faults = PowerLossFiles(), Failpoints()
    store = open_store("/store", fs=FaultyFiles(files, faults))
    store.append([message(b"first")])
    abort = AbortFile("/store", "/store/commitlog", files)
    assert abort.ending() is Ending.KILLED
    if where == "flush":
        store.poison("flush failed")
    else:
        if where == "recovery":
            crash(store)
        faults.arm("flush", skip=1 if where == "recovery" else 0)
        with pytest.raises(StoreError):
            store.close() if where == "close" else open_store("/store", fs=FaultyFiles(files.kill(), faults))
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
