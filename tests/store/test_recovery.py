"""What is found after a stop: every cut and every flipped byte, strange directories, and what is kept aside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from store.abortfile import Ending
from store.checkpoint import NOTHING, CheckpointFile
from store.engine import MessageStore
from store.errors import StoreDamaged, StoreError, StoreLocked
from store.files import FileSystem
from store.logfiles import LogFiles
from store.options import BrokerRole
from store.recovery import inspect
from store.scan import Scanner
from tests.fakes import Clock, PowerLossFiles
from tests.store.making import SYNC, bodies, crash, damage, drain, flush, maintain, message, open_store, options

FILE = 4096
COUNT = 10
LOG_IN_MEMORY = f"/store/commitlog/{0:020d}"


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    """What recovery said."""
    with structlog.testing.capture_logs() as entries:
        yield entries


def events(logs: list[structlog.typing.EventDict], name: str) -> list[structlog.typing.EventDict]:
    return [entry for entry in logs if entry["event"] == name]


def body(number: int) -> bytes:
    return b"%03d" % number * 20


def fill(store: MessageStore, count: int = COUNT, first: int = 0) -> None:
    for number in range(first, first + count):
        store.append([message(body(number), key=f"k{number}", tag="A")])


def lose_power(root: Path) -> None:
    """From now on the directory looks as if the machine had been started anew."""
    (root / "abort").write_bytes(b"")


def log_file(root: Path, number: int = 0) -> Path:
    return root / "commitlog" / f"{number * FILE:020d}"


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A store whose process was killed after ten messages."""
    root = tmp_path / "store"
    store = open_store(root)
    fill(store)
    crash(store)
    return root


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A store that was closed after ten messages."""
    root = tmp_path / "store"
    store = open_store(root)
    fill(store)
    store.close()
    return root


def record_places(root: Path) -> list[tuple[int, int]]:
    """(begin, end) of each record in the first file; opening the store would already change it."""
    data = log_file(root).read_bytes()
    records = Scanner(lambda offset, length: data[offset : offset + length], FILE, 0).next_records()
    return [(record.physical_offset, record.physical_offset + record.size) for record in records]


def test_a_closed_store_is_not_read_again(closed: Path) -> None:
    """The checkpoint vouches for everything."""
    assert not (closed / "abort").exists()
    store = open_store(closed)
    assert (closed / "abort").exists()
    assert store.verdict.clean
    assert store.verdict.records == 0
    assert bodies(store) == [body(number) for number in range(COUNT)]
    store.close()


def test_a_killed_store_has_everything(killed: Path) -> None:
    """Nothing was flushed, but the page cache outlives the process."""
    store = open_store(killed)
    assert not store.verdict.clean
    assert store.verdict.records == COUNT
    assert not store.verdict.cuts
    assert bodies(store) == [body(number) for number in range(COUNT)]
    assert store.flushed_offset == store.end_offset
    fill(store, 5, first=COUNT)
    assert [record.queue_offset for record in drain(store)] == list(range(COUNT + 5))
    store.close()


def test_only_what_the_checkpoint_does_not_vouch_for_is_read(tmp_path: Path) -> None:
    """After a checkpoint, recovery begins at its offset."""
    store = open_store(tmp_path)
    fill(store)
    flush(store)
    maintain(store)
    fill(store, 3, first=COUNT)
    crash(store)
    store = open_store(tmp_path)
    assert store.verdict.records == 3
    assert bodies(store) == [body(number) for number in range(COUNT + 3)]
    store.close()


@pytest.fixture
def disk() -> PowerLossFiles:
    """The same store after a kill, on a disk in memory: thousands of starts take a second."""
    files = PowerLossFiles()
    fill(open_store("/store", fs=files))
    return files.kill()


def last_records(disk: PowerLossFiles) -> tuple[bytes, list[tuple[int, int]]]:
    """The log file and the places of its records."""
    data = bytes(disk.contents(LOG_IN_MEMORY))
    records = Scanner(lambda offset, length: data[offset : offset + length], FILE, 0).next_records()
    return data, [(record.physical_offset, record.physical_offset + record.size) for record in records]


@pytest.mark.parametrize("padded", [True, False], ids=["zeros behind", "short file"])
def test_log_cut_at_every_byte_of_its_last_records(disk: PowerLossFiles, padded: bool) -> None:
    """The whole records in front of the cut stay, the rest is cut off, and appending goes on there."""
    source, places = last_records(disk)
    for cut in range(places[-3][0], places[-1][1]):
        whole = sum(1 for _, stop in places if stop <= cut)
        changed = disk.copy()
        changed.contents(LOG_IN_MEMORY)[:] = source[:cut].ljust(FILE if padded else cut, b"\0")
        store = open_store("/store", fs=changed)
        assert bodies(store) == [body(number) for number in range(whole)], cut
        assert store.end_offset == (places[whole - 1][1] if whole else 0)
        assert len(changed.contents(LOG_IN_MEMORY)) == FILE
        fill(store, 1, first=500)
        assert bodies(store)[-1] == body(500)
        store.close()


@pytest.mark.parametrize("bit", [0x01, 0x10, 0x80])
def test_every_byte_of_the_last_records_flipped(disk: PowerLossFiles, bit: int) -> None:
    """Whatever byte is flipped: the store opens, the records in front are there, what it gives has a good CRC, and
    a damaged record does not hide the ones behind it."""
    _, places = last_records(disk)
    begin, end = places[-3][0], places[-1][1]
    unseen = 0
    for at in range(begin, end):
        changed = disk.copy()
        changed.contents(LOG_IN_MEMORY)[at] ^= bit
        store = open_store("/store", fs=changed)
        everywhere = [record.body for name in store.queues() for record in drain(store, *name)]
        assert everywhere[: COUNT - 3] == [body(number) for number in range(COUNT - 3)], at
        assert set(everywhere) <= {body(number) for number in range(COUNT)}
        for number in range(COUNT - 3, COUNT):
            if not places[number][0] <= at < places[number][1]:
                assert body(number) in everywhere, (at, number)
        unseen += len(everywhere) == COUNT
        store.close()
    # Only fields that no checksum covers can change without being seen: flags, times, hosts, properties.
    assert unseen < end - begin - 3 * 60


def test_torn_tail_is_kept_aside_and_told(killed: Path, logs: list[structlog.typing.EventDict]) -> None:
    """File, offset, length and reason are logged, and the bytes are under pocketmq-recovered."""
    places = record_places(killed)
    begin, end = places[-1]
    damage(log_file(killed), lambda data: data.__setitem__(slice(end - 5, end), b"\0" * 5))
    lose_power(killed)
    before = log_file(killed).read_bytes()
    store = open_store(killed)
    (cut,) = store.verdict.cuts
    assert (cut.file, cut.offset) == (str(log_file(killed)), begin)
    (told,) = events(logs, "commitlog_cut")
    assert (told["file"], told["offset"], told["length"]) == (cut.file, begin, cut.length)
    assert told["reason"] == "a part of topic or properties is gone"
    kept = Path(told["kept_as"])
    assert kept.is_relative_to(killed / "pocketmq-recovered")
    assert kept.read_bytes() == before[begin : begin + cut.length]
    assert log_file(killed).read_bytes() == before[:begin].ljust(FILE, b"\0")
    store.close()


def test_verdict_comes_before_any_change(killed: Path) -> None:
    """``inspect`` only reads: the directory is byte for byte the same afterwards."""
    damage(log_file(killed), lambda data: data.__setitem__(slice(900, 1000), b"x" * 100))
    before = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
    files = LogFiles(str(killed / "commitlog"), FILE, FileSystem())
    verdict = inspect(files, NOTHING, ending=Ending.UNKNOWN)
    assert verdict.damages
    assert {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()} == before


def test_damage_in_the_middle_does_not_hide_what_follows(killed: Path, logs: list[structlog.typing.EventDict]) -> None:
    """The message is lost, its place is told, its offset is not used again, and all others are served."""
    places = record_places(killed)
    begin, end = places[4]
    damage(log_file(killed), lambda data: data.__setitem__(begin + 88, data[begin + 88] ^ 1))
    store = open_store(killed)
    found = drain(store)
    assert [record.body for record in found] == [body(number) for number in range(COUNT) if number != 4]
    assert [record.queue_offset for record in found] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    (told,) = events(logs, "commitlog_damaged")
    assert (told["offset"], told["length"]) == (begin, end - begin)
    assert told["reason"] == "CRC of the body does not match"
    assert not store.verdict.cuts
    fill(store, 1, first=COUNT)
    assert drain(store)[-1].queue_offset == COUNT
    store.close()


def test_the_last_offset_of_a_queue_is_not_used_again(closed: Path) -> None:
    """Even when the last message is damaged: a consumer may have gone past it."""
    begin, _ = record_places(closed)[-1]
    damage(log_file(closed), lambda data: data.__setitem__(begin + 88, data[begin + 88] ^ 1))
    store = open_store(closed)
    fill(store, 2, first=COUNT)
    found = drain(store)
    assert [record.queue_offset for record in found] == [*range(COUNT - 1), COUNT, COUNT + 1]
    assert store.max_offset("T", 0) == COUNT + 2
    store.close()
    store = open_store(closed)
    assert len(drain(store)) == COUNT + 1
    store.close()


def test_bit_rot_below_the_checkpoint_is_seen_when_it_is_read(
    closed: Path, logs: list[structlog.typing.EventDict]
) -> None:
    """It is never served as good, never hides others, and is told once."""
    begin, _ = record_places(closed)[3]
    store = open_store(closed)
    store.close()
    damage(log_file(closed), lambda data: data.__setitem__(begin + 90, data[begin + 90] ^ 1))
    store = open_store(closed)
    for _ in range(3):
        assert bodies(store) == [body(number) for number in range(COUNT) if number != 3]
    assert [entry["offset"] for entry in events(logs, "damaged_record")] == [begin]
    assert store.damaged_reads == 3
    store.close()


def two_files(root: Path) -> MessageStore:
    store = open_store(root)
    fill(store, 40)
    assert store.end_offset > FILE
    return store


def test_damage_in_an_older_file(tmp_path: Path) -> None:
    """The exact place, and everything in the files behind it."""
    crash(two_files(tmp_path))
    damage(log_file(tmp_path), lambda data: data.__setitem__(slice(600, 900), b"\xff" * 300))
    store = open_store(tmp_path)
    (place,) = store.verdict.damages
    assert place.file == str(log_file(tmp_path))
    assert place.offset <= 600
    assert place.offset + place.length >= 900
    found = bodies(store)
    assert found[-1] == body(39)
    assert len(found) >= 40 - 4
    store.close()


def test_a_missing_file_in_the_middle(tmp_path: Path) -> None:
    """Its messages are lost, the ones in front and behind are not."""
    store = open_store(tmp_path)
    fill(store, 90)
    assert store.end_offset > 2 * FILE
    crash(store)
    log_file(tmp_path, 1).unlink()
    store = open_store(tmp_path)
    found = bodies(store)
    assert found[0] == body(0)
    assert found[-1] == body(89)
    assert any("missing" in place.reason for place in store.verdict.damages)
    store.close()
    store = open_store(tmp_path)
    assert bodies(store) == found
    store.close()


@pytest.mark.parametrize("stop", ["killed", "closed"])
def test_short_last_file(tmp_path: Path, stop: str) -> None:
    """An official broker refuses to start; here the file gets its size back and whole records stay."""
    store = two_files(tmp_path)
    crash(store) if stop == "killed" else store.close()
    path = log_file(tmp_path, 1)
    kept = path.read_bytes()[:700]
    path.write_bytes(kept)
    store = open_store(tmp_path)
    assert path.stat().st_size == FILE
    found = bodies(store)
    assert found == [body(number) for number in range(len(found))]
    assert found[-1] in kept
    assert store.end_offset <= FILE + 700
    store.close()


def test_empty_spare_files(killed: Path) -> None:
    """Files that were made ahead, at full size or empty, are removed."""
    log_file(killed, 1).write_bytes(bytes(FILE))
    log_file(killed, 2).write_bytes(b"")
    store = open_store(killed)
    assert not log_file(killed, 1).exists()
    assert not log_file(killed, 2).exists()
    assert len(bodies(store)) == COUNT
    store.close()


def test_a_huge_length_in_the_tail(killed: Path) -> None:
    """It is not followed."""
    end = record_places(killed)[-1][1]
    head = (2**31 - 1).to_bytes(4, "big") + bytes.fromhex("daa320a7")
    damage(log_file(killed), lambda data: data.__setitem__(slice(end, end + 8), head))
    store = open_store(killed)
    assert len(bodies(store)) == COUNT
    assert store.end_offset == end
    store.close()


def test_stale_records_behind_the_end_are_not_messages(killed: Path) -> None:
    """An official broker that cut a log leaves the old bytes there; they are not where they say."""
    places = record_places(killed)
    end = places[-1][1]
    old = log_file(killed).read_bytes()[places[3][0] : places[6][1]]
    damage(log_file(killed), lambda data: data.__setitem__(slice(end, end + len(old)), old))
    store = open_store(killed)
    assert len(bodies(store)) == COUNT
    assert log_file(killed).read_bytes()[end:] == bytes(FILE - end)
    store.close()


@pytest.mark.parametrize("stop", ["killed", "closed"])
@pytest.mark.parametrize("content", [None, b"", b"\xff" * 4096, bytes(4096), b"x" * 10])
def test_checkpoint_lost_or_damaged(tmp_path: Path, stop: str, content: bytes | None) -> None:
    """It only says how much to read; without it everything is read."""
    store = two_files(tmp_path)
    crash(store) if stop == "killed" else store.close()
    path = tmp_path / "checkpoint"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    store = open_store(tmp_path)
    assert store.verdict.records == 40
    assert bodies(store) == [body(number) for number in range(40)]
    store.close()


def test_an_official_checkpoint_leads_to_a_file(tmp_path: Path) -> None:
    """Its times say which file to begin with: the newest that begins three seconds before them."""
    clock = Clock()
    store = open_store(tmp_path, clock=clock)
    for number in range(40):
        clock.advance(1000)
        store.append([message(body(number))])
    times = [record.store_timestamp for record in drain(store)]
    second = next(record.store_timestamp for record in drain(store) if record.physical_offset == FILE)
    store.close()
    (tmp_path / "abort").touch()
    for safe, begin in ((times[-1], FILE), (second + 3000, FILE), (second + 2999, 0), (0, 0)):
        (tmp_path / "checkpoint").write_bytes(safe.to_bytes(8, "big") * 3 + bytes(4072))
        files = LogFiles(str(tmp_path / "commitlog"), FILE, FileSystem())
        checkpoint = CheckpointFile(str(tmp_path / "checkpoint"), FileSystem()).read(clock())
        assert inspect(files, checkpoint, ending=Ending.UNKNOWN).begin == begin


def test_a_store_of_other_file_sizes_is_refused(tmp_path: Path) -> None:
    """One clear line that names the key, and nothing is changed."""
    store = two_files(tmp_path)
    store.close()
    for size in (2048, 8192):
        with pytest.raises(StoreDamaged, match="mappedFileSizeCommitLog"):
            MessageStore.open(options(tmp_path, mapped_file_size_commit_log=size))
    store = open_store(tmp_path)
    assert len(bodies(store)) == 40
    store.close()


def test_entries_that_are_no_log_files_are_left_alone(killed: Path, logs: list[structlog.typing.EventDict]) -> None:
    """An official broker would refuse to start; here they are named."""
    (killed / "commitlog" / "notes.txt").write_text("mine")
    (killed / "commitlog" / "lost+found").mkdir()
    store = open_store(killed)
    assert len(bodies(store)) == COUNT
    assert (killed / "commitlog" / "notes.txt").read_text() == "mine"
    assert len(events(logs, "commitlog_entry_ignored")) == 2
    store.close()


def test_a_second_store_is_kept_out_before_it_touches_anything(killed: Path) -> None:
    """Nothing of a live store changes, not even its abort file."""
    store = open_store(killed)
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("*") if path.name != "lock"}
    with pytest.raises(StoreLocked):
        open_store(killed)
    assert {path: path.stat().st_mtime_ns for path in killed.rglob("*") if path.name != "lock"} == before
    store.close()


def test_a_commitlog_of_another_root_is_kept_for_its_broker(killed: Path, tmp_path: Path) -> None:
    """As where the properties of a master, storePathCommitLog among them, are taken for its slave."""
    live = open_store(killed)
    others = options(tmp_path / "other")
    others.store_path_commit_log = str(killed / "commitlog")
    with pytest.raises(StoreLocked, match=f"{killed}/lock is held"):
        MessageStore.open(others)
    live.close()
    second = MessageStore.open(others)
    others = options(tmp_path / "third")
    others.store_path_commit_log = str(killed / "commitlog")
    (killed / "lock").unlink()
    with pytest.raises(StoreLocked, match=f"{killed}/commitlog is held"):
        MessageStore.open(others)
    second.close()
    MessageStore.open(others).close()


def test_a_directory_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    """The error names the path; the lock is free again."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        open_store(tmp_path / "file" / "store")
    (tmp_path / "commitlog").write_text("")
    for _ in range(2):
        with pytest.raises(StoreError, match="commitlog"):
            open_store(tmp_path)


