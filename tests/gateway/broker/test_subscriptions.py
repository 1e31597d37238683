"""Tag expressions and the test that consume queue entries pass."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.broker import subscriptions
from gateway.broker.subscriptions import is_tag_type, parse_tags, subscription_of_request, tag_matcher
from gateway.routing import Refused
from protocol.bodies import SubscriptionData
from protocol.codes import ResponseCode
from protocol.message import java_hash


@pytest.mark.parametrize(
    ("expression", "tags"),
    [
        ("*", ()),
        ("", ()),
        (None, ()),
        ("a", ("a",)),
        ("a||b", ("a", "b")),
        (" a || b ||  ", ("a", "b")),
        ("||a", ("a",)),
        ("a|b", ("a|b",)),
        ("a || a", ("a",)),
        (" ", ()),
        ("订单 || b", ("订单", "b")),
    ],
)
def test_parsing_of_tags(expression: str | None, tags: tuple[str, ...]) -> None:
    assert parse_tags(expression) == tags


@pytest.mark.parametrize("expression", ["||", "||||"])
def test_separators_alone_are_refused(expression: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_tags(expression)
    assert refused.value.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED


def test_an_endless_expression_is_refused() -> None:
    parse_tags("x" * subscriptions.MAX_EXPRESSION_LENGTH)
    with pytest.raises(Refused, match="limit"):
        parse_tags("x" * (subscriptions.MAX_EXPRESSION_LENGTH + 1))


def test_everything_needs_no_matcher() -> None:
    assert tag_matcher(SubscriptionData(topic="T")) is None
    assert tag_matcher(SubscriptionData(topic="T", sub_string="SomeFilter", class_filter_mode=True)) is None


@given(st.lists(st.text(min_size=1).filter(lambda tag: tag.strip() == tag and "|" not in tag), min_size=1))
def test_a_subscription_matches_the_hashes_of_its_tags_and_no_other(tags: list[str]) -> None:
    matches = tag_matcher(subscription_of_request("T", " || ".join(tags), "TAG", 7))
    assert matches is not None
    codes = {java_hash(tag) for tag in tags}
    assert all(matches(code) for code in codes)
    assert not matches(next(code for code in range(10_000) if code not in codes))


def test_a_client_that_sends_no_hashes_gets_them_from_its_expression() -> None:
    matches = tag_matcher(SubscriptionData(topic="T", sub_string="a || b"))
    assert matches is not None
    assert matches(java_hash("a"))
    assert not matches(java_hash("c"))


def test_the_hashes_of_the_client_count() -> None:
    matches = tag_matcher(SubscriptionData(topic="T", sub_string="a", code_set=[-5]))
    assert matches is not None
    assert matches(-5)
    assert not matches(java_hash("a"))


def test_a_message_without_tag_does_not_match_a_tag() -> None:
    matches = tag_matcher(subscription_of_request("T", "a", None, 1))
    assert matches is not None
    assert not matches(0)


def test_expression_types() -> None:
    assert is_tag_type(None)
    assert is_tag_type("")
    assert is_tag_type("TAG")
    assert not is_tag_type("SQL92")
    sql = subscription_of_request("T", "a > 5 || b < 1", "SQL92", 1)
    assert (sql.expression_type, sql.sub_string, sql.tags_set) == ("SQL92", "a > 5 || b < 1", [])
