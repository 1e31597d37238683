"""Progress of long work, on stderr: a bar where ``rich`` is installed and somebody looks, else plain lines.

A progress is called as ``progress(what, done, total)`` now and then, as often as the work likes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol, TextIO

_PAUSE_S = 2.0


class Progress(Protocol):
    """What long work reports to."""

    def __call__(self, what: str, done: int, total: int) -> None: ...
    def close(self) -> None: ...


class Silent:
    """For scripts."""

    def __call__(self, what: str, done: int, total: int) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """A line each two seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._next = clock() + _PAUSE_S

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if now >= self._next:
            self._next = now + _PAUSE_S
            percent = min(100, 100 * done // total) if total > 0 else 100
            self._stream.write(f"{what}: {percent} %\n")
            self._stream.flush()

    def close(self) -> None:
        pass


class Bar:
    """A bar of rich, which is an optional package."""

    def __init__(self, module: Any) -> None:
        self._bar = module.Progress(
            transient=True, console=importlib.import_module("rich.console").Console(stderr=True)
        )
        self._bar.start()
        self._tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        task = self._tasks.get(what)
        if task is None:
            task = self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(task, completed=done, total=total)

    def close(self) -> None:
        self._bar.stop()


def make_progress(stream: TextIO, *, quiet: bool = False) -> Progress:
    """The best that is possible here."""
    if quiet:
        return Silent()
    if stream.isatty():
        try:
            return Bar(importlib.import_module("rich.progress"))
        except ImportError:
            pass
    return Lines(stream)
