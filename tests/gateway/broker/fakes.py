"""Small stand-ins for what the broker's tables and handlers meet: a clock that is set, a peer that remembers."""

from dataclasses import dataclass, field

from protocol.command import Command


class Clock:
    """A clock that moves when a test says so; `clock()` is epoch milliseconds."""

    def __init__(self, start_ms: int = 1_700_000_000_000) -> None:
        self.ms = start_ms

    def __call__(self) -> int:
        return self.ms

    def advance(self, ms: int) -> None:
        self.ms += ms


@dataclass(eq=False)
class FakePeer:
    """A connection that keeps what it was told."""

    remote_address: str = "10.0.0.9:40000"
    peer_host: bytes = bytes([10, 0, 0, 9]) + (40000).to_bytes(4, "big")
    notices: list[Command] = field(default_factory=list)
    closed: bool = False

    def notify(self, command: Command) -> None:
        self.notices.append(command)

    async def request(self, command: Command, timeout: float) -> Command:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True
