"""What a consumer wants of a topic: tag expressions, and the test that a consume queue entry passes.

A consume queue entry carries the Java hash code of its message's tag, so the broker filters without reading messages:
an entry matches when its hash is among the expression's hashes, and the client compares the text itself afterwards.
`*` matches everything, which is `None` here, so that the hot loop has no call to make.
"""

from collections.abc import Callable

from gateway.routing import Refused
from protocol.bodies import SubscriptionData
from protocol.codes import ResponseCode
from protocol.message import java_hash

ALL = "*"
TAG_TYPE = "TAG"
MAX_EXPRESSION_LENGTH = 65_536

Matches = Callable[[int], bool]


def parse_tags(expression: str | None) -> tuple[str, ...]:
    """The tags of `a || b`, in their order; empty for "everything" (`*`, empty, absent).

    Refuses an expression of separators only, which official's FilterAPI cannot split either.
    """
    if not expression or expression == ALL:
        return ()
    if len(expression) > MAX_EXPRESSION_LENGTH:
        raise Refused(
            ResponseCode.SUBSCRIPTION_PARSE_FAILED,
            f"the expression has {len(expression)} characters, the limit is {MAX_EXPRESSION_LENGTH}",
        )
    parts = expression.split("||")
    if not any(parts):
        raise Refused(ResponseCode.SUBSCRIPTION_PARSE_FAILED, "parse the consumer's subscription failed")
    return tuple(dict.fromkeys(tag for part in parts if (tag := part.strip())))


def is_tag_type(expression_type: str | None) -> bool:
    """Whether expressions of this type are tags; clients of old versions do not name a type."""
    return not expression_type or expression_type == TAG_TYPE


def subscription_of_request(
    topic: str, expression: str | None, expression_type: str | None, sub_version: int
) -> SubscriptionData:
    """The subscription that a pull request carries itself (sysFlag bit 4)."""
    tags = parse_tags(expression) if is_tag_type(expression_type) else ()
    return SubscriptionData(
        topic=topic,
        sub_string=expression or ALL,
        expression_type=expression_type or TAG_TYPE,
        tags_set=list(tags),
        code_set=[java_hash(tag) for tag in tags],
        sub_version=sub_version,
    )


def tag_matcher(subscription: SubscriptionData) -> Matches | None:
    """The test of an entry's tags code; None if every entry matches.

    The hashes that the client sent count; a client that sent none (Go leaves them out) gets them from its expression.
    """
    if subscription.sub_string == ALL or subscription.class_filter_mode:
        return None
    codes = frozenset(subscription.code_set)
    if not codes:
        codes = frozenset(java_hash(tag) for tag in parse_tags(subscription.sub_string))
    return codes.__contains__ if codes else None
