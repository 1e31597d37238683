"""When a table goes to disk, and what a failing disk does to it."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.broker import configfile
from gateway.broker.configfile import ConfigFile, EntryTexts
from protocol.bodies import DataVersion, TopicConfig, TopicTableBody
from tests.gateway.broker.fakes import Clock


class Table:
    """Something with a file; `slow_ms` is how long writing takes."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.value = 0
        self.path = path
        self.clock = clock
        self.slow_ms = 0
        self.file = ConfigFile(path, self.encode, clock)

    def encode(self) -> bytes:
        self.clock.advance(self.slow_ms)
        return b"%d" % self.value

    def change(self) -> None:
        self.value += 1
        self.file.changed()

    @property
    def on_disk(self) -> int | None:
        return int(self.path.read_bytes()) if self.path.exists() else None


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(tmp_path: Path, clock: Clock) -> Table:
    return Table(tmp_path / "config" / "table.json", clock)


def test_a_single_change_is_on_disk_at_once(table: Table, clock: Clock) -> None:
    table.change()
    assert table.on_disk == 1
    clock.advance(100)
    table.change()
    assert table.on_disk == 2
    assert not table.file.dirty


def test_changes_that_follow_each_other_closely_are_written_together(table: Table, clock: Clock) -> None:
    table.change()
    for _ in range(10):
        clock.advance(9)
        table.change()
    assert (table.on_disk, table.file.dirty) == (1, True)
    table.file.save_if_dirty()
    assert (table.on_disk, table.file.dirty) == (11, False)


def test_a_slow_write_makes_the_pause_longer(table: Table, clock: Clock) -> None:
    table.slow_ms = 50
    table.change()
    clock.advance(999)
    table.change()
    assert table.on_disk == 1
    clock.advance(1)
    table.change()
    assert table.on_disk == 3


def test_a_clock_that_went_back_delays_nothing(table: Table, clock: Clock) -> None:
    table.change()
    clock.advance(-3_600_000)
    table.change()
    assert table.on_disk == 2


def test_saving_by_name_does_not_wait(table: Table) -> None:
    table.change()
    table.value = 7
    table.file.save()
    assert table.on_disk == 7


def test_the_version_before_stays(table: Table) -> None:
    table.change()
    table.value = 7
    table.file.save()
    assert (table.path.parent / "table.json.bak").read_bytes() == b"1"


def fail(path: Path, data: bytes) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_logged_once_and_tried_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(configfile, "save_json", fail)
        table.change()
        table.file.save_if_dirty()
        assert table.file.dirty
        with pytest.raises(OSError, match="No space"):
            table.file.save()
    table.file.save_if_dirty()
    assert table.on_disk == 1
    assert [entry["event"] for entry in logs] == ["config_file_not_saved"]


def test_a_write_in_a_thread_has_its_own_text(table: Table) -> None:
    assert table.file.begin_save() is None
    table.file.dirty = True
    job = table.file.begin_save()
    assert job is not None
    table.value = 5
    table.file.dirty = True
    job.run()
    table.file.save_ended(None)
    assert (table.on_disk, table.file.dirty) == (0, True)


def test_a_failed_write_in_a_thread_is_due_again(table: Table) -> None:
    table.file.dirty = True
    job = table.file.begin_save()
    assert job is not None
    with capture_logs() as logs:
        table.file.save_ended(OSError(28, "No space left on device"))
        assert table.file.dirty
        table.file.save_if_dirty()
    assert [entry["event"] for entry in logs] == ["config_file_not_saved", "config_file_saved_again"]


def test_texts_of_entries_are_those_of_the_whole_body() -> None:
    texts = EntryTexts()
    version = DataVersion(counter=3, timestamp=5)
    for names in ([], ["a"], ["a", 'b\t\n"ä'], ['b\t\n"ä']):
        table = {name: TopicConfig(topic_name=name) for name in names}
        body = TopicTableBody(data_version=version, topic_config_table=table)
        for pretty in (True, False):
            assert texts.encode(version, "topicConfigTable", table, pretty=pretty) == body.encode(pretty=pretty)


def test_texts_of_entries_that_are_gone_are_forgotten() -> None:
    texts = EntryTexts()
    version = DataVersion(counter=3, timestamp=5)
    for number in range(1000):
        name = f"topic-{number}"
        texts.encode(version, "topicConfigTable", {name: TopicConfig(topic_name=name)}, pretty=True)
    assert len(texts._texts) <= 103
