"""The replication wire between a master's HA port and its slaves (spec/ha.md 1). Plain bytes, no remoting frames.

    slave → master    report: where the slave's commitlog ends. The first asks for a start, the later ones acknowledge.
    master → slave    transfer: offset and size, then `size` raw commitlog bytes of that offset; size 0 is a heartbeat.

A transfer never crosses a commitlog file and knows nothing of records. Of several reports that arrive together only the
newest means anything. The decoders buffer what is incomplete, at most one transfer or 7 bytes of a report, and do not
judge offsets: whether one fits is for those who know the log. After a `FrameError` a decoder is of no further use.
"""

import struct
from typing import Final

import msgspec
from construct import Int32sb, Int64sb
from construct import Struct as Layout

from protocol.errors import FrameError

REPORT: Final = Layout(
    "end_offset" / Int64sb,  # offset 0
)
TRANSFER_HEADER: Final = Layout(
    "offset" / Int64sb,  # offset 0
    "size" / Int32sb,  # 8
)

REPORT_BYTES: Final = 8
TRANSFER_HEADER_BYTES: Final = 12
MAX_TRANSFER_BYTES: Final = (4 << 20) - TRANSFER_HEADER_BYTES
"""An official slave reads into a buffer of 4 MiB, which has to hold a whole transfer."""

_REPORT: Final = struct.Struct(">q")
_TRANSFER_HEADER: Final = struct.Struct(">qi")


class Transfer(msgspec.Struct, frozen=True, gc=False):
    """Commitlog bytes and where they belong; a heartbeat has none and names the offset that comes next."""

    offset: int
    data: bytes

    @property
    def is_heartbeat(self) -> bool:
        return not self.data


def encode_report(end_offset: int) -> bytes:
    """The slave's report that its commitlog ends at `end_offset`."""
    return _REPORT.pack(end_offset)


def encode_transfer_header(offset: int, size: int) -> bytes:
    """What precedes `size` (0 to MAX_TRANSFER_BYTES) commitlog bytes of `offset`."""
    return _TRANSFER_HEADER.pack(offset, size)


class ReportDecoder:
    """The master's side."""

    def __init__(self) -> None:
        self._rest = b""

    def receive(self, data: bytes) -> int | None:
        """The newest complete report, if `data` completes one; raises FrameError for a negative offset."""
        data = self._rest + data
        whole = len(data) - len(data) % REPORT_BYTES
        self._rest = data[whole:]
        if not whole:
            return None
        (end_offset,) = _REPORT.unpack_from(data, whole - REPORT_BYTES)
        if end_offset < 0:
            raise FrameError(f"HA report: offset {end_offset}")
        return int(end_offset)


class TransferDecoder:
    """The slave's side."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of an incomplete transfer
        self._part_bytes = 0
        self._missing = 0  # how many bytes it needs, as far as known

    def receive(self, data: bytes) -> list[Transfer]:
        """The transfers that `data` completes; raises FrameError for a header that no master can have meant.

        Each byte is copied once on its way into a transfer, twice where a read ended inside it.
        """
        if self._parts:
            self._parts.append(data)
            self._part_bytes += len(data)
            if self._part_bytes < self._missing:
                return []
            data = b"".join(self._parts)
            self._parts.clear()
        transfers = []
        position, length = 0, len(data)
        self._missing = TRANSFER_HEADER_BYTES
        while length - position >= TRANSFER_HEADER_BYTES:
            offset, size = _TRANSFER_HEADER.unpack_from(data, position)
            if offset < 0 or not 0 <= size <= MAX_TRANSFER_BYTES:
                raise FrameError(f"HA transfer: offset {offset}, {size} bytes; at most {MAX_TRANSFER_BYTES}")
            end = position + TRANSFER_HEADER_BYTES + size
            if end > length:
                self._missing = end - position
                break
            transfers.append(Transfer(offset, data[end - size : end]))
            position = end
        if position < length:
            self._parts.append(data[position:])
            self._part_bytes = length - position
        return transfers
