"""What the ``check`` tool found: where, what, and whether it is damage.

Owns the list that is printed in the end. It is bounded: a garbled file gives as many findings as it has
units, and nobody reads a million lines. What does not fit is counted.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

MOST_PER_FILE = 10
MOST_FILES = 1000


class Finding(NamedTuple):
    """One line of the report."""

    damage: bool  # False: worth knowing, and good as it is
    file: str
    position: int | None  # byte in the file; None: the file as a whole
    text: str

    def __str__(self) -> str:
        kind = "DAMAGE" if self.damage else "note"
        place = self.file if self.position is None else f"{self.file} at byte {self.position}"
        return f"{kind}: {place}: {self.text}"


class Findings:
    """Collects findings in the order in which they are made."""

    def __init__(self) -> None:
        self.lines: list[Finding] = []
        self.damages = 0
        self.notes = 0
        self._seen: Counter[tuple[str, bool]] = Counter()

    def damage(self, file: str, text: str, position: int | None = None) -> None:
        self.damages += 1
        self._add(Finding(True, file, position, text))

    def note(self, file: str, text: str, position: int | None = None) -> None:
        self.notes += 1
        self._add(Finding(False, file, position, text))

    def _add(self, finding: Finding) -> None:
        place = (finding.file, finding.damage)
        if place not in self._seen and len(self._seen) >= MOST_FILES:
            return
        self._seen[place] += 1
        if self._seen[place] <= MOST_PER_FILE:
            self.lines.append(finding)

    @property
    def left_out(self) -> int:
        return self.damages + self.notes - len(self.lines)
