"""JSON state: one whole version is there at every moment, and a damaged one is kept aside."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from protocol.errors import ProtocolError
from store.jsonfile import load_json, save_json
from tests.fakes import PowerLossFiles, PowerLost


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


def decode(data: bytes) -> Any:
    return json.loads(data)


def test_save_and_load(tmp_path: Path) -> None:
    """The directory is made; the previous version is the .bak."""
    path = tmp_path / "config" / "topics.json"
    assert load_json(path) is None
    save_json(path, b'{"a":1}')
    save_json(path, b'{"a":2}')
    assert load_json(path) == b'{"a":2}'
    assert load_json(path, decode) == {"a": 2}
    assert (tmp_path / "config" / "topics.json.bak").read_bytes() == b'{"a":1}'
    assert sorted(file.name for file in path.parent.iterdir()) == ["topics.json", "topics.json.bak"]


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b'{"a":'])
def test_damaged_file_falls_back_and_is_kept(
    tmp_path: Path, damage: bytes, logs: list[structlog.typing.EventDict]
) -> None:
    """The .bak is used, and the next save does not destroy what may be repaired by hand."""
    path = tmp_path / "t.json"
    save_json(path, b"[1]")
    save_json(path, b"[2]")
    path.write_bytes(damage)
    assert load_json(path, decode) == [1]
    assert (tmp_path / "t.json.damaged").read_bytes() == damage
    assert [entry["event"] for entry in logs] == ["config_file_damaged", "config_file_from_backup"]
    save_json(path, b"[3]")
    assert load_json(path, decode) == [3]


def test_protocol_errors_count_as_damage(tmp_path: Path) -> None:
    """Typed bodies raise them."""

    def refuse(data: bytes) -> None:
        raise ProtocolError("no")

    path = tmp_path / "t.json"
    save_json(path, b"[1]")
    assert load_json(path, refuse) is None
    assert (tmp_path / "t.json.damaged").exists()


def test_missing_file_with_a_backup(tmp_path: Path) -> None:
    """Between the two renames of a save only the .bak is there."""
    path = tmp_path / "t.json"
    save_json(path, b"[1]")
    path.rename(tmp_path / "t.json.bak")
    assert load_json(path, decode) == [1]


def test_every_loss_of_power_leaves_a_whole_version() -> None:
    """The version before or the one being saved; the one that was saved, once save returned."""
    for seed in range(300):
        rng = random.Random(seed)
        disk = PowerLossFiles()
        disk.rng = rng
        saved = -1
        disk.crash_at = rng.randint(1, 40)
        number = 0
        try:
            for number in range(5):
                save_json("/config/t.json", json.dumps([number] * 400).encode(), fs=disk)
                saved = number
        except PowerLost:
            pass
        found = load_json("/config/t.json", decode, fs=disk.lose_power(rng))
        if found is None:
            assert saved == -1, seed
        else:
            assert found in ([saved] * 400, [number] * 400), seed
