"""What replication needs of the store, so that its tests can do with a few lines instead."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from gateway.watermark import Watermark

T = TypeVar("T")


class Log(Protocol):
    """The commitlog as bytes: `store.engine.MessageStore`."""

    @property
    def start_offset(self) -> int: ...

    @property
    def end_offset(self) -> int: ...

    def read_raw(self, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes, at least one, never across a file; raises OffsetOutOfRange. Any thread."""


class LogStorage(Protocol):
    """The store on the event loop: `gateway.storage.Storage`."""

    @property
    def store(self) -> Log: ...

    @property
    def appended(self) -> Watermark: ...

    @property
    def flushed(self) -> Watermark: ...

    def append_raw(self, offset: int, data: bytes) -> int: ...

    @property
    def undispatched_bytes(self) -> int:
        """How much `dispatch` has still to do."""

    def dispatch(self, limit: int) -> bool:
        """Makes up to `limit` appended messages visible; returns whether there were any."""

    async def read_cold(self, read: Callable[[], T]) -> T: ...
