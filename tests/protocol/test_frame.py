"""Frames from a byte stream: whole, byte by byte, in any pieces, and broken."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.command import MAX_FRAME_BYTES, Command, encode
from protocol.frame import FRAME, MAX_RECEIVED_HEADER_BYTES, FrameDecoder

FRAMES = [encode(Command(code, code, fields={"k": "v" * code}, body=b"x" * code)) for code in (1, 30, 5)]


def opaques(commands: list[Command]) -> list[int]:
    return [command.opaque for command in commands]


def test_one_read_gives_all_its_frames() -> None:
    assert opaques(FrameDecoder().receive(b"".join(FRAMES))) == [1, 30, 5]


def test_byte_by_byte() -> None:
    decoder = FrameDecoder()
    commands = []
    for byte in b"".join(FRAMES):
        commands += decoder.receive(bytes([byte]))
    assert opaques(commands) == [1, 30, 5]
    assert decoder.buffered_bytes == 0


@given(st.lists(st.integers(0, 300), max_size=8))
def test_cut_anywhere(cuts: list[int]) -> None:
    data = b"".join(FRAMES)
    decoder = FrameDecoder()
    commands = []
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, end in itertools.pairwise(edges):
        commands += decoder.receive(data[start:end])
    assert opaques(commands) == [1, 30, 5]
    assert [command.body for command in commands] == [b"x", b"x" * 30, b"x" * 5]


def test_declaration_reads_what_the_decoder_reads() -> None:
    for frame in FRAMES:
        parsed = FRAME.parse(frame)
        (command,) = FrameDecoder().receive(frame)
        assert parsed.body == command.body
        assert parsed.header_word.serialize_type == command.serialize_type


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (struct.pack(">ii", 0, 0), "length 0"),
        (struct.pack(">ii", -1, 0), "length -1"),
        (struct.pack(">ii", 3, 0), "length 3"),
        (struct.pack(">ii", MAX_FRAME_BYTES - 3, 0), "length"),
        (struct.pack(">ii", 2**31 - 1, 0), "length"),
        (struct.pack(">ii", 10, 7), "header of 7 bytes"),
        (struct.pack(">ii", 2 * MAX_RECEIVED_HEADER_BYTES, MAX_RECEIVED_HEADER_BYTES + 1), "the limit is 1048576"),
        (struct.pack(">iI", 10, 9 << 24 | 6) + b"header", "serialization 9"),
    ],
)
def test_broken_frame_ends_the_stream_behind_the_good_ones(start: bytes, word: str) -> None:
    decoder = FrameDecoder()
    commands = decoder.receive(FRAMES[0] + start + FRAMES[1])
    assert opaques(commands) == [1]
    assert decoder.error is not None
    assert word in decoder.error.remark
    assert decoder.receive(FRAMES[1]) == []


def test_longest_frame_is_read_and_no_more_is_kept() -> None:
    frame = encode(Command(1, 9, body=b"b" * (MAX_FRAME_BYTES - 200)))
    decoder = FrameDecoder()
    assert decoder.receive(frame[:1_000_000]) == []
    (command,) = decoder.receive(frame[1_000_000:])
    assert len(command.body) == MAX_FRAME_BYTES - 200
    assert decoder.buffered_bytes == 0


@given(st.binary(max_size=300))
def test_random_bytes_never_raise(data: bytes) -> None:
    decoder = FrameDecoder()
    decoder.receive(data)
    assert decoder.error is not None or decoder.buffered_bytes <= len(data)


def test_what_a_refused_frame_held_is_let_go() -> None:
    """A traceback, or the error that led to this one, would keep the frame until the next garbage collection."""
    decoder = FrameDecoder()
    assert decoder.receive(struct.pack(">ii", 104 + 1000, 100) + bytes(1100)) == []
    assert decoder.error is not None
    assert decoder.error.__traceback__ is None
    assert decoder.error.__context__ is None
