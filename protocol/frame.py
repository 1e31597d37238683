"""From a byte stream to commands: the remoting frame (spec/remoting.md 1.1).

`FRAME` declares the layout; `FrameDecoder` is its twin for live traffic. One call of `receive` takes what one read
of the socket brought and returns every command that it completed: a client multiplexes all its threads over one
connection, so a read often holds dozens of them.
"""

import struct

from construct import BitsInteger, BitStruct, Bytes, Int32sb, this
from construct import Struct as Layout

from protocol.command import MAX_FRAME_BYTES, Command, decode
from protocol.errors import FrameError

MAX_RECEIVED_HEADER_BYTES = 1024 * 1024
"""Longest header that is read. A frame has room for more, but no header of RocketMQ needs 100 KiB, and a header of
millions of fields would keep everybody waiting for seconds."""

FRAME = Layout(
    "length" / Int32sb,  # of all that follows
    "header_word" / BitStruct("serialize_type" / BitsInteger(8), "header_length" / BitsInteger(24)),
    "header" / Bytes(this.header_word.header_length),
    "body" / Bytes(this.length - 4 - this.header_word.header_length),
)

_LENGTHS = struct.Struct(">iI")


class FrameDecoder:
    """Collects bytes and gives commands.

    After a broken frame `error` is set: the commands before it are still returned, everything behind it is dropped,
    and the connection has to be closed. Keeps at most one incomplete frame of `max_frame_bytes`.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.error: FrameError | None = None
        self._max_length = max_frame_bytes - 4
        self._partial = bytearray()
        self._missing = 0  # how many bytes the incomplete frame still needs, as far as known

    @property
    def buffered_bytes(self) -> int:
        return len(self._partial)

    def receive(self, data: bytes) -> list[Command]:
        """The commands that `data` completes, in order."""
        if self.error is not None:
            return []
        if self._partial:
            self._partial += data
            if len(self._partial) < self._missing:
                return []
            data = bytes(self._partial)
            self._partial.clear()
        commands: list[Command] = []
        try:
            position = self._take(data, commands)
        except FrameError as error:
            self.error = FrameError(error.remark)  # a new one: the traceback of the other holds all that was received
            return commands
        if position < len(data):
            self._partial += data[position:] if position else data
        return commands

    def _take(self, data: bytes, commands: list[Command]) -> int:
        """Appends each complete frame's command; returns where the incomplete rest begins."""
        lengths_at = _LENGTHS.unpack_from
        position, end = 0, len(data)
        self._missing = 8
        while end - position >= 8:
            length, header_word = lengths_at(data, position)
            header_length = header_word & 0xFFFFFF
            if not 4 <= length <= self._max_length:
                raise FrameError(f"frame length {length}; allowed are 4 to {self._max_length}")
            if header_length > length - 4:
                raise FrameError(f"header of {header_length} bytes in a frame of {length}")
            if header_length > MAX_RECEIVED_HEADER_BYTES:
                raise FrameError(f"header of {header_length} bytes; the limit is {MAX_RECEIVED_HEADER_BYTES}")
            frame_end = position + 4 + length
            if frame_end > end:
                self._missing = 4 + length
                break
            body_at = position + 8 + header_length
            commands.append(decode(header_word >> 24, data[position + 8 : body_at], data[body_at:frame_end]))
            position = frame_end
        return position
