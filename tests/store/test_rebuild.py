"""Lost, zeroed, garbled and short queue and index files: found when the store is opened, and made again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from store.engine import MessageStore
from store.files import FileSystem, StrPath
from store.jsonfile import save_json
from tests.fakes import Clock
from tests.store.making import crash, damage, drain, flush, maintain, message, open_store, options

COUNT = 90  # several log files, several files for queue 0, one for the others
QUEUES = [("T", 0), ("T", 1), ("%RETRY%g", 0)]


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


def name_of(number: int) -> tuple[str, int]:
    return QUEUES[0] if number % 4 < 2 else QUEUES[number % 4 - 1]


def fill(store: MessageStore, count: int = COUNT, first: int = 0) -> None:
    for number in range(first, first + count):
        topic, queue_id = name_of(number)
        store.append([message(b"%d" % number, topic=topic, queue_id=queue_id, key=f"k{number}", tag="A")])


def check(store: MessageStore, count: int = COUNT) -> None:
    """Every message is in its queue, in order and with its offset, and the index finds it."""
    for name in QUEUES:
        found = drain(store, *name)
        assert [int(record.body) for record in found] == [n for n in range(count) if name_of(n) == name]
        assert [record.queue_offset for record in found] == list(range(len(found)))
    for number in range(count):
        topic, _ = name_of(number)
        result = store.query_keys(topic, f"k{number}", 64, 0, 1 << 60)
        assert len(result.records) >= 1, number
    assert store.damaged_reads == 0


STOPS = ("closed", "killed", "killed after a checkpoint", "official")


@pytest.fixture(params=STOPS)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store after each kind of stop. "official": no manifest, and times that are not ours in the checkpoint."""
    store = open_store(tmp_path)
    if request.param == "killed after a checkpoint":
        fill(store, COUNT - 5)
        flush(store)
        maintain(store)
        fill(store, 5, first=COUNT - 5)
        crash(store)
    else:
        fill(store)
        store._queues.write_pending(100)
        crash(store) if request.param == "killed" else store.close()
    if request.param == "official":
        shutil.rmtree(tmp_path / "pocketmq")
        damage(tmp_path / "checkpoint", lambda data: data.__setitem__(7, data[7] ^ 1))
    return tmp_path


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def all_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def zero(path: Path) -> None:
    for file in all_files(path):
        file.write_bytes(bytes(file.stat().st_size))


def garble(path: Path) -> None:
    rng = random.Random(5)
    for file in all_files(path):
        file.write_bytes(rng.randbytes(file.stat().st_size))


def shorten(path: Path) -> None:
    for file in all_files(path):
        file.write_bytes(file.read_bytes()[:130])


def empty(path: Path) -> None:
    for file in all_files(path):
        file.write_bytes(b"")


def change_one_unit(path: Path) -> None:
    for file in all_files(path):
        damage(file, lambda data: data.__setitem__(slice(45, 48), b"\xff\xff\xff"))


HARM: list[Callable[[Path], None]] = [remove, zero, garble, shorten, empty, change_one_unit]
PLACES = [
    "consumequeue",
    "consumequeue/T",
    "consumequeue/T/0",
    "consumequeue/T/0/00000000000000000000",
    "consumequeue/T/0/00000000000000000400",
    "consumequeue/%RETRY%g/0",
    "index",
]
# One changed slot says nothing wrong about itself: the keys of its chain are not found until the index is made again.
HARMED = [(place, harm) for place in PLACES for harm in HARM if (place, harm) != ("index", change_one_unit)]


@pytest.mark.parametrize(("place", "harm"), HARMED, ids=lambda part: getattr(part, "__name__", part))
def test_derived_files_come_back(root: Path, place: str, harm: Callable[[Path], None]) -> None:
    """Whatever was done to them, all messages are served with their offsets; so they are after the next start."""
    if place != "index":
        assert (root / place).exists()
    harm(root / place)
    store = open_store(root)
    check(store)
    fill(store, 4, first=COUNT)
    check(store, COUNT + 4)
    store.close()
    store = open_store(root)
    assert store.verdict.clean
    check(store, COUNT + 4)
    store.close()


def test_nothing_is_rebuilt_without_need(root: Path, logs: list[structlog.typing.EventDict]) -> None:
    """A store that is as it was left is taken as it is."""
    store = open_store(root)
    check(store)
    assert [entry for entry in logs if entry["event"] == "consume_queue_rebuilt"] == []
    store.close()


