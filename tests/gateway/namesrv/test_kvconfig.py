"""KvConfig: what operators write is in effect at once, on disk soon, and read back by either make."""

import json
from pathlib import Path

import pytest
import trio

from gateway.namesrv.kvconfig import MAX_CHARACTERS, KvConfig, KvConfigFull


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "namesrv" / "kvConfig.json"


def test_a_key_is_set_read_and_deleted(path: Path) -> None:
    """A namespace stays when its last key goes, as officially: its list is then empty, not missing."""
    kv = KvConfig.load(path)
    assert (kv.get("n", "k"), kv.table("n")) == (None, None)
    kv.put("n", "k", "v")
    kv.put("n", "k2", "v2")
    assert (kv.get("n", "k"), kv.table("n")) == ("v", {"k": "v", "k2": "v2"})
    kv.delete("n", "k")
    kv.delete("n", "k2")
    assert (kv.get("n", "k"), kv.table("n")) == (None, {})


def test_deleting_what_is_not_there_is_no_change(path: Path) -> None:
    """Nothing has to be written, so the answer need not wait."""
    kv = KvConfig.load(path)
    assert kv.delete("n", "k") == 0
    kv.save_step()
    assert not path.exists()


def test_the_file_has_the_official_form(path: Path) -> None:
    """An official name server can take it over."""
    kv = KvConfig.load(path)
    kv.put("ORDER_TOPIC_CONFIG", "T", "broker-a:4;broker-b:4")
    kv.put("n", "schlüssel", 'wert "1"\n')
    kv.save_step()
    assert json.loads(path.read_bytes()) == {
        "configTable": {"ORDER_TOPIC_CONFIG": {"T": "broker-a:4;broker-b:4"}, "n": {"schlüssel": 'wert "1"\n'}}
    }
    again = KvConfig.load(path)
    assert again.get("n", "schlüssel") == 'wert "1"\n'
    assert again.encode() == kv.encode()


@pytest.mark.parametrize("text", ["{}", '{"configTable":null}', '{"configTable":{"n":null}}', '{"other":1}'])
def test_files_without_entries(path: Path, text: str) -> None:
    """What an official server may have written with nothing in it."""
    path.parent.mkdir()
    path.write_text(text)
    kv = KvConfig.load(path)
    assert kv.table("n") is None


def test_a_damaged_file_is_replaced_by_its_backup(path: Path) -> None:
    """The version before the last one is better than none, and the damaged text is kept for a person to see."""
    kv = KvConfig.load(path)
    kv.put("n", "k", "old")
    kv.save_step()
    kv.put("n", "k", "new")
    kv.save_step()
    path.write_text('{"configTable":{"n":')
    assert KvConfig.load(path).get("n", "k") == "old"
    assert path.with_name(path.name + ".damaged").exists()


def test_the_table_is_bounded(path: Path) -> None:
    """At the bound a change is refused as a whole; replacing and deleting make room again."""
    kv = KvConfig.load(path)
    kv.put("n", "k", "v" * (MAX_CHARACTERS - 2))
    with pytest.raises(KvConfigFull):
        kv.put("n", "l", "")
    with pytest.raises(KvConfigFull):
        kv.put("m", "", "")
    assert (kv.get("n", "l"), kv.table("m")) == (None, None)
    kv.put("n", "k", "v" * (MAX_CHARACTERS - 3))
    kv.put("n", "l", "")
    kv.delete("n", "k")
    kv.put("n", "k", "v" * (MAX_CHARACTERS - 3))


def test_the_bound_holds_after_a_restart(path: Path) -> None:
    """What was loaded counts as much as what was put."""
    kv = KvConfig.load(path)
    kv.put("n", "k", "v" * (MAX_CHARACTERS - 2))
    kv.save_step()
    with pytest.raises(KvConfigFull):
        KvConfig.load(path).put("n", "l", "")


async def test_many_changes_share_a_write(path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A flood of changes costs one file, and each is settled when it is in it."""
    kv = KvConfig.load(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kv.save_forever)
        for number in range(1000):
            kv.put("n", f"k{number}", "v")
        with trio.fail_after(1):
            assert await kv.settled.wait_for(1000)
        nursery.cancel_scope.cancel()
    assert KvConfig.load(path).encode() == kv.encode()
    assert not path.with_name(path.name + ".bak").exists()


async def test_a_failed_write_is_told_and_tried_again(path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The change stays in effect; the next one brings both to disk."""
    path.parent.write_text("a file where the directory should be")
    kv = KvConfig.load(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kv.save_forever)
        await kv.settled.wait_for(kv.put("n", "k", "v"))
        assert str(path) in (kv.problem or "")
        assert kv.get("n", "k") == "v"
        path.parent.unlink()
        await kv.settled.wait_for(kv.put("n", "k2", "v2"))
        assert kv.problem is None
        nursery.cancel_scope.cancel()
    assert KvConfig.load(path).table("n") == {"k": "v", "k2": "v2"}
