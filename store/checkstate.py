"""Look at the small files of a store directory: JSON tables, checkpoint, abort. Reads only, and renames nothing."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec

from protocol.errors import ProtocolError
from protocol.javajson import Reader
from store.checkpoint import Times
from store.files import FileSystem
from store.findings import Findings
from store.manifest import FILE as MANIFEST
from store.manifest import Manifest
from store.queue import ConsumeQueue

_DAY_MS = 86_400_000
_MOST_BYTES = 64 << 20


class _Offsets(msgspec.Struct, rename="camel"):
    offset_table: dict[str, dict[int, int]] = {}


_TABLE = Reader(dict[str, object], "text")
_OFFSETS = Reader(_Offsets, "text")


def read_file(fs: FileSystem, path: str) -> bytes | None:
    """The whole file; None if it is not there. OSError."""
    status = fs.stat(path)
    if status is None or status.is_directory:
        return None
    fd = fs.open(path, readonly=True)
    try:
        return fs.pread(fd, min(status.size, _MOST_BYTES), 0)
    finally:
        fs.close(fd)


def check_tables(root: str, fs: FileSystem, findings: Findings) -> None:
    """Every table of ``config/`` must be one that a broker can read, or have a good ``.bak``."""
    directory = f"{root}/config"
    names = fs.listdir(directory)
    tables = {name.removesuffix(".bak") for name in names if name.endswith((".json", ".json.bak"))}
    for name in sorted(tables):
        path = f"{directory}/{name}"
        wrong = _complaint(read_file(fs, path))
        if wrong is None:
            continue
        backup = _complaint(read_file(fs, path + ".bak"))
        if wrong == "missing" and backup is None:
            findings.note(path, "missing; a broker takes the .bak")
        elif backup is None:
            findings.damage(path, f"{wrong}; a broker takes the .bak")
        elif wrong != "missing" or backup != "missing":
            findings.damage(path, f"{wrong}; the .bak is {backup}")


def _complaint(data: bytes | None) -> str | None:
    if data is None:
        return "missing"
    if not data.strip():
        return "empty"
    try:
        _TABLE.decode(data)
    except ProtocolError as error:
        return f"not readable: {error}"
    return None


def configured_topics(root: str, fs: FileSystem) -> frozenset[str] | None:
    """Names of the topic table; None if there is none that can be read."""
    for name in ("topics.json", "topics.json.bak"):
        data = read_file(fs, f"{root}/config/{name}")
        try:
            table = _TABLE.decode(data or b"").get("topicConfigTable")
        except ProtocolError:
            continue
        if isinstance(table, dict):
            return frozenset(table)
    return None


def known_queues(root: str, fs: FileSystem) -> dict[tuple[str, int], int] | None:
    """The queues of our manifest with their ends; None if no broker of ours was here last."""
    data = read_file(fs, f"{root}/{MANIFEST}")
    try:
        manifest = msgspec.json.decode(data or b"", type=Manifest)
    except msgspec.DecodeError:
        return None
    return {(queue.topic, queue.queue_id): queue.max_offset for queue in manifest.queues}


def check_offsets(root: str, fs: FileSystem, queues: Iterable[ConsumeQueue], findings: Findings) -> None:
    """Offsets of groups that lie behind the end of their queue: new messages would be skipped."""
    path = f"{root}/config/consumerOffset.json"
    data = read_file(fs, path)
    try:
        table = _OFFSETS.decode(data or b"{}").offset_table
    except ProtocolError:
        return  # said by check_tables, or of a newer version
    ends = {queue.name: queue.max_offset for queue in queues}
    for name, offsets in table.items():
        topic, _, group = name.partition("@")
        for queue_id, offset in offsets.items():
            end = ends.get((topic, queue_id), 0)
            if offset > end:
                findings.note(path, f"group {group} is at {offset} of {topic}-{queue_id}, which ends at {end}")


def check_checkpoint(root: str, fs: FileSystem, now_ms: int, findings: Findings) -> None:
    path = f"{root}/checkpoint"
    data = read_file(fs, path)
    if data is None:
        findings.note(path, "missing; a broker reads the whole commitlog when it starts")
    elif len(data) < 24:
        findings.damage(path, f"{len(data)} bytes long")
    else:
        times = Times(*struct.unpack_from(">qqq", data))
        for position, (name, time) in enumerate(times._asdict().items()):
            if not 0 <= time <= now_ms + _DAY_MS:
                findings.damage(path, f"{name} is {time}, no time of the past", position * 8)
