"""The replication wire: declarations and twins agree, and the decoders do not care how the stream is cut."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FrameError
from protocol.ha import (
    MAX_TRANSFER_BYTES,
    REPORT,
    REPORT_BYTES,
    TRANSFER_HEADER,
    TRANSFER_HEADER_BYTES,
    ReportDecoder,
    Transfer,
    TransferDecoder,
    encode_report,
    encode_transfer_header,
)
from tests.protocol import golden

offsets = st.integers(0, 2**63 - 1)
transfers = st.lists(st.builds(Transfer, offsets, st.binary(max_size=40)), max_size=5)


def stream_of(items: list[Transfer]) -> bytes:
    return b"".join(encode_transfer_header(item.offset, len(item.data)) + item.data for item in items)


@given(offsets)
def test_report_equals_its_declaration(offset: int) -> None:
    assert encode_report(offset) == REPORT.build({"end_offset": offset})
    assert len(encode_report(offset)) == REPORT.sizeof() == REPORT_BYTES


@given(offsets, st.integers(0, MAX_TRANSFER_BYTES))
def test_transfer_header_equals_its_declaration(offset: int, size: int) -> None:
    assert encode_transfer_header(offset, size) == TRANSFER_HEADER.build({"offset": offset, "size": size})
    assert len(encode_transfer_header(offset, size)) == TRANSFER_HEADER.sizeof() == TRANSFER_HEADER_BYTES


def test_known_bytes() -> None:
    assert encode_report(0x0102030405060708) == bytes.fromhex("0102030405060708")
    assert encode_transfer_header(1 << 30, 32768) == bytes.fromhex("000000004000000000008000")


def test_what_an_official_master_and_slave_said() -> None:
    """The slave begins empty, is sent the last file of 16384 bytes, and acknowledges all of it."""
    folder = golden.WIRE / "4.9.4-json-slave"
    received = TransferDecoder().receive((folder / "ha-master-to-slave.bin").read_bytes())
    assert stream_of(received) == (folder / "ha-master-to-slave.bin").read_bytes()
    assert received[0].offset == 16384
    end = 16384
    for transfer in received:
        assert transfer.offset == end
        end += len(transfer.data)
    reports = (folder / "ha-slave-to-master.bin").read_bytes()
    assert reports.startswith(encode_report(0))
    assert ReportDecoder().receive(reports) == end


@given(transfers, st.lists(st.integers(0, 300)))
def test_transfers_come_out_as_they_went_in_however_the_stream_is_cut(items: list[Transfer], cuts: list[int]) -> None:
    stream = stream_of(items)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    decoder = TransferDecoder()
    received = [item for start, end in pairwise(edges) for item in decoder.receive(stream[start:end])]
    assert received == items


def test_transfers_one_byte_at_a_time() -> None:
    items = [Transfer(0, b"abc"), Transfer(3, b""), Transfer(3, b"d")]
    decoder = TransferDecoder()
    received = [item for byte in stream_of(items) for item in decoder.receive(bytes([byte]))]
    assert received == items
    assert [item.is_heartbeat for item in received] == [False, True, False]


def test_a_torn_transfer_waits_for_the_rest() -> None:
    decoder = TransferDecoder()
    assert decoder.receive(stream_of([Transfer(7, b"abc")])[:-1]) == []
    assert decoder.receive(b"c") == [Transfer(7, b"abc")]


@given(st.binary(max_size=200))
def test_any_bytes_are_split_exactly_as_declared_or_refused(data: bytes) -> None:
    decoder = TransferDecoder()
    try:
        received = decoder.receive(data)
    except FrameError:
        return
    rebuilt = b"".join(
        TRANSFER_HEADER.build({"offset": item.offset, "size": len(item.data)}) + item.data for item in received
    )
    assert data.startswith(rebuilt)


@pytest.mark.parametrize(("offset", "size"), [(-1, 0), (0, -1), (0, MAX_TRANSFER_BYTES + 1), (-(2**63), 2**31 - 1)])
def test_impossible_headers_are_refused_before_their_data(offset: int, size: int) -> None:
    with pytest.raises(FrameError, match=str(offset)):
        TransferDecoder().receive(struct.pack(">qi", offset, size))


def test_the_largest_transfer_is_accepted() -> None:
    data = bytes(MAX_TRANSFER_BYTES)
    assert TransferDecoder().receive(encode_transfer_header(5, len(data)) + data) == [Transfer(5, data)]


@given(st.lists(offsets, min_size=1, max_size=6))
def test_of_reports_that_come_together_the_newest_counts(reports: list[int]) -> None:
    assert ReportDecoder().receive(b"".join(map(encode_report, reports))) == reports[-1]


def test_reports_one_byte_at_a_time() -> None:
    decoder = ReportDecoder()
    stream = encode_report(5) + encode_report(9)
    assert [decoder.receive(bytes([byte])) for byte in stream] == [*[None] * 7, 5, *[None] * 7, 9]


def test_the_beginning_of_a_report_is_kept() -> None:
    decoder = ReportDecoder()
    assert decoder.receive(encode_report(5) + encode_report(9)[:3]) == 5
    assert decoder.receive(encode_report(9)[3:]) == 9


def test_a_negative_report_is_refused() -> None:
    with pytest.raises(FrameError, match="-1"):
        ReportDecoder().receive(encode_report(-1))
