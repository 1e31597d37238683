"""ClientTable: which producers and consumers are connected, as their heartbeats said.

The identity of a member is its connection: two processes may carry one client id (containers with equal addresses and
process numbers), and both are listed then.

Methods change the table and return whom that concerns: `GroupChange` says which connections must be told that their
group has changed (NOTIFY_CONSUMER_IDS_CHANGED), the connection that caused it among them, as it waits for this before
it takes its queues. Nothing here sends.

A member lives 120 s after its last heartbeat. What all heartbeats say is bounded, per connection and together, because
anybody may connect and invent groups.
"""

from collections.abc import Callable, Iterable, Iterator

import msgspec

from gateway.broker.members import ENTRY_WEIGHT, Conflict, ConsumerGroup, GroupChange, Member, Peer, signature, weight
from gateway.routing import Refused
from protocol.bodies import ConsumerData, SubscriptionData
from protocol.codes import ResponseCode

MEMBER_LIFETIME_MS = 120_000
MAX_CONNECTION_WEIGHT = 1 << 20  # bytes, about: some five thousand subscriptions
MAX_WEIGHT = 128 << 20


class Memberships(msgspec.Struct, eq=False):
    """One connection's groups, each with its weight, and the client id that its latest heartbeat carried."""

    client_id: str
    consumer_groups: dict[str, int] = {}
    producer_groups: dict[str, int] = {}

    @property
    def weight(self) -> int:
        return sum(self.consumer_groups.values()) + sum(self.producer_groups.values())


class Departures(msgspec.Struct, frozen=True):
    """What an expiry round found: groups that shrank, and connections that no longer belong to any group."""

    changes: tuple[GroupChange, ...]
    silent: tuple[Peer, ...]


