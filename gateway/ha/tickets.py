"""Tickets: what ties a slave's HA connection to the join that it has agreed on over remoting. Pure.

The HA wire starts with an offset of the slave. A PocketMQ slave sends a ticket instead, a random negative number that
it got with the answer to its join; official slaves have no negative offsets. A ticket is good once and for a short
time, and only the newest `LIMIT` are kept.
"""

import secrets
from typing import NamedTuple

LIMIT = 64
GOOD_FOR_SECONDS = 30.0


class Join(NamedTuple):
    """A slave whose log was compared: who it is, what it has, and where it is sent from on."""

    broker_id: int
    name: str
    begin_offset: int
    lacks_older: bool = False  # it was empty and does not get all that the master has
    address: str = ""  # where its clients find it


class Tickets:
    """Joins whose HA connection is still to come."""

    def __init__(self) -> None:
        self._joins: dict[int, tuple[float, Join]] = {}

    def issue(self, join: Join, now: float) -> int:
        """A new ticket, below 0; `now` in seconds."""
        while len(self._joins) >= LIMIT:
            del self._joins[next(iter(self._joins))]
        ticket = -1 - secrets.randbits(62)
        self._joins[ticket] = (now + GOOD_FOR_SECONDS, join)
        return ticket

    def redeem(self, ticket: int, now: float) -> Join | None:
        """What was agreed; None if the ticket is unknown, used or too old."""
        good_until, join = self._joins.pop(ticket, (now - 1, None))
        return join if now <= good_until else None
