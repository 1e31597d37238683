"""The check tool: silent about good directories, exact about damaged ones, and able to remake what is derived."""

import io
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from store.check import DAMAGED, GOOD, NOT_CHECKED, check_main
from store.consumequeue import ConsumeQueues
from store.dispatch import DelayLevels, Dispatcher
from store.files import FileSystem
from store.findings import MOST_FILES, MOST_PER_FILE, Findings
from store.index import KeyIndex
from store.logfiles import LogFiles
from store.options import StoreOptions
from store.progress import Bar, Lines, Silent, make_progress
from store.queuefiles import BLANK_UNIT, UNIT_SIZE
from store.scan import walk
from tests.store.making import bodies, crash, damage, message, open_store

GOLDEN = Path(__file__).parent.parent / "data" / "store"
SIZES = ["maxHashSlotNum=50", "maxIndexNum=100"]
QUEUE_SIZE = "mappedFileSizeConsumeQueue=400"
GOLDEN_SIZES = ["maxHashSlotNum=50", "maxIndexNum=200"]


def fill(root: Path, count: int = 60) -> None:
    """Two queues over several log, queue and index files, stopped in order."""
    store = open_store(root)
    for n in range(count):
        store.append([message(b"%03d" % n, queue_id=n % 2, key=f"key{n}", tag="tag")])
    store.close()
    (root / "config").mkdir()
    (root / "config" / "topics.json").write_text('{"topicConfigTable":{"T":{}}}')
    (root / "config" / "consumerOffset.json").write_text('{"offsetTable":{"T@g":{0:30,1:30}}}')


def check(root: Path, *words: str) -> int:
    return check_main([str(root), *SIZES, "--quiet", *words])


def queue_path(root: Path, base: int, queue_id: int = 0) -> Path:
    return root / "consumequeue" / "T" / str(queue_id) / f"{base:020d}"


def index_path(root: Path) -> Path:
    return min((root / "index").iterdir())


def log_path(root: Path, base: int) -> Path:
    return root / "commitlog" / f"{base:020d}"


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store") / "data"
    fill(root)
    return root


@pytest.fixture
def root(tmp_path: Path, pristine: Path) -> Path:
    """A good store of sixty messages, each test's own."""
    return Path(shutil.copytree(pristine, tmp_path / "store"))


