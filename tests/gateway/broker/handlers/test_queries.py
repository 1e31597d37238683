"""Messages by offset message id."""

import pytest

from protocol.codes import RequestCode, ResponseCode
from protocol.message import decode_record
from protocol.requests.queries import ViewMessageById
from tests.gateway.broker.handlers.rig import Rig


async def test_a_message_by_its_offset(rig: Rig) -> None:
    messages = rig.store_messages("T", 0, 3)
    answer = await rig.ask(RequestCode.VIEW_MESSAGE_BY_ID, ViewMessageById(offset=messages[1].physical_offset))
    assert answer.code == ResponseCode.SUCCESS
    record = decode_record(answer.body)
    assert (record.topic, record.queue_offset, record.body) == ("T", 1, b"body 1")


@pytest.mark.parametrize("offset", [1, 77, -1, 10**6, 2**63 - 1, -(2**63)])
async def test_an_offset_at_which_no_message_begins(rig: Rig, offset: int) -> None:
    rig.store_messages("T", 0, 3)
    answer = await rig.ask(RequestCode.VIEW_MESSAGE_BY_ID, ViewMessageById(offset=offset))
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert answer.remark == f"can not find message by the offset, {offset}"
