"""Members of groups, and a consumer group as its members' heartbeats describe it.

A group's subscriptions are those of the heartbeat that came last, newer `subVersion` first, as clients expect of the
official ConsumerGroupInfo. So two members that subscribe differently overwrite each other, and each misses messages: a
group notices this and says it once.
"""

from typing import Protocol

import msgspec

from protocol.bodies import ConsumerData, SubscriptionData
from protocol.command import Command

DESCRIPTION_LENGTH = 1000
ENTRY_WEIGHT = 100


class Peer(Protocol):
    """What the table and its users need of a connection; compared by identity."""

    @property
    def remote_address(self) -> str: ...

    def notify(self, command: Command) -> None: ...

    async def request(self, command: Command, timeout: float) -> Command: ...

    def close(self) -> None: ...

    def __hash__(self) -> int: ...


class Member(msgspec.Struct, gc=False, eq=False):
    """One connection's part in one group."""

    connection: Peer
    client_id: str
    language: int
    version: int
    last_heartbeat_ms: int
    subscription: tuple[tuple[str, str, str], ...] = ()


class GroupChange(msgspec.Struct, frozen=True):
    """A consumer group whose members or topics changed, and the connections to tell."""

    group: str
    connections: tuple[Peer, ...]


class Conflict(msgspec.Struct, frozen=True):
    """Two members of one group that subscribe differently, so that neither gets all it asked for."""

    group: str
    member: str
    subscription: str
    other_member: str
    other_subscription: str


class ConsumerGroup:
    """The connected members of one consumer group and what they subscribe to."""

    __slots__ = (
        "conflict_known",
        "consume_from_where",
        "consume_type",
        "members",
        "message_model",
        "name",
        "subscriptions",
    )

    def __init__(self, data: ConsumerData) -> None:
        self.name = data.group_name
        self.consume_type = data.consume_type
        self.message_model = data.message_model
        self.consume_from_where = data.consume_from_where
        self.members: dict[Peer, Member] = {}
        self.subscriptions: dict[str, SubscriptionData] = {}
        self.conflict_known = False

    def update(self, data: ConsumerData) -> bool:
        """Takes over what the heartbeat says; returns whether the set of topics changed."""
        self.consume_type = data.consume_type
        self.message_model = data.message_model
        self.consume_from_where = data.consume_from_where
        changed = False
        told = set()
        for subscription in data.subscription_data_set:
            topic = subscription.topic
            told.add(topic)
            known = self.subscriptions.get(topic)
            if known is None:
                changed = True
            if known is None or subscription.sub_version > known.sub_version:
                self.subscriptions[topic] = subscription
        for topic in self.subscriptions.keys() - told:
            del self.subscriptions[topic]
            changed = True
        return changed

    def client_ids(self) -> list[str]:
        return [member.client_id for member in self.members.values()]

    def conflict(self, member: Member) -> Conflict | None:
        """The first disagreement found since all members agreed; told once."""
        other = next((other for other in self.members.values() if other.subscription != member.subscription), None)
        if other is None:
            self.conflict_known = False
            return None
        if self.conflict_known:
            return None
        self.conflict_known = True
        return Conflict(
            group=self.name,
            member=member.client_id,
            subscription=_describe(member),
            other_member=other.client_id,
            other_subscription=_describe(other),
        )


def signature(data: ConsumerData) -> tuple[tuple[str, str, str], ...]:
    """What a heartbeat subscribes to, comparable: topic, expression type, expression."""
    return tuple(sorted((s.topic, s.expression_type or "TAG", s.sub_string) for s in data.subscription_data_set))


def weight(data: ConsumerData) -> int:
    """About how many bytes it takes to remember what a heartbeat says of one group."""
    size = ENTRY_WEIGHT + len(data.group_name)
    for subscription in data.subscription_data_set:
        size += ENTRY_WEIGHT + len(subscription.topic) + len(subscription.sub_string)
        size += sum(map(len, subscription.tags_set)) + 8 * len(subscription.code_set)
    return size


def _describe(member: Member) -> str:
    text = ", ".join(f"{topic}: {expression}" for topic, _, expression in member.subscription)
    return text if len(text) <= DESCRIPTION_LENGTH else text[:DESCRIPTION_LENGTH] + "…"
