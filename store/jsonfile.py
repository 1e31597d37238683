"""JSON state on disk: ``config/topics.json`` and its like, each with the previous version as ``.bak``.

Owns how such a file is replaced and found again. At every moment, also after power loss, the name or its ``.bak``
holds a whole version: the new text is on disk before any name changes, the old file becomes ``.bak``, then the
new one takes the name. The official broker reads both names in the same order.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeVar, overload

import structlog

from protocol.errors import ProtocolError
from store.files import FileSystem, StrPath

log = structlog.get_logger(__name__)

T = TypeVar("T")
_FILES = FileSystem()
_READ_STEP = 1 << 20


@overload
def load_json(path: StrPath, *, fs: FileSystem = ...) -> bytes | None: ...
@overload
def load_json(path: StrPath, decode: Callable[[bytes], T], *, fs: FileSystem = ...) -> T | None: ...
def load_json(
    path: StrPath, decode: Callable[[bytes], T] | None = None, *, fs: FileSystem = _FILES
) -> T | bytes | None:
    """The file (decoded, if asked), or its ``.bak`` if it is missing, empty or damaged; None if neither is good.

    ``decode`` tells by ValueError or ProtocolError that a text is damaged. A damaged file is kept beside as
    ``.damaged``, because the next save would take its place. OSError if a file cannot be read.
    """
    name = os.fspath(path)
    for candidate in (name, name + ".bak"):
        data = _read(fs, candidate)
        if data is None:
            continue
        try:
            if not data:
                raise ValueError("it is empty")
            value = data if decode is None else decode(data)
        except (ValueError, ProtocolError) as error:
            log.warning("config_file_damaged", file=candidate, reason=str(error), kept_as=candidate + ".damaged")
            fs.rename(candidate, candidate + ".damaged")
            continue
        if candidate != name:
            log.warning("config_file_from_backup", file=candidate)
        return value
    return None


def save_json(path: StrPath, data: bytes, *, fs: FileSystem = _FILES) -> None:
    """Replace the file; when this returns, the new version survives power loss. Any thread. OSError."""
    name = os.fspath(path)
    directory = os.path.dirname(name) or "."
    temporary = name + ".tmp"
    fs.makedirs(directory)
    fd = fs.open(temporary, create=True)
    try:
        fs.truncate(fd, 0)
        fs.write_all(fd, data, 0)
        fs.fdatasync(fd)
    finally:
        fs.close(fd)
    if fs.stat(name) is not None:
        fs.rename(name, name + ".bak")
    fs.rename(temporary, name)
    fs.sync_directory(directory)


def _read(fs: FileSystem, path: str) -> bytes | None:
    try:
        fd = fs.open(path, readonly=True)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    try:
        parts: list[bytes] = []
        offset = 0
        while part := fs.pread(fd, _READ_STEP, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)
    finally:
        fs.close(fd)
