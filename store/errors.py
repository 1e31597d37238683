"""What can go wrong in the store, as one tree.

    StoreError
    ├── CorruptRecord      bytes at a place are not a record; carries the place
    ├── OffsetOutOfRange   an offset that the log does not hold (any more, or yet)
    ├── StoreFull          no space could be reserved; nothing was written
    ├── StorePoisoned      an earlier write or flush failed; the store takes no more writes
    ├── StoreLocked        another broker uses the directory
    ├── StoreDamaged       the directory cannot be opened as it is; nothing was changed
    └── MessageIllegal     the message can never be stored

    ColdRead               not an error: the pages are not in memory, ask again where waiting is allowed

Messages are one line and name the file, so that they can be shown to a person as they are.
"""


class StoreError(Exception):
    """Root of everything the store raises on purpose."""


class CorruptRecord(StoreError):
    """Bytes that should be a record are not one."""

    def __init__(self, file: str, offset: int, reason: str) -> None:
        super().__init__(f"{file} at offset {offset}: {reason}")
        self.file = file
        self.offset = offset
        self.reason = reason


class OffsetOutOfRange(StoreError):
    """The log does not hold this offset."""

    def __init__(self, offset: int, low: int, high: int) -> None:
        super().__init__(f"offset {offset} is outside the log, which holds {low} to {high}")
        self.offset = offset
        self.low = low
        self.high = high


class StoreFull(StoreError):
    """Space for the message could not be reserved. Nothing of it was written; later it may work again."""


class StorePoisoned(StoreError):
    """A write or flush failed, so what the disk holds is unknown. Only a restart (recovery) clears it."""


class StoreLocked(StoreError):
    """Another process holds the store's lock file."""


class StoreDamaged(StoreError):
    """The directory is not one that can be opened; says which entry is wrong."""


class MessageIllegal(StoreError):
    """The message breaks a limit of the record format."""


class ColdRead(Exception):
    """Reading now would wait for the disk. Repeat the call in a thread with ``allow_cold=True``."""