def test_a_stop_in_the_middle_of_a_rebuild(tmp_path: Path) -> None:
    """What was half made again is not believed by the next start."""
    store = open_store(tmp_path)
    fill(store)
    store.close()
    shutil.rmtree(tmp_path / "consumequeue")
    shutil.rmtree(tmp_path / "index")

    class Stop(Exception):
        pass

    calls = 0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        raise Stop

    with pytest.raises(Stop):
        open_watched(tmp_path, progress)
    assert calls == 1
    store = open_store(tmp_path)
    check(store)
    store.close()


def open_watched(root: Path, progress: Callable[[str, int, int], None]) -> MessageStore:
    return MessageStore.open(options(root), now_ms=Clock(), progress=progress)


def test_progress_is_told(tmp_path: Path) -> None:
    """What is done, how far, of how much."""
    store = open_store(tmp_path)
    fill(store)
    end = store.end_offset
    store.close()
    shutil.rmtree(tmp_path / "consumequeue")
    told: list[tuple[str, int, int]] = []
    open_watched(tmp_path, lambda *what: told.append(what)).close()
    assert told[-1][0] == "rebuilding consume queues and index"
    assert 0 < told[-1][1] <= told[-1][2] == end


def test_a_deleted_topic_stays_deleted(tmp_path: Path) -> None:
    """Its records are still in the log, and its queues are missing on purpose."""
    store = open_store(tmp_path)
    fill(store)
    flush(store)
    maintain(store)
    assert store.delete_queues("T") == 2
    assert not (tmp_path / "consumequeue" / "T").exists()
    crash(store)
    store = open_store(tmp_path)
    assert list(store.queues()) == [("%RETRY%g", 0)]
    store.append(again := [message(b"new")])
    assert again[0].queue_offset == 0
    store.close()


@pytest.mark.parametrize("manifest", ["kept", "lost"])
def test_a_topic_that_an_official_broker_deleted(tmp_path: Path, manifest: str) -> None:
    """It is not in topics.json, so its queues are not made again from the log."""
    clock = Clock()
    store = open_store(tmp_path, clock=clock)
    fill(store)
    for _ in range(2):
        clock.advance(10_000)
        for _ in range(60):
            store.append([message(b"0")])
    store.close()
    damage(tmp_path / "checkpoint", lambda data: data.__setitem__(1024, 0))
    if manifest == "lost":
        shutil.rmtree(tmp_path / "pocketmq")
    shutil.rmtree(tmp_path / "consumequeue" / "%RETRY%g")
    shutil.rmtree(tmp_path / "consumequeue" / "T" / "1")
    save_json(tmp_path / "config" / "topics.json", b'{"topicConfigTable":{"T":{}}}')
    store = open_store(tmp_path, clock=clock)
    assert sorted(store.queues()) == [("T", 0), ("T", 1)]
    assert len(drain(store, "T", 1)) == len([n for n in range(COUNT) if name_of(n) == ("T", 1)])
    store.append(again := [message(topic="%RETRY%g")])
    assert again[0].queue_offset == 0
    store.close()


def test_an_index_that_a_kill_of_the_official_broker_cost(tmp_path: Path) -> None:
    """It deletes its newest index file; the keys in it are found again here."""
    store = open_store(tmp_path)
    fill(store)
    store.close()
    shutil.rmtree(tmp_path / "pocketmq")
    newest = max((tmp_path / "index").iterdir())
    newest.unlink()
    (tmp_path / "abort").touch()
    store = open_store(tmp_path)
    check(store)
    store.close()


def test_a_gap_in_the_log_wider_than_a_queue_file(tmp_path: Path) -> None:
    """Many messages are lost with a part of the log; those behind it are served under their offsets."""
    store = open_store(tmp_path)
    for number in range(200):
        store.append([message(b"%d" % number)])
    crash(store)
    for number in (1, 2):
        (tmp_path / "commitlog" / f"{number * 4096:020d}").unlink()
    store = open_store(tmp_path)
    found = drain(store)
    assert all(int(record.body) == record.queue_offset for record in found)
    assert found[-1].queue_offset == 199
    assert len(found) < 200 - 2 * 20
    store.close()


@pytest.mark.parametrize("stop", ["closed", "killed"])
def test_strange_entries_among_the_queues(tmp_path: Path, stop: str) -> None:
    """Files where directories belong are left alone, and nothing stops at them."""
    store = open_store(tmp_path)
    fill(store)
    crash(store) if stop == "killed" else store.close()
    (tmp_path / "consumequeue" / "T").mkdir(parents=True, exist_ok=True)
    (tmp_path / "consumequeue" / "notes").write_text("mine")
    (tmp_path / "consumequeue" / "T" / "7").write_text("mine")
    (tmp_path / "consumequeue" / "T" / "abc").mkdir()
    store = open_store(tmp_path)
    check(store)
    flush(store)
    maintain(store)
    assert store.writable == (True, "")
    store.close()
    assert (tmp_path / "consumequeue" / "notes").read_text() == "mine"


