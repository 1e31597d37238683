"""ConfigFile: one of the broker's JSON tables on disk (`config/topics.json` and its like).

A table calls `changed` after each change. The file is then written at once, unless its last write is too recent: then
it stays dirty for the next `save_if_dirty`, which the broker calls every second and at its end. So the creation of one
topic is on disk before its first message is acknowledged, and the creation of ten thousand does not write a growing
table ten thousand times: the pause between two such writes is 20 times what a write takes. A change that somebody asked
for by name (mqadmin) calls `save` and is on disk before it is answered.

A large table that changes all the time (offsets) is written in a thread instead: `begin_save` takes the text, the
returned job writes it, `save_ended` notes the outcome. Nothing else writes that file meanwhile.

Writing is `store.jsonfile.save_json`: a new file takes the place of the old one, which stays as `.bak`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from protocol.bodies import Body, DataVersion
from protocol.jsonwriter import dumps
from store.jsonfile import save_json

SAVE_PAUSE_MS = 100  # at least
SAVE_PAUSE_FACTOR = 20  # times what the last write took

log = structlog.get_logger(__name__)

_quoted = msgspec.json.Encoder().encode


class EntryTexts:
    """The texts of a table's entries in RocketMQ's pretty form, kept until an entry is another object.

    A table of ten thousand topics that got one more is then written in a moment, not in a tenth of a second.
    """

    def __init__(self) -> None:
        self._texts: dict[str, tuple[Body, str]] = {}

    def encode(
        self,
        version: DataVersion,
        member: str,
        table: Mapping[str, Body],
        *,
        others: Mapping[str, object] | None = None,
        pretty: bool,
    ) -> bytes:
        """The file's text: a bean of `dataVersion`, the table under the name `member`, and `others` by their names."""
        texts = self._texts
        if len(texts) > 2 * len(table) + 100:
            texts.clear()  # of entries that are gone
        parts = []
        for name, entry in table.items():
            known = texts.get(name)
            if known is None or known[0] is not entry:
                text = entry.encode(pretty=True).decode().replace("\n", "\n\t\t")
                known = texts[name] = (entry, f"\n\t\t{_quoted(name).decode()}:{text}")
            parts.append(known[1])
        entries = ",".join(parts) + "\n\t" if parts else ""
        members = {name: _pretty(value) for name, value in (others or {}).items()}
        members |= {"dataVersion": _pretty(version), member: f"{{{entries}}}"}
        lines = [f"\n\t{_quoted(name).decode()}:{text}" for name, text in sorted(members.items())]
        whole = f"{{{','.join(lines)}\n}}".encode()
        # Inside texts line breaks and tabs are escaped, so these are the pretty form's own.
        return whole if pretty else whole.translate(None, b"\n\t")


def _pretty(value: object) -> str:
    return dumps(value, pretty=True).decode().replace("\n", "\n\t")


class SaveJob(NamedTuple):
    """A table's text on its way to disk."""

    path: Path
    data: bytes

    def run(self) -> None:
        """Writes it; in any thread. Raises OSError."""
        save_json(self.path, self.data)


class ConfigFile:
    """The file at `path`, which holds what `encode` returns; `now_ms` is the clock."""

    def __init__(self, path: Path, encode: Callable[[], bytes], now_ms: Callable[[], int]) -> None:
        self._path = path
        self._encode = encode
        self._now_ms = now_ms
        self._saved_ms: int | None = None
        self._pause_ms = SAVE_PAUSE_MS
        self._failing = False
        self.dirty = False

    def changed(self) -> None:
        """Notes a change; writes it now if the last write is long enough ago. Failures are logged, not raised."""
        self.dirty = True
        if self._saved_ms is None or not 0 <= self._now_ms() - self._saved_ms < self._pause_ms:
            self.save_if_dirty()

    def save_if_dirty(self) -> None:
        """Writes what is not on disk yet. A failure (a full disk) is logged once and tried again at the next call."""
        if not self.dirty:
            return
        try:
            self.save()
        except OSError as error:
            self.save_ended(error)

    def save(self) -> None:
        """Writes the table as it is now; raises OSError."""
        self.dirty = True
        started_ms = self._now_ms()
        save_json(self._path, self._encode())
        self._saved_ms = self._now_ms()
        self._pause_ms = max(SAVE_PAUSE_MS, SAVE_PAUSE_FACTOR * (self._saved_ms - started_ms))
        self.dirty = False
        self.save_ended(None)

    def begin_save(self) -> SaveJob | None:
        """The write that is due, or None; changes from now on are another write's. Follow it with `save_ended`."""
        if not self.dirty:
            return None
        self.dirty = False
        return SaveJob(self._path, self._encode())

    def save_ended(self, error: OSError | None) -> None:
        """Notes how a write went; a failed one is due again. Logs changes from well to failing and back."""
        if error is not None:
            self.dirty = True
            if not self._failing:
                log.error("config_file_not_saved", file=str(self._path), error=str(error))
        elif self._failing:
            log.info("config_file_saved_again", file=str(self._path))
        self._failing = error is not None
