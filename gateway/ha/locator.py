"""Where a slave's master is: what name servers say of it, or a fixed address (spec/ha.md 2).

The answers to this broker's own registrations tell the master's address and its HA address. They come each 30 s only,
so while the slave has no link, the name servers' cluster table is asked each second; when it shows a master that is not
the known one, the broker registers again at once and so learns the HA address too. What was told stays valid until
something else is told: a name server that does not know the master says nothing against it.

An HA address that is fixed and not the one that name servers tell may be another broker's: then whoever is beside it is
asked for its log, not the broker that the name servers mean.
"""

from collections.abc import Callable
from typing import NamedTuple, NoReturn

import structlog
import trio

from gateway.addresses import parse_addresses
from gateway.client import CallFailed, RemotingClient, open_client
from protocol.bodies.routes import ClusterInfo
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command
from protocol.errors import RemoteProtocolError
from protocol.requests.routes import GetBrokerClusterInfo, RegisterBrokerReply

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
HA_PORT_DISTANCE = 1  # official: listenPort + 1
SHORTEST_ADDRESS = 6  # official takes no haServerAddr that is shorter


class MasterPlace(NamedTuple):
    """Where slaves connect, and where the same broker takes requests."""

    ha_address: str
    address: str


class MasterLocator:
    """Keeps track of the master of `broker_name`. `register_again` makes the broker register soon."""

    def __init__(
        self,
        broker_name: str,
        namesrv_addr: str,
        *,
        fixed_ha_address: str = "",
        register_again: Callable[[], None] = lambda: None,
    ) -> None:
        self.linked = False
        self._refused = False
        self.register_again = register_again
        self._broker_name = broker_name
        self._namesrvs = [str(address) for address in parse_addresses(namesrv_addr)]
        self._fixed_ha_address = fixed_ha_address
        self._ha_address = fixed_ha_address
        self._told_ha_address = ""
        self._address = ""
        self._changed = trio.Event()

    @property
    def refused(self) -> bool:
        """Whether this slave's log is not its master's: the broker does not show itself to clients meanwhile."""
        return self._refused

    @refused.setter
    def refused(self, refused: bool) -> None:
        if refused != self._refused:
            self._refused = refused
            self.register_again()

    @property
    def master_address(self) -> str | None:
        """The address that takes the master's requests, as far as known."""
        place = self.place
        return place.address if place else self._address or None

    @property
    def place(self) -> MasterPlace | None:
        """Where the master is, if its HA address is known."""
        if not self._ha_address:
            return None
        if self._address and self._ha_address == self._told_ha_address:
            return MasterPlace(self._ha_address, self._address)
        return MasterPlace(self._ha_address, _beside(self._ha_address))

    async def known(self) -> MasterPlace:
        """The master's place, as soon as it is known."""
        while (place := self.place) is None:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        return place

    async def moved_from(self, place: MasterPlace) -> None:
        """Returns when the master is elsewhere than at `place`."""
        while self.place == place:
            await self._changed.wait()

    def answered(self, namesrv: str, reply: RegisterBrokerReply) -> None:
        """Takes what a name server says in answer to a registration."""
        if reply.master_addr and reply.master_addr != self._address:
            log.info("master_found", master=reply.master_addr, ha_address=reply.ha_server_addr, namesrv=namesrv)
            self._address = reply.master_addr
        if len(reply.ha_server_addr or "") >= SHORTEST_ADDRESS:
            self._told_ha_address = reply.ha_server_addr or ""
            self._ha_address = self._fixed_ha_address or self._told_ha_address
        self._changed.set()
        self._changed = trio.Event()

    async def search_forever(self) -> NoReturn:
        """Looks for the master each second while there is no link; each name server has a task of its own."""
        async with trio.open_nursery() as nursery:
            for namesrv in self._namesrvs:
                nursery.start_soon(self._search, namesrv)
            await trio.sleep_forever()
        raise AssertionError("only cancellation ends the nursery")

    async def _search(self, namesrv: str) -> NoReturn:
        async with open_client(namesrv) as client:
            while True:
                await trio.sleep(POLL_SECONDS)
                if self.linked:
                    continue
                address = await self._ask(client)
                if address and (address != self._address or not self._ha_address):
                    self.refused = False  # whether it is, the new master says
                    self.register_again()
        raise AssertionError("the loop does not end")

    async def _ask(self, client: RemotingClient) -> str | None:
        """The master's address in a name server's cluster table; None if it has none or does not answer."""
        try:
            answer = await client.call(
                Command(RequestCode.GET_BROKER_CLUSTER_INFO, header=GetBrokerClusterInfo()), POLL_SECONDS
            )
            if answer.code != ResponseCode.SUCCESS:
                return None
            broker = ClusterInfo.decode(answer.body).broker_addr_table.get(self._broker_name)
        except (CallFailed, RemoteProtocolError):
            return None  # the registration reports name servers that are lost
        return broker.broker_addrs.get(0) if broker is not None else None


def _beside(ha_address: str) -> str:
    """The address for requests that belongs to an HA address, where nobody tells it: the port below."""
    host, _, port = ha_address.rpartition(":")
    return f"{host}:{int(port) - HA_PORT_DISTANCE}"