class TestGood:
    def test_nothing_is_said_and_nothing_is_changed(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = contents(root)
        assert check(root) == GOOD
        assert contents(root) == before
        out = capsys.readouterr().out
        assert out.startswith("good: 60 records, ")
        assert len(out.splitlines()) == 1

    @pytest.mark.parametrize("version", ["4.8.0", "4.9.4", "5.3.3"])
    def test_stores_of_official_brokers(self, tmp_path: Path, version: str, capsys: pytest.CaptureFixture[str]) -> None:
        root = shutil.copytree(GOLDEN / version, tmp_path / "store")
        assert check_main([str(root), *GOLDEN_SIZES, "--quiet"]) == GOOD
        assert len(capsys.readouterr().out.splitlines()) == 1

    @pytest.mark.parametrize("version", ["4.8.0", "4.9.4", "5.3.3"])
    def test_derived_files_made_here_are_those_of_the_official_brokers(self, tmp_path: Path, version: str) -> None:
        fs = FileSystem()
        log = LogFiles(str(GOLDEN / version / "commitlog"), 16384, fs)
        queues = ConsumeQueues(tmp_path / "consumequeue", 1000, fs)
        index = KeyIndex(tmp_path / "index", fs, 50, 200)
        delays = DelayLevels(StoreOptions().message_delay_level)
        dispatcher = Dispatcher(queues, index, delays, log.read, log.file_size)
        for records in walk(log.read, log.file_size, log.bases[0], log.bases[-1] + log.file_size, lambda *_: None):
            for record in records:
                dispatcher.put_record(record)
        queues.flush()
        index.flush()

        def units(root: Path) -> dict[Path, bytes]:
            return {path.relative_to(root): data for path, data in contents(root / "consumequeue").items()}

        assert units(tmp_path) == units(GOLDEN / version)
        official = [path.read_bytes() for path in sorted((GOLDEN / version / "index").iterdir())]
        assert [path.read_bytes() for path in sorted((tmp_path / "index").iterdir())] == official

    def test_an_empty_store(self, tmp_path: Path) -> None:
        open_store(tmp_path).close()
        assert check(tmp_path) == GOOD

    def test_a_killed_broker_leaves_what_the_next_start_repairs(
        self, root: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = open_store(root)
        for n in range(7):
            store.append([message(b"more", key=f"more{n}")])
        crash(store)
        assert check(root) == GOOD
        out = capsys.readouterr().out
        assert "consumequeue/T/0: ends 7 messages before the log; the next start adds them" in out
        assert "7 keys from log offset" in out

    def test_retention_leaves_a_good_store(self, root: Path) -> None:
        store = open_store(root)
        store.close()
        os.unlink(log_path(root, 0))
        store = open_store(root)
        store.close()
        assert check(root) == GOOD

    def test_a_topic_deleted_and_made_again(self, root: Path) -> None:
        store = open_store(root)
        store.delete_queues("T")
        first = store.append([message(b"anew", key="anew")])
        assert first
        store.close()
        assert check(root) == GOOD


def flip(position: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[position] ^= 0xFF

    return change


def put(position: int, value: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[position : position + len(value)] = value

    return change


class TestDamage:
    """Each case: what is done to which file, and what the report must say of it."""

    @pytest.mark.parametrize(
        ("name", "change", "said"),
        [
            (lambda root: log_path(root, 0), flip(90), "at byte 0: CRC of the body does not match"),
            (lambda root: log_path(root, 4096), flip(5), "at byte 0: magic number"),
            (lambda root: queue_path(root, 0), flip(7), "at byte 0: "),
            (
                lambda root: queue_path(root, 0),
                flip(3 * UNIT_SIZE + 19),
                "at byte 60: queue offset 3: the tags code is",
            ),
            (lambda root: queue_path(root, 400), put(100, BLANK_UNIT), "at byte 100: queue offset 25: a blank stands"),
            (
                lambda root: queue_path(root, 400),
                put(200, b"\0\0\0\0\0\1"),
                "at byte 205: not empty behind the last unit",
            ),
            (
                lambda root: queue_path(root, 400),
                put(180, bytes(20)),
                "at byte 180: queue offset 29: the queue ends here",
            ),
            (lambda root: index_path(root), flip(43), "at byte 40: slot 0 leads to entry"),
            (lambda root: index_path(root), flip(40 + 200 + 5 * 20 + 4), "entry 5: its commitlog offset"),
            (
                lambda root: index_path(root),
                flip(40 + 200 + 5 * 20 + 3),
                "at byte 340: entry 5: the record at log offset",
            ),
            (lambda root: index_path(root), flip(40 + 200 + 5 * 20 + 14), "at byte 340: entry 5: its time is"),
            (lambda root: index_path(root), flip(23), "at byte 16: header says log offsets"),
            (lambda root: index_path(root), put(36, struct.pack(">i", 9999)), "header counts 9999 entries of 100"),
            (lambda root: root / "config" / "topics.json", put(3, b"\0"), "not readable"),
            (lambda root: root / "checkpoint", put(8, b"\x7f"), "at byte 8: logics_ms is"),
        ],
    )
    def test_it_is_said_where_and_what(
        self,
        root: Path,
        name: Callable[[Path], Path],
        change: Callable[[bytearray], None],
        said: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path = name(root)
        damage(path, change)
        assert check(root) == DAMAGED
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"DAMAGE: {path}")]
        assert any(said in line for line in lines), lines

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda root: os.truncate(log_path(root, 4096), 4000), "00004096: 4000 bytes long instead of 4096"),
            (lambda root: (root / "commitlog" / "notes").write_text("x"), "notes: not a commitlog file"),
            (lambda root: os.truncate(queue_path(root, 400), 300), "00400: 300 bytes long instead of 400"),
            (lambda root: os.unlink(queue_path(root, 0)), "consumequeue/T/0/"),
            (lambda root: shutil.rmtree(root / "consumequeue" / "T" / "1"), "T/1: missing; the log has 30 messages"),
            (lambda root: shutil.rmtree(root / "index"), "index: 60 keys behind the last indexed record are missing"),
            (lambda root: os.truncate(index_path(root), 50), "50 bytes long instead of 2240"),
            (lambda root: os.truncate(root / "checkpoint", 10), "checkpoint: 10 bytes long"),
            (lambda root: os.truncate(root / "config" / "topics.json", 0), "topics.json: empty; the .bak is missing"),
        ],
    )
    def test_whole_files(
        self, root: Path, change: Callable[[Path], object], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        change(root)
        assert check(root) == DAMAGED
        assert said in capsys.readouterr().out

    def test_a_log_file_between_others(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        fill(tmp_path, 120)
        os.unlink(log_path(tmp_path, 4096))
        assert check(tmp_path) == DAMAGED
        assert "00004096: missing between other files" in capsys.readouterr().out

    def test_a_queue_that_only_held_deleted_messages(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Without its files it would number its next message 0, and its consumers would wait for a long time."""
        fill(tmp_path, 1)
        store = open_store(tmp_path)
        for n in range(40):
            store.append([message(b"other", topic="U", key=f"other{n}")])
        store.close()
        os.unlink(log_path(tmp_path, 0))
        open_store(tmp_path).close()
        assert check(tmp_path) == GOOD
        shutil.rmtree(tmp_path / "consumequeue" / "T")
        assert check(tmp_path) == DAMAGED
        assert "T/0: missing; its messages are deleted, and it had reached offset 1" in capsys.readouterr().out

    def test_messages_behind_damage_are_still_compared(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        damage(log_path(root, 0), flip(90))
        assert check(root) == DAMAGED
        out = capsys.readouterr().out
        assert "good records go on" in out
        assert "59 records" in out

    def test_every_byte_of_a_unit_counts(self, root: Path) -> None:
        for byte in range(UNIT_SIZE):
            damage(queue_path(root, 0, 1), flip(7 * UNIT_SIZE + byte))
            assert check(root) == DAMAGED, byte
            damage(queue_path(root, 0, 1), flip(7 * UNIT_SIZE + byte))
        assert check(root) == GOOD

    def test_a_long_list_is_shortened(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        damage(index_path(root), put(40, bytes(200)))
        assert check(root) == DAMAGED
        out = capsys.readouterr().out.splitlines()
        assert len([line for line in out if line.startswith("DAMAGE")]) == MOST_PER_FILE
        assert "more findings" in out[-2]


class TestNotes:
    def test_a_group_in_front_of_its_queue(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (root / "config" / "consumerOffset.json").write_text('{"offsetTable":{"T@g":{0:31}},"dataVersion":{}}')
        assert check(root) == GOOD
        assert "note: " in (out := capsys.readouterr().out)
        assert "group g is at 31 of T-0, which ends at 30" in out

    def test_a_table_that_only_its_backup_holds(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        table = root / "config" / "topics.json"
        table.rename(f"{table}.bak")
        assert check(root) == GOOD
        assert "topics.json: missing; a broker takes the .bak" in capsys.readouterr().out
        table.write_text("{")
        assert check(root) == DAMAGED
        assert "a broker takes the .bak" in capsys.readouterr().out

    def test_no_checkpoint(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        os.unlink(root / "checkpoint")
        assert check(root) == GOOD
        assert "checkpoint: missing" in capsys.readouterr().out

    def test_queues_of_an_unknown_topic(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (root / "config" / "topics.json").write_text('{"topicConfigTable":{}}')
        shutil.rmtree(root / "consumequeue" / "T")
        assert check(root) == GOOD
        assert "missing, as the topic is not configured" in capsys.readouterr().out


class TestNotChecked:
    @pytest.mark.parametrize("what", ["absent", "no store"])
    def test_a_directory_that_is_no_store(self, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
        root = tmp_path / "absent" if what == "absent" else tmp_path
        assert check(root) == NOT_CHECKED
        assert str(root) in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("word", ["nonsense", "listenPort=3", "maxIndexNum=x"])
    def test_a_wrong_option(self, root: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert check(root, word) == NOT_CHECKED
        assert word.partition("=")[0] in capsys.readouterr().err

    def test_only_the_directory_is_required(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            check_main([])
        assert capsys.readouterr().err.endswith("the following arguments are required: DIR\n")

    def test_sizes_that_cannot_be_right(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert check(root, "mappedFileSizeCommitLog=8192") == NOT_CHECKED
        assert "mappedFileSizeCommitLog" in capsys.readouterr().err

    @pytest.mark.parametrize("words", [[], ["--rebuild"]])
    def test_a_running_broker(self, root: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        store = open_store(root)
        assert check(root, *words) == NOT_CHECKED
        assert "a broker is running" in capsys.readouterr().err
        store.close()
        assert check(root, *words) == GOOD

    def test_a_broker_in_another_process(self, root: Path) -> None:
        holder = (
            "import fcntl, sys; file = open(sys.argv[1], 'r+'); fcntl.lockf(file, fcntl.LOCK_EX, 1, 0);"
            "print('held', flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", holder, str(root / "lock")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            assert check(root) == NOT_CHECKED
            process.communicate()
        assert check(root) == GOOD


class TestRebuild:
    @pytest.mark.parametrize(
        "change",
        [
            lambda root: shutil.rmtree(root / "consumequeue"),
            lambda root: shutil.rmtree(root / "index"),
            lambda root: damage(queue_path(root, 0), flip(UNIT_SIZE + 7)),
            lambda root: damage(queue_path(root, 0), put(0, bytes(400))),
            lambda root: damage(queue_path(root, 400), put(100, BLANK_UNIT)),
            lambda root: os.truncate(queue_path(root, 400), 10),
            lambda root: damage(index_path(root), put(40, b"\x55" * 1000)),
            lambda root: os.truncate(index_path(root), 0),
        ],
    )
    def test_derived_files_are_made_again(
        self, root: Path, change: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = contents(root / "consumequeue")
        change(root)
        assert check(root, "--rebuild", QUEUE_SIZE) == GOOD
        out = capsys.readouterr().out
        assert "rebuilding" in out
        assert out.splitlines()[-1].startswith("good: 60 records")
        assert contents(root / "consumequeue") == before
        store = open_store(root)
        assert bodies(store) == [b"%03d" % n for n in range(0, 60, 2)]
        assert all(len(store.query_keys("T", f"key{n}", 9, 0, 1 << 62).records) == 1 for n in range(60))
        store.close()

    def test_a_good_store_is_left_alone(self, root: Path) -> None:
        before = contents(root)
        assert check(root, "--rebuild") == GOOD
        assert contents(root) == before

    def test_damage_of_the_log_stays_damage(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        damage(log_path(root, 0), flip(90))
        shutil.rmtree(root / "index")
        assert check(root, "--rebuild") == DAMAGED
        assert "CRC of the body" in capsys.readouterr().out


class TestFindings:
    def test_there_is_a_bound(self) -> None:
        findings = Findings()
        for n in range(MOST_FILES + 5):
            for _ in range(MOST_PER_FILE + 1):
                findings.damage(f"file{n}", "bad")
        assert len(findings.lines) == MOST_FILES * MOST_PER_FILE
        assert findings.left_out + len(findings.lines) == findings.damages == (MOST_FILES + 5) * (MOST_PER_FILE + 1)


class TestProgress:
    def test_a_line_each_two_seconds(self) -> None:
        now = 0.0
        stream = io.StringIO()
        progress = Lines(stream, lambda: now)
        for second in range(5):
            now = float(second)
            progress("reading", second, 8)
        progress.close()
        assert stream.getvalue() == "reading: 25 %\nreading: 50 %\n"

    def test_quiet_is_silent_and_a_pipe_gets_lines(self) -> None:
        assert isinstance(make_progress(sys.stderr, quiet=True), Silent)
        assert isinstance(make_progress(io.StringIO()), Lines)

    def test_a_terminal_gets_a_bar_if_rich_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setitem(sys.modules, "rich.progress", None)
        assert isinstance(make_progress(Terminal()), Lines)

    def test_a_bar(self) -> None:
        rich = pytest.importorskip("rich.progress")
        bar = Bar(rich)
        bar("reading", 1, 2)
        bar("reading", 2, 2)
        bar.close()
