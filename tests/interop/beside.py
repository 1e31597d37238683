"""Tests that run side by side: with official servers a test mostly waits for their timers, which can be done together.

A test marked `beside` runs in a thread of a pool. It takes parameters and the session's fixtures of conftest.py
only, starts a Cluster of its own, and asserts nothing that a busy machine would break. All of these come at the end of
a run, so that nothing that measures times runs beside them. Each is reported as if it had run alone.
"""

import contextlib
import inspect
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

import pytest

MARK: Final = "beside"
THREADS: Final = 5  # two or three servers each; the more, the longer each takes on a machine of two cores


def is_marked(item: pytest.Item) -> bool:
    """Whether the test runs beside others."""
    return item.get_closest_marker(MARK) is not None


class Beside:
    """The pool; all marked tests are begun when the first of them is run, and each run waits for its own."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request  # that of a session fixture: it gives no others
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix=MARK)
        self._runs: dict[str, Future[Any]] = {}

    def run(self, item: pytest.Function, items: Iterable[pytest.Item]) -> None:
        """Ends when the test has ended, as it has ended."""
        if item.nodeid not in self._runs:
            for each in items:
                if isinstance(each, pytest.Function) and is_marked(each):
                    # What keeps one from its fixtures, its own set-up will meet again.
                    with contextlib.suppress(Exception, pytest.skip.Exception, pytest.fail.Exception):
                        self._runs[each.nodeid] = self._pool.submit(each.obj, **self._arguments(each))
        self._runs[item.nodeid].result()

    def _arguments(self, item: pytest.Function) -> dict[str, Any]:
        given: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        names = inspect.signature(item.obj).parameters
        return {name: given[name] if name in given else self._request.getfixturevalue(name) for name in names}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
