"""KvConfig: the name server's key-value configuration (namespace → key → value), kept in the file `kvConfigPath`.

The file has the official form, `{"configTable":{"namespace":{"key":"value"}}}`, so it can be handed over in either
direction. A change is in effect at once, and answered when it is on disk: `save_forever` writes whatever came since its
last turn with one file, so a thousand changes cost a few writes, and other connections are served in between.

A write that fails leaves the change in effect, is told to the tool that asked, and is tried again with the next change.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, Self

import msgspec
import structlog

from gateway.watermark import Watermark
from store.jsonfile import load_json, save_json

ORDER_TOPIC_CONFIG = "ORDER_TOPIC_CONFIG"
"""Topic → `broker-a:4;broker-b:4`; brokers get it with each registration, clients with routes if that is on."""

MAX_CHARACTERS = 2 * 1024 * 1024
"""Of all names and values. Whoever reaches the port may add some, and even if all of them are escaped (6 bytes each) a
namespace must fit into one answer."""

log = structlog.get_logger(__name__)


class KvConfigFull(Exception):
    """The change would bring the table above `MAX_CHARACTERS`; nothing was changed."""


class _File(msgspec.Struct, rename="camel"):
    config_table: dict[str, dict[str, str] | None] | None = None


class KvConfig:
    """The table and its file; `changes` counts changes, `settled` those that an attempt to write has covered."""

    def __init__(self, path: Path, tables: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self._path = path
        self._tables = {namespace: dict(table) for namespace, table in (tables or {}).items()}
        entries = ((key, value) for table in self._tables.values() for key, value in table.items())
        self._characters = sum(map(len, self._tables)) + sum(_size(key, value) for key, value in entries)
        self.changes = Watermark()
        self.settled = Watermark()
        self.problem: str | None = None
        """Why the latest write failed; None if it did not."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads the file (or its `.bak`); an absent one is an empty table. Raises OSError."""
        return cls(path, load_json(path, _decode))

    def get(self, namespace: str, key: str) -> str | None:
        """The value of a key, or None."""
        return self._tables.get(namespace, {}).get(key)

    def table(self, namespace: str) -> Mapping[str, str] | None:
        """All keys of a namespace; None if it never had one."""
        return self._tables.get(namespace)

    def put(self, namespace: str, key: str, value: str) -> int:
        """Sets a key; returns the number of the change, for `settled`. Raises KvConfigFull."""
        before = self._tables.get(namespace, {}).get(key)
        growth = _size(key, value) - (_size(key, before) if before is not None else 0)
        if namespace not in self._tables:
            growth += len(namespace)
        if growth > 0 and self._characters + growth > MAX_CHARACTERS:
            raise KvConfigFull(f"the KV configuration would exceed {MAX_CHARACTERS} characters")
        self._tables.setdefault(namespace, {})[key] = value
        self._characters += growth
        return self._changed()

    def delete(self, namespace: str, key: str) -> int:
        """Removes a key, if it is there; returns the number of the change. The namespace stays, as officially."""
        value = self._tables.get(namespace, {}).pop(key, None)
        if value is None:
            return self.changes.offset
        self._characters -= _size(key, value)
        return self._changed()

    def _changed(self) -> int:
        self.changes.advance(self.changes.offset + 1)
        return self.changes.offset

    def encode(self) -> bytes:
        """The content of the file."""
        return msgspec.json.encode({"configTable": self._tables})

    def save_step(self) -> None:
        """Writes all changes made so far, if any is not written; a failure is kept in `problem`."""
        target = self.changes.offset
        if self.problem is None and target == self.settled.offset:
            return
        try:
            save_json(self._path, self.encode())
        except OSError as error:
            self.problem = f"{self._path}: {error.strerror or error}"
            log.error("kv_config_not_saved", file=str(self._path), reason=error.strerror or str(error))
        else:
            self.problem = None
        self.settled.advance(target)

    async def save_forever(self) -> NoReturn:
        """Writes each change soon after it was made."""
        while True:
            await self.changes.wait_past(self.settled.offset)
            self.save_step()


def _decode(data: bytes) -> dict[str, dict[str, str]]:
    tables = msgspec.json.decode(data, type=_File).config_table or {}  # its errors are ValueErrors
    return {namespace: table for namespace, table in tables.items() if table is not None}


def _size(key: str, value: str) -> int:
    return len(key) + len(value)
