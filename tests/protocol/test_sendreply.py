"""The template for send replies gives what the general encoder gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codes import FLAG_ONEWAY, SerializeType
from protocol.command import Command, encode, response
from protocol.sendreply import SendReplyEncoder


@pytest.mark.parametrize("serialize_type", list(SerializeType))
@given(
    st.sampled_from(["DefaultRegion", "100%s", 'quoted "region"']),
    st.booleans(),
    st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=40),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(-(2**31), 2**31 - 1),
)
def test_equals_the_general_encoder(
    serialize_type: SerializeType,
    region: str,
    trace_on: bool,
    ids: list[bytes],
    queue_id: int,
    queue_offset: int,
    opaque: int,
) -> None:
    encoder = SendReplyEncoder(region, trace_on)
    request = Command(310, opaque, serialize_type=serialize_type)
    message_id = ",".join(each.hex().upper() for each in ids)
    expected = encode(response(request, header=encoder.header(message_id, queue_id, queue_offset)))
    assert encoder.encode_all([(request, message_id, queue_id, queue_offset)]) == [expected]


def test_one_way_requests_get_none() -> None:
    encoder = SendReplyEncoder("DefaultRegion", True)
    requests = [Command(310, opaque, flag=flag) for opaque, flag in ((1, 0), (2, FLAG_ONEWAY), (3, 0))]
    (first, last) = encoder.encode_all([(request, "ID", 0, request.opaque) for request in requests])
    assert (b'"opaque":1,' in first, b'"opaque":3,' in last) == (True, True)
