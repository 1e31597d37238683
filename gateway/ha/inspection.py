"""What a master can find out about an official slave, which tells nothing but the offset where its log ends.

The slave is a broker too: the name servers know its address by our broker name and the host that its HA connection
comes from, its runtime info tells whether it is the one that ends at this offset, and its answer to VIEW_MESSAGE_BY_ID
shows whether the last message before that offset is ours. So an official slave whose history differs is recognised
without its having to cooperate. Where it cannot be asked, nothing is proved either way.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial

import trio

from gateway.client import CallFailed, RemotingClient, open_client
from gateway.ha import history
from gateway.ha.history import Sameness
from gateway.ha.parts import LogStorage
from protocol.bodies.routes import ClusterInfo, KVTable
from protocol.codes import ResponseCode
from protocol.command import Command
from protocol.errors import RemoteProtocolError
from protocol.header import Header
from protocol.requests.queries import ViewMessageById
from protocol.requests.routes import GetBrokerClusterInfo
from protocol.requests.runtime import GetBrokerRuntimeInfo
from store.errors import OffsetOutOfRange

INSPECTION_SECONDS = 5.0  # an official slave waits 20 s for the first byte
CALL_SECONDS = 2.0

OpenClient = Callable[[str], AbstractAsyncContextManager[RemotingClient]]


class Inspector:
    """Compares official slaves of `broker_name` with our log."""

    def __init__(
        self,
        storage: LogStorage,
        broker_name: str,
        namesrvs: Sequence[str],
        *,
        open_client: OpenClient = open_client,
    ) -> None:
        self._storage = storage
        self._broker_name = broker_name
        self._namesrvs = namesrvs
        self._open_client = open_client

    async def compare(self, host: str, end: int) -> Sameness:
        """Whether the slave on `host` whose log ends at `end` has our messages; takes INSPECTION_SECONDS at most.

        If several on that host end there, it is not known which of them asks: one that differs speaks for all.
        """
        found = Sameness.UNKNOWN
        with trio.move_on_after(INSPECTION_SECONDS), suppress(RemoteProtocolError, OffsetOutOfRange):
            for address in await self._addresses(host):
                sameness = await self._compare_with(address, end)
                if sameness is Sameness.DIFFERENT:
                    return sameness
                if sameness is Sameness.SAME:
                    found = sameness
        return found

    async def _addresses(self, host: str) -> list[str]:
        """Where slaves of this broker on that host take requests, as the first name server that answers knows it."""
        for namesrv in self._namesrvs:
            answer = await self._ask(namesrv, GetBrokerClusterInfo())
            if answer is not None and answer.code == ResponseCode.SUCCESS:
                broker = ClusterInfo.decode(answer.body).broker_addr_table.get(self._broker_name)
                addresses = broker.broker_addrs if broker is not None else {}
                return [address for number, address in addresses.items() if number and _host(address) == host]
        return []

    async def _compare_with(self, address: str, end: int) -> Sameness:
        runtime = await self._ask(address, GetBrokerRuntimeInfo())
        if runtime is None or KVTable.decode(runtime.body).table.get("commitLogMaxOffset") != str(end):
            return Sameness.UNKNOWN  # another slave on that host
        store = self._storage.store
        begin, data = await self._storage.read_cold(
            partial(history.last_whole_message_before, store.start_offset, end, store.read_raw)
        )
        answer = None if begin is None else await self._ask(address, ViewMessageById(offset=begin))
        return Sameness.UNKNOWN if answer is None else _same(data, answer)

    async def _ask(self, address: str, header: Header) -> Command | None:
        """The answer; None if there is none."""
        async with self._open_client(address) as client:
            with suppress(CallFailed):
                return await client.call(Command(header.code, header=header), CALL_SECONDS)
        return None


def _same(data: bytes, answer: Command) -> Sameness:
    return history.same_message(data, answer.code, answer.remark, answer.body)


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")
