"""Whether two logs are one: verdicts from facts, and the bytes that are compared."""

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ha import history
from gateway.ha.history import Holdings, Parting, Sameness
from protocol.message import HEAD, MAGIC_BLANK
from tests.gateway.ha.fakes import FILE_SIZE, MemoryLog, message, messages

MESSAGE = message(0)
MASTER = Holdings("c", "b", FILE_SIZE, 4096, 10_000)


@pytest.mark.parametrize(
    ("slave", "words"),
    [
        (MASTER, None),
        (MASTER._replace(end=9000), None),
        (MASTER._replace(start=0, end=4096), None),
        (MASTER._replace(start=0, end=0), None),
        (MASTER._replace(start=0, end=4095), "ends at 4095, the master's oldest byte is 4096: 1 bytes are gone"),
        (MASTER._replace(end=10_001), "ends at 10001, the master's at 10000: the slave has 1 bytes"),
        (MASTER._replace(file_size=8192), "mappedFileSizeCommitLog is 8192, the master's 4096"),
        (MASTER._replace(broker="other"), "belongs to c/other, the master is c/b"),
        (MASTER._replace(cluster="other", start=0, end=0), "belongs to other/b"),
    ],
)
def test_what_names_and_offsets_forbid(slave: Holdings, words: str | None) -> None:
    reason = history.why_not(MASTER, slave)
    if words is None:
        assert reason is None
    else:
        assert words in (reason or "")


@pytest.mark.parametrize(
    ("start", "end", "whole", "begin"),
    [
        (0, 0, False, 0),
        (0, 10_000, False, 8192),
        (0, 10_000, True, 0),
        (4096, 10_000, True, 4096),
        (4096, 8192, False, 4096),
        (8192, 8192, False, 8192),
        (8192, 8193, False, 8192),
    ],
)
def test_where_an_empty_slave_begins(start: int, end: int, whole: bool, begin: int) -> None:
    assert history.begin_for_empty(start, end, FILE_SIZE, whole=whole) == begin


@given(st.integers(0, 10_000), st.lists(st.binary(max_size=40), max_size=6), st.binary(max_size=50))
def test_the_last_message_is_found_whatever_stands_before_and_behind_it(
    offset: int, bodies: list[bytes], head: bytes
) -> None:
    data = head
    begins = []
    for body in bodies:
        begins.append(offset + len(data))
        data += message(offset + len(data), body)
    filler = HEAD.pack(64, MAGIC_BLANK) + bytes(56)
    assert history.last_message(data + filler, offset) == (begins[-1] if begins else None)


def test_a_message_that_is_cut_off_counts_once_its_head_is_there() -> None:
    whole = message(0) + message(len(message(0)), b"x" * 500)
    assert history.last_message(whole[:-400], 0) == len(message(0))
    assert history.last_message(whole[: len(message(0)) + 20], 0) == 0


def test_a_copy_of_a_message_inside_a_body_is_not_taken_for_one() -> None:
    data = message(0, body=message(7))
    assert history.last_message(data, 0) == 0


def test_the_window_reaches_back_over_filler_to_a_message() -> None:
    data = messages(0, 1000)
    last = history.last_message(data, 0)
    assert last is not None
    log = MemoryLog(data + HEAD.pack(3000, MAGIC_BLANK) + bytes(2992), file_size=1 << 20)
    begin = history.window(0, log.end_offset, log.read_raw, 256)
    assert begin <= last
    assert begin > 0 or log.end_offset < 4096


def test_without_messages_the_window_is_all_there_is() -> None:
    log = MemoryLog(bytes(10_000))
    assert history.window(0, 10_000, log.read_raw, 256) == 0


@given(st.binary(max_size=9000), st.data())
def test_the_checksum_does_not_depend_on_how_it_is_read(data: bytes, draw: st.DataObject) -> None:
    log = MemoryLog(data)
    begin = draw.draw(st.integers(0, len(data)))
    end = draw.draw(st.integers(begin, len(data)))
    assert history.checksum(begin, end, log.read_raw) == crc32(data[begin:end])
    assert history.read_range(begin, end, log.read_raw) == data[begin:end]


@pytest.mark.parametrize(
    ("parting", "words"),
    [
        (Parting(2500, 2500), "different masters. They are equal up to offset 2500. Keep"),
        (Parting(1024, 4096), "different masters. They part between offset 1024 and 4096. Keep"),
        (None, "different masters. Keep"),
    ],
)
def test_a_place_is_called_exact_only_if_it_is(parting: Parting | None, words: str) -> None:
    assert words in history.differs(5000, parting)


NEGATIVE = "java.lang.IllegalArgumentException, java.nio.Buffer.limit(Buffer.java:275)"


@pytest.mark.parametrize(
    ("code", "remark", "theirs", "verdict"),
    [
        (0, None, MESSAGE, Sameness.SAME),
        (0, None, MESSAGE + b"more", Sameness.SAME),
        (0, None, MESSAGE[:-1], Sameness.SAME),
        (0, None, MESSAGE[:-1] + b"?", Sameness.DIFFERENT),
        (0, None, b"", Sameness.DIFFERENT),
        (0, None, bytes(1), Sameness.DIFFERENT),
        (1, "can not find message by the offset, 7", b"", Sameness.DIFFERENT),
        (1, NEGATIVE, b"", Sameness.DIFFERENT),
        (1, "java.util.NoSuchElementException", b"", Sameness.UNKNOWN),
        (2, "[OVERLOAD]system busy", b"", Sameness.UNKNOWN),
    ],
)
def test_what_an_official_broker_has_at_the_place_of_our_message(
    code: int, remark: str | None, theirs: bytes, verdict: Sameness
) -> None:
    """It takes any four bytes for a length: 00000000 gives an empty answer, 00000001 one byte, which is 0 like ours."""
    assert history.same_message(MESSAGE, code, remark, theirs) is verdict