class ClientTable:
    """All connected members by group; `now_ms` is the clock."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._consumers: dict[str, ConsumerGroup] = {}
        self._producers: dict[str, dict[Peer, Member]] = {}
        self._memberships: dict[Peer, Memberships] = {}
        self._clients: dict[str, dict[Peer, None]] = {}  # client id → its connections, the latest last
        self._weight = 0
        self._turn = 0

    # ---- heartbeats

    def heartbeat(
        self,
        connection: Peer,
        client_id: str,
        language: int,
        version: int,
        consumers: Iterable[ConsumerData],
        producers: Iterable[str],
    ) -> tuple[list[GroupChange], list[Conflict]]:
        """Registers or renews the connection's memberships; returns what changed and who disagrees."""
        consumers_by_group = {data.group_name: data for data in consumers}
        producers = list(producers)
        if not consumers_by_group and not producers:
            return [], []
        self._join(
            connection,
            client_id,
            {group: weight(data) for group, data in consumers_by_group.items()},
            {group: ENTRY_WEIGHT + len(group) for group in producers},
        )
        now = self._now_ms()
        changes, conflicts = [], []
        for data in consumers_by_group.values():
            member = Member(connection, client_id, language, version, now, signature(data))
            change, conflict = self._renew_consumer(data, member)
            if change is not None:
                changes.append(change)
            if conflict is not None:
                conflicts.append(conflict)
        for group in producers:
            members = self._producers.setdefault(group, {})
            members[connection] = Member(connection, client_id, language, version, now)
        return changes, conflicts

    def _join(
        self, connection: Peer, client_id: str, consumer_groups: dict[str, int], producer_groups: dict[str, int]
    ) -> None:
        """Notes the connection's groups and their weights; refuses what is beyond a bound, before anything changes."""
        known = self._memberships.get(connection) or Memberships(client_id)
        after = Memberships(client_id, known.consumer_groups | consumer_groups, known.producer_groups | producer_groups)
        growth = after.weight - known.weight
        if growth > 0 and after.weight > MAX_CONNECTION_WEIGHT:
            remark = f"the groups of one connection take {after.weight} bytes, the limit is {MAX_CONNECTION_WEIGHT}"
            raise Refused(ResponseCode.SYSTEM_ERROR, remark)
        if growth > 0 and self._weight + growth > MAX_WEIGHT:
            remark = f"the groups of all clients take {self._weight} bytes, the limit is {MAX_WEIGHT}"
            raise Refused(ResponseCode.SYSTEM_BUSY, remark)
        self._weight += growth
        if known.client_id != client_id:
            self._forget_client(connection, known.client_id)
        self._memberships[connection] = after
        self._clients.setdefault(client_id, {})[connection] = None

    def _renew_consumer(self, data: ConsumerData, member: Member) -> tuple[GroupChange | None, Conflict | None]:
        group = self._consumers.get(data.group_name)
        if group is None:
            group = self._consumers[data.group_name] = ConsumerGroup(data)
        known = group.members.get(member.connection)
        group.members[member.connection] = member
        topics_changed = group.update(data)
        change = _change(group) if known is None or topics_changed else None
        settled = known is not None and known.subscription == member.subscription
        return change, None if settled else group.conflict(member)

    # ---- departures

    def unregister(self, connection: Peer, producer_group: str | None, consumer_group: str | None) -> list[GroupChange]:
        """Ends the connection's part in the groups named; returns the consumer groups that shrank."""
        if producer_group:
            self._leave_producers(connection, producer_group)
        if consumer_group:
            change = self._leave_consumers(connection, consumer_group)
            return [change] if change else []
        return []

    def disconnect(self, connection: Peer) -> list[GroupChange]:
        """Forgets a closed connection; returns the consumer groups that shrank."""
        memberships = self._memberships.get(connection)
        if memberships is None:
            return []
        for group in tuple(memberships.producer_groups):
            self._leave_producers(connection, group)
        changes = (self._leave_consumers(connection, group) for group in tuple(memberships.consumer_groups))
        return [change for change in changes if change]

    def expire(self) -> Departures:
        """Ends memberships without a heartbeat for 120 s.

        A connection is reported as silent, to be closed, when none of its memberships is left: others of its
        memberships may be alive, as a client multiplexes all its groups over one connection.
        """
        oldest = self._now_ms() - MEMBER_LIFETIME_MS
        before = set(self._memberships)
        changes = []
        for group in list(self._consumers.values()):
            for member in _stale(group.members.values(), oldest):
                change = self._leave_consumers(member.connection, group.name)
                if change:
                    changes.append(change)
        for name, members in list(self._producers.items()):
            for member in _stale(members.values(), oldest):
                self._leave_producers(member.connection, name)
        return Departures(tuple(changes), tuple(before - self._memberships.keys()))

    def _leave_consumers(self, connection: Peer, name: str) -> GroupChange | None:
        group = self._consumers.get(name)
        if group is None or group.members.pop(connection, None) is None:
            return None
        if not group.members:
            del self._consumers[name]
        memberships = self._memberships[connection]
        self._weight -= memberships.consumer_groups.pop(name)
        self._forget_if_idle(connection, memberships)
        return _change(group)

    def _leave_producers(self, connection: Peer, name: str) -> None:
        members = self._producers.get(name)
        if members is None:
            return
        if members.pop(connection, None) is None:
            return
        if not members:
            del self._producers[name]
        memberships = self._memberships[connection]
        self._weight -= memberships.producer_groups.pop(name)
        self._forget_if_idle(connection, memberships)

    def _forget_if_idle(self, connection: Peer, memberships: Memberships) -> None:
        if not memberships.consumer_groups and not memberships.producer_groups:
            del self._memberships[connection]
            self._forget_client(connection, memberships.client_id)

    def _forget_client(self, connection: Peer, client_id: str) -> None:
        connections = self._clients[client_id]
        del connections[connection]
        if not connections:
            del self._clients[client_id]

    # ---- questions

    def consumer_group(self, group: str) -> ConsumerGroup | None:
        """The group if a member of it is connected."""
        return self._consumers.get(group)

    def subscription(self, group: str, topic: str) -> SubscriptionData | None:
        """What the connected members of the group want of the topic."""
        consumers = self._consumers.get(group)
        return consumers.subscriptions.get(topic) if consumers is not None else None

    def find_consumer(self, group: str, client_id: str) -> Member | None:
        """The member with this client id; the latest to connect if several carry it."""
        consumers = self._consumers.get(group)
        if consumers is None:
            return None
        return next((m for m in reversed(consumers.members.values()) if m.client_id == client_id), None)

    def consumer_groups(self) -> Iterator[ConsumerGroup]:
        return iter(self._consumers.values())

    def groups_subscribing(self, topic: str) -> list[str]:
        return [group.name for group in self._consumers.values() if topic in group.subscriptions]

    def producers(self, group: str) -> list[Member] | None:
        """The connected producers of the group; None if there is no such group."""
        members = self._producers.get(group)
        return list(members.values()) if members is not None else None

    def producer_groups(self) -> dict[str, list[Member]]:
        return {name: list(members.values()) for name, members in self._producers.items()}

    def find_client(self, client_id: str) -> Peer | None:
        """The connection of the client with this id; the latest if several carry it (request-reply)."""
        connections = self._clients.get(client_id)
        return next(reversed(connections)) if connections else None

    def pick_producer(self, group: str) -> Peer | None:
        """One connection of the producer group, another one at each call (transaction checks)."""
        members = self._producers.get(group)
        if not members:
            return None
        self._turn += 1
        return list(members)[self._turn % len(members)]

    def counts(self) -> tuple[int, int]:
        """How many consumer and producer memberships there are."""
        consumers = sum(len(group.members) for group in self._consumers.values())
        return consumers, sum(len(members) for members in self._producers.values())


def _change(group: ConsumerGroup) -> GroupChange:
    return GroupChange(group.name, tuple(group.members))


def _stale(members: Iterable[Member], oldest_ms: int) -> list[Member]:
    return [member for member in members if member.last_heartbeat_ms < oldest_ms]
