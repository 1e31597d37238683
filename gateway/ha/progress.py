"""Who has which bytes, and what that acknowledges. Pure state: no sockets, no clock, no store.

A slave counts from the moment it has said how far its log goes and that was found true; a mere TCP connection does
not. Each slave has two offsets: up to where bytes were sent to it, and up to where it says it has them. It cannot have
what it was not sent, so a report beyond that is refused and never counted (official 4.8.0 and 5.x count it).

`acknowledged` is the offset that inSyncReplicas - 1 different slaves have reached at one moment, the slowest of these
counting; the master itself is the other copy. It only grows: bytes that were once in so many places are acknowledged,
even if a slave leaves afterwards.

One slave counts once. A slave of our own make is known by its broker id, and its new link takes the place of the old.
An official one is known by its address only: when it connects again while its half-dead old connection is still there,
the old one is left out of the count until it speaks again.

Invariants: acked <= sent for every slave; `acknowledged` <= the highest `sent`; no offset of a slave goes back.
"""

from collections.abc import Callable
from typing import Protocol

from gateway.watermark import Watermark


class ReportRefused(Exception):
    """A slave says that it has what it cannot have; the text names both offsets."""


class Replica:
    """One slave: how far bytes were sent to it and how far it says it has them.

    `sent` is moved by the sender before the bytes leave.
    """

    __slots__ = ("acked", "address", "broker_id", "counted", "host", "name", "sent")

    def __init__(
        self,
        name: str,
        host: str,
        offset: int,
        broker_id: int | None = None,
        *,
        counted: bool = True,
        address: str = "",
    ) -> None:
        self.name = name
        self.host = host
        self.broker_id = broker_id  # None: an official slave does not tell
        self.address = address  # where its clients find it; empty where it does not tell
        self.sent = offset
        self.acked = offset
        self.counted = counted  # from its next report on, if not at once

    def __repr__(self) -> str:
        return f"<Replica {self.name} acked={self.acked} sent={self.sent}{'' if self.counted else ' not counted'}>"


class ReplicationOptions(Protocol):
    """The keys inSyncReplicas and haSlaveFallbehindMax; both may change while the master runs."""

    in_sync_replicas: int
    ha_slave_fallbehind_max: int


class ReplicaProgress:
    """All slaves of a master."""

    def __init__(self, options: ReplicationOptions) -> None:
        self.acknowledged = Watermark()
        self.hear: Callable[[], None] = lambda: None
        """Takes the reports that have arrived and nobody has had the time to read; whoever has the links sets it."""
        self._options = options
        self._replicas: list[Replica] = []
        self._present = -1  # what enough of the present slaves have; -1: there are not enough
        self._settled_for = 0

    @property
    def needed(self) -> int:
        """How many slaves have to have something. At least one: a SYNC_MASTER that waits for none is none."""
        return max(1, self._options.in_sync_replicas - 1)

    # ---- who is there

    @property
    def replicas(self) -> list[Replica]:
        """The slaves that are connected and have reported; a copy."""
        return list(self._replicas)

    def attach(self, replica: Replica) -> Replica | None:
        """A slave whose log was found to agree with ours up to `replica.acked` takes part from now on.

        Returns the link of the same slave that this one replaces, to be closed by the caller.
        """
        replaced = None
        for other in self._replicas:
            if replica.broker_id is not None:
                if other.broker_id == replica.broker_id:
                    replaced = other
            elif other.broker_id is None and other.host == replica.host:
                other.counted = False
        if replaced is not None:
            self._replicas.remove(replaced)
        self._replicas.append(replica)
        self._settle()
        return replaced

    def detach(self, replica: Replica) -> None:
        """The slave's connection has ended. One that was replaced or never attached changes nothing."""
        if replica in self._replicas:
            self._replicas.remove(replica)
            self._settle()

    # ---- what they have

    def reported(self, replica: Replica, offset: int) -> None:
        """The slave says it has everything below `offset`; wakes whoever waits for that.

        Raises ReportRefused for an offset that it was not sent, or one behind its last report.
        """
        if offset > replica.sent:
            raise ReportRefused(f"it reports offset {offset}, but was sent bytes up to {replica.sent} only")
        if offset < replica.acked:
            raise ReportRefused(f"it reports offset {offset} after it had reported {replica.acked}")
        if offset > replica.acked or not replica.counted or self._settled_for != self.needed:
            replica.acked = offset
            replica.counted = True
            if replica in self._replicas:
                self._settle()

    def _settle(self) -> None:
        needed = self._settled_for = self.needed
        acked = sorted((replica.acked for replica in self._replicas if replica.counted), reverse=True)
        self._present = acked[needed - 1] if len(acked) >= needed else -1
        self.acknowledged.advance(self._present)

    # ---- what that means

    @property
    def are_enough(self) -> bool:
        """Whether as many slaves are there as are needed, however far behind."""
        if self._settled_for != self.needed:
            self._settle()
        return self._present >= 0

    def in_reach(self, offset: int) -> bool:
        """Whether enough slaves have `offset`, or are there and less than haSlaveFallbehindMax behind it.

        If not, a send that waits for them is answered with SLAVE_NOT_AVAILABLE.
        """
        if self.acknowledged.offset >= offset > 0:
            return True
        return self.are_enough and offset - self._present < self._options.ha_slave_fallbehind_max