class Counting(FileSystem):
    """Says how many bytes of the commitlog were read."""

    def __init__(self) -> None:
        self.log_bytes = 0
        self._logs: set[int] = set()

    def open(self, path: StrPath, *, create: bool = False, readonly: bool = False) -> int:
        fd = super().open(path, create=create, readonly=readonly)
        if "/commitlog/" in str(path):
            self._logs.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self._logs.discard(fd)
        super().close(fd)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        data = super().pread(fd, length, offset)
        self.log_bytes += len(data) if fd in self._logs else 0
        return data


def end_of_units(data: bytearray) -> int:
    return -(-len(data.rstrip(b"\0")) // 20) * 20


def half_a_unit(path: Path) -> None:
    """A process was killed in the middle of a write."""
    damage(
        path,
        lambda data: data.__setitem__(slice(end_of_units(data) - 14, None), bytes(len(data) - end_of_units(data) + 14)),
    )


def a_lost_sector(path: Path) -> None:
    """The last unit reached the disk, the two before it did not."""
    damage(path, lambda data: data.__setitem__(slice(end_of_units(data) - 60, end_of_units(data) - 20), bytes(40)))


def torn_units(path: Path) -> None:
    """The end of one unit and the begin of the next are missing."""
    damage(path, lambda data: data.__setitem__(slice(end_of_units(data) - 50, end_of_units(data) - 30), bytes(20)))


def no_size(path: Path) -> None:
    """The name reached the disk, the size did not."""
    path.write_bytes(b"")


INSIDE = [half_a_unit, a_lost_sector, torn_units]  # of the newest file
WHOLE = [remove, zero, no_size, shorten]  # the first file that was made since the checkpoint
TORN = [(place, tear) for place in ("T/0", "T/1", "New/0", "Long/0") for tear in INSIDE]
TORN += [(place, tear) for place in ("T/0", "New/0", "Long/0", "index") for tear in WHOLE]


@pytest.mark.parametrize(("place", "tear"), TORN, ids=lambda part: getattr(part, "__name__", part))
def test_a_torn_tail_costs_no_scan_of_the_log(
    tmp_path: Path, place: str, tear: Callable[[Path], None], logs: list[structlog.typing.EventDict]
) -> None:
    """What was written behind the checkpoint may be there in any part: it is cut, and only that is put again."""
    store = open_store(tmp_path)
    fill(store, 800)
    flush(store)
    maintain(store)
    vouched = store.end_offset
    files_before = {*tmp_path.rglob("*")}
    fill(store, 15, first=800)
    for number in range(10):
        store.append([message(b"%d" % number, topic="New"), message(b"%d" % number, topic="Other")])
    for number in range(120):
        store.append([message(b"%d" % number, topic="Long", key=f"l{number}")])
    end = store.end_offset
    store._queues.write_pending(100)
    assert store._index is not None
    for _ in range(100):
        store._index.write_pending()
    crash(store)
    directory = tmp_path / place if place == "index" else tmp_path / "consumequeue" / place
    files = sorted(directory.iterdir())
    tear(next(file for file in files if file not in files_before) if tear in WHOLE else files[-1])
    fs = Counting()
    store = open_store(tmp_path, fs=fs)
    # Read by recovery and by dispatch, and what was reserved behind it; the whole log is far longer.
    assert fs.log_bytes <= 2 * (end - vouched) + 2 * 4096 < end
    check(store, 815)
    assert [int(record.body) for record in drain(store, "New")] == list(range(10))
    assert [int(record.body) for record in drain(store, "Long")] == list(range(120))
    assert [entry for entry in logs if entry["event"] == "consume_queue_rebuilt"] == []
    store.close()


def test_what_does_not_fit_is_said(tmp_path: Path, logs: list[structlog.typing.EventDict]) -> None:
    """A start that finds messages missing, or records that no queue leads to, does not keep it to itself."""
    store = open_store(tmp_path)
    for number in range(200):
        store.append([message(b"%d" % number)])
    crash(store)
    (tmp_path / "commitlog" / f"{4096:020d}").unlink()
    store = open_store(tmp_path)
    offsets = [record.queue_offset for record in drain(store)]
    (said,) = [entry for entry in logs if entry["event"] == "consume_queue_gap"]
    missing = sorted({*range(200)} - {*offsets})
    assert (said["topic"], said["queue_id"], said["expected"], said["queue_offset"]) == (
        "T",
        0,
        missing[0],
        missing[-1] + 1,
    )
    assert store._queues.anomalies.noted == []
    store.close()
