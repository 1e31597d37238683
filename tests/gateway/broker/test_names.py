"""Names of topics and groups: only what may also be a directory's name gets through."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.broker import names
from gateway.routing import Refused
from protocol.codes import ResponseCode
from protocol.header import Header
from protocol.requests.clients import UnregisterClient
from protocol.requests.offsets import CloneGroupOffset, GetMaxOffset, QueryConsumerOffset
from protocol.requests.queries import ViewMessageById
from protocol.requests.topics import GetAllTopicConfig

ALLOWED = "%|-_" + string.ascii_letters + string.digits


@given(st.text(ALLOWED, min_size=1, max_size=127))
def test_allowed_characters_make_a_topic(topic: str) -> None:
    names.check_topic(topic)
    names.check_group(topic)


@given(st.text(min_size=0, max_size=200))
def test_whatever_passes_is_one_plain_directory_name(name: str) -> None:
    try:
        names.check_topic(name)
    except Refused:
        return
    assert set(name) <= set(ALLOWED)
    assert 1 <= len(name.encode()) <= 127


@pytest.mark.parametrize(
    "name", ["..", ".", "a/b", "x/../../y", "a\0b", "a b", "a.b", "ä", "", "  ", "a\n", "x" * 256, "中文"]
)
def test_names_that_could_leave_the_store_are_refused(name: str) -> None:
    for check in (names.check_topic, names.check_group):
        with pytest.raises(Refused) as refused:
            check(name)
        assert refused.value.code == ResponseCode.SYSTEM_ERROR
        assert refused.value.remark.startswith("The specified ")


def test_the_longest_names() -> None:
    names.check_topic("t" * 127)
    names.check_group("g" * 255)
    with pytest.raises(Refused, match="longer than topic max length"):
        names.check_topic("t" * 128)
    with pytest.raises(Refused, match="longer than group max length"):
        names.check_group("g" * 256)


def test_forbidden_topics_are_system_topics() -> None:
    assert names.SEND_FORBIDDEN_TOPICS < names.SYSTEM_TOPICS
    assert "BenchmarkTest" not in names.SEND_FORBIDDEN_TOPICS
    assert names.is_system_topic("rmq_sys_anything")
    assert not names.is_system_topic("orders")


@pytest.mark.parametrize(
    "header",
    [
        GetMaxOffset(topic="a/b", queue_id=0),
        GetMaxOffset(topic="", queue_id=0),
        QueryConsumerOffset(topic="good", consumer_group="..", queue_id=0),
        UnregisterClient(client_id="c", consumer_group="a b"),
        ViewMessageById(offset=0, topic="a\0"),
        CloneGroupOffset(src_group="good", dest_group="../x"),
    ],
)
def test_headers_with_such_names_are_refused(header: Header) -> None:
    with pytest.raises(Refused, match="The specified "):
        names.HeaderNames({"host.example"}, {"odd group"}).check(header)


@pytest.mark.parametrize(
    "header",
    [
        GetMaxOffset(topic="good", queue_id=0),
        GetMaxOffset(topic="host.example", queue_id=0),
        QueryConsumerOffset(topic="good", consumer_group="odd group", queue_id=0),
        UnregisterClient(client_id="a/b", producer_group="", consumer_group=None),
        ViewMessageById(offset=0),
        GetAllTopicConfig(),
    ],
)
def test_headers_with_known_names_or_none_pass(header: Header) -> None:
    names.HeaderNames({"host.example"}, {"odd group"}).check(header)
