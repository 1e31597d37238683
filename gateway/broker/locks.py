"""LockTable: which client may consume which queue in order (LOCK_BATCH_MQ, UNLOCK_BATCH_MQ).

Orderly consumers lock a queue before they consume it, lock again every 20 s and treat a lock older than 30 s as lost;
here a lock lives 60 s after it was last asked for. Locks live in memory only: after a restart the first to ask gets
the queue, as with the official RebalanceLockManager. The table is bounded; a lock that finds no room is not granted,
which the client takes for "held by somebody else" and asks again.
"""

from collections.abc import Callable, Iterable

from protocol.bodies import MessageQueue

LOCK_LIFETIME_MS = 60_000
MAX_LOCKS = 200_000


class LockTable:
    """Queue locks by group; `now_ms` is the clock."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._groups: dict[str, dict[MessageQueue, tuple[str, int]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def lock(self, group: str, client_id: str, queues: Iterable[MessageQueue]) -> list[MessageQueue]:
        """Locks what is free, expired or already this client's; returns the queues that the client holds now."""
        now = self._now_ms()
        held = self._groups.setdefault(group, {})
        granted = []
        for queue in dict.fromkeys(queues):
            entry = held.get(queue)
            if entry is None:
                if self._count >= MAX_LOCKS:
                    continue
                self._count += 1
            elif entry[0] != client_id and now - entry[1] <= LOCK_LIFETIME_MS:
                continue
            held[queue] = (client_id, now)
            granted.append(queue)
        if not held:
            del self._groups[group]
        return granted

    def unlock(self, group: str, client_id: str, queues: Iterable[MessageQueue]) -> None:
        """Frees those of the queues that this client holds; others' locks stay."""
        held = self._groups.get(group)
        if held is None:
            return
        for queue in queues:
            entry = held.get(queue)
            if entry is not None and entry[0] == client_id:
                del held[queue]
                self._count -= 1
        if not held:
            del self._groups[group]

    def expire(self) -> int:
        """Forgets locks that nobody renewed; returns how many. They were free to take before, this frees memory."""
        oldest = self._now_ms() - LOCK_LIFETIME_MS
        forgotten = 0
        for group, held in list(self._groups.items()):
            for queue in [queue for queue, (_, asked_ms) in held.items() if asked_ms < oldest]:
                del held[queue]
                forgotten += 1
            if not held:
                del self._groups[group]
        self._count -= forgotten
        return forgotten