def test_sync_flush_shows_after_a_kill_only_what_it_made_safe(tmp_path: Path) -> None:
    """What was appended and not flushed is flushed by recovery before anybody sees it."""
    store = open_store(tmp_path, flush_disk_type=SYNC)
    fill(store)
    crash(store)
    store = open_store(tmp_path, flush_disk_type=SYNC)
    assert store.flushed_offset == store.end_offset == store.dispatched_offset
    assert len(bodies(store)) == COUNT
    store.close()


def test_cuts_over_several_files_are_all_kept(tmp_path: Path, logs: list[structlog.typing.EventDict]) -> None:
    """After a loss of power that took a whole page early on, everything behind it goes, and is kept aside."""
    store = open_store(tmp_path)
    fill(store, 90)
    crash(store)
    before = [path.read_bytes() for path in sorted((tmp_path / "commitlog").iterdir())]
    damage(log_file(tmp_path), lambda data: data.__setitem__(slice(1024, 2048), bytes(1024)))
    lose_power(tmp_path)
    store = open_store(tmp_path)
    found = bodies(store)
    assert found == [body(number) for number in range(len(found))]
    assert store.end_offset <= 1024
    kept = {entry["offset"]: Path(entry["kept_as"]).read_bytes() for entry in events(logs, "commitlog_cut")}
    assert sorted(kept) == [store.end_offset, *(number * FILE for number in range(1, len(before)))]
    assert kept[FILE] == before[1].rstrip(b"\0")
    assert [path.name for path in sorted((tmp_path / "commitlog").iterdir())] == [f"{0:020d}"]
    fill(store, 90, first=100)
    assert bodies(store)[-1] == body(189)
    store.close()


