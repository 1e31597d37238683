"""Puts into consume queues that did not fit: noted when they happen, judged by recovery, and said in the log.

Owns both lists. They are bounded, because a garbled log can have as many as it has records.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import structlog

log = structlog.get_logger(__name__)

MOST_NOTED: Final = 1000
MOST_TOLD: Final = 20  # in one report; the others are counted


class Anomaly(NamedTuple):
    """A put that did not fit. gap: messages in front of it are missing; else no queue leads to this record."""

    kind: Literal["gap", "conflict", "implausible"]
    topic: str
    queue_id: int
    queue_offset: int
    expected: int  # the queue's end at that moment
    physical_offset: int
    size: int


class Anomalies:
    """Those of one store's queues. While serving there are none, unless a master's log has them."""

    def __init__(self) -> None:
        self.noted: list[Anomaly] = []
        self.count = 0
        self._untold: list[Anomaly] = []
        self._untold_count = 0

    def note(self, anomaly: Anomaly) -> None:
        self.count += 1
        self._untold_count += 1
        if len(self.noted) < MOST_NOTED:
            self.noted.append(anomaly)
        if len(self._untold) < MOST_TOLD:
            self._untold.append(anomaly)

    def report(self) -> None:
        """Say what was noted since the last call."""
        for anomaly in self._untold:
            log.error("consume_queue_" + anomaly.kind, **anomaly._asdict())
        if self._untold_count > len(self._untold):
            log.error("consume_queue_anomalies", count=self._untold_count, told=len(self._untold))
        self._untold.clear()
        self._untold_count = 0

    def forget(self) -> None:
        """Report them; they say nothing about what is put from now on."""
        self.report()
        self.noted.clear()