@pytest.mark.parametrize("ends_in_order", [True, False])
@pytest.mark.parametrize("received", [8, 100, -1])
def test_a_slave_gets_a_filler_again_that_it_had_in_part(tmp_path: Path, received: int, ends_in_order: bool) -> None:
    """Official 4.8 leaves old bytes in fillers; slave and master have to have the same."""
    master = open_store(tmp_path / "master")
    while master.end_offset <= FILE:
        master.append([message(b"x" * 900)])
    data = bytearray(master.read_raw(0, FILE))
    master.close()
    filler = Scanner(lambda offset, length: bytes(data[offset : offset + length]), FILE, 0)
    filler.next_records()
    assert filler.filler_at is not None
    assert filler.filler_at + 100 < FILE
    data[filler.filler_at + 8 :] = b"old" * FILE
    del data[FILE:]
    cut = filler.filler_at + received if received > 0 else FILE + received

    slave = open_store(tmp_path / "slave", broker_role=BrokerRole.SLAVE)
    slave.append_raw(0, bytes(data[:cut]))
    slave.dispatch_step()
    if ends_in_order:
        slave.close()
    else:
        crash(slave)
    slave = open_store(tmp_path / "slave", broker_role=BrokerRole.SLAVE)
    assert slave.end_offset == filler.filler_at
    slave.append_raw(slave.end_offset, bytes(data[slave.end_offset :]))
    slave.close()
    assert log_file(tmp_path / "slave").read_bytes() == data
