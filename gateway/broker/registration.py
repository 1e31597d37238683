"""Registration with every name server: at start, every 30 s, at each change of a topic, and after each lost connection.

Each name server has a task of its own, so one that is dead or hangs delays nobody; whoever waits for a change to be
known waits for those that answer. A registration carries the whole topic table. Changes that come while one is under
way are covered by the next one, not by one each.

For SETTLE_SECONDS after one that failed, registrations come each SETTLE_PERIOD_SECONDS: a name server that hung finds
our older ones and the end of their connection in its sockets, in any order, and may forget us again.

A slave learns from the answers where its master is; `answered` hands them on (spec/ha.md 2).
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import NoReturn

import structlog
import trio

from gateway.broker.topics import TopicTable
from gateway.client import CallFailed, RemotingClient, open_client
from gateway.config import BrokerOptions
from gateway.watermark import Watermark
from protocol.bodies import KVTable, RegisterBrokerBody, crc32
from protocol.codes import PERM_READ, PERM_WRITE, RequestCode, ResponseCode
from protocol.command import Command
from protocol.errors import RemoteProtocolError
from protocol.requests.routes import RegisterBroker, RegisterBrokerReply, UnregisterBroker

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0
SETTLE_SECONDS = 10.0
SETTLE_PERIOD_SECONDS = 3.0
ANNOUNCE_SECONDS = 3.0
LAGGARD_SECONDS = 0.5
UNREGISTER_SECONDS = 1.0

Answered = Callable[[str, RegisterBrokerReply], None]
OpenClient = Callable[[str], AbstractAsyncContextManager[RemotingClient]]


class Registration:
    """Keeps this broker known to its name servers."""

    def __init__(
        self,
        options: BrokerOptions,
        topics: TopicTable,
        ha_address: str,
        *,
        answered: Answered = lambda namesrv, reply: None,
        is_withheld: Callable[[], bool] = lambda: False,
        open_client: OpenClient = open_client,
    ) -> None:
        self._options = options
        self._topics = topics
        self._ha_address = ha_address
        self._answered = answered
        self._is_withheld = is_withheld
        self._open_client = open_client
        self._changes = Watermark()
        # Up to which change each name server was told, or could not be.
        self._asked: dict[str, Watermark] = {
            address.strip(): Watermark() for address in options.namesrv_addr.split(";") if address.strip()
        }
        self._unreachable: set[str] = set()
        self._laggards: set[str] = set()
        self._ordered: dict[str, set[str]] = {}

    def topic_changed(self, topic: str = "") -> None:
        """The topic table has changed: tells all name servers soon."""
        self._changes.advance(self._changes.offset + 1)

    async def announce(self) -> None:
        """Tells the name servers of a change and returns when those that answer know it.

        Once one does, the others have LAGGARD_SECONDS left; who needed longer is not waited for the next time. Called
        while `run` is about to begin, it is the first registration that it waits for.
        """
        self.topic_changed()
        change = self._changes.offset
        waiting = self._asked.keys() - self._unreachable - self._laggards

        async def wait(address: str) -> None:
            await self._asked[address].wait_for(change)
            waiting.discard(address)
            if address not in self._unreachable:
                scope.deadline = min(scope.deadline, trio.current_time() + LAGGARD_SECONDS)

        with trio.move_on_after(ANNOUNCE_SECONDS) as scope:
            async with trio.open_nursery() as nursery:
                for address in list(waiting):
                    nursery.start_soon(wait, address)
        self._laggards |= waiting

    async def run(self) -> NoReturn:
        """Registers until cancelled, then unregisters."""
        async with trio.open_nursery() as nursery:
            for address in self._asked:
                nursery.start_soon(self._keep, address)
            await trio.sleep_forever()

    async def _keep(self, address: str) -> NoReturn:
        async with self._open_client(address) as client:
            try:
                settled = trio.current_time()
                while True:
                    change = self._changes.offset
                    if self._is_withheld():
                        await self._unregister(client)
                        self._asked[address].advance(change)
                        await self._changes.wait_past(change)
                    elif await self._register(client):
                        self._asked[address].advance(change)
                        is_settled = trio.current_time() >= settled
                        period = self._period if is_settled else SETTLE_PERIOD_SECONDS
                        await self._wait_for_cause(client, change, period)
                    else:
                        self._asked[address].advance(change)
                        settled = trio.current_time() + SETTLE_SECONDS
                        await trio.sleep(RETRY_SECONDS)
            finally:
                if address not in self._unreachable:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + UNREGISTER_SECONDS):
                        await self._unregister(client)
        raise AssertionError("only cancellation ends the loop")

    @property
    def _period(self) -> float:
        return min(max(self._options.register_name_server_period, 10_000), 60_000) / 1000

    async def _wait_for_cause(self, client: RemotingClient, known_change: int, period: float) -> None:
        """Returns when it is time to register again: after the period, a change, or a lost connection."""

        async def wait(for_what: Callable[[], object]) -> None:
            await for_what()  # type: ignore[misc]
            nursery.cancel_scope.cancel()

        with trio.move_on_after(period):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, lambda: self._changes.wait_past(known_change))
                nursery.start_soon(wait, client.wait_closed)

    async def _register(self, client: RemotingClient) -> bool:
        try:
            answer = await client.call(self._command(), self._options.register_broker_timeout_mills / 1000)
            if answer.code != ResponseCode.SUCCESS:
                raise CallFailed(f"{client.address} refused the registration: {answer.remark}")
            reply = answer.typed_header(RegisterBrokerReply)
            order = KVTable.decode(answer.body).table if answer.body else {}
        except (CallFailed, RemoteProtocolError) as error:
            if client.address not in self._unreachable:
                self._unreachable.add(client.address)
                log.warning("name_server_lost", namesrv=client.address, reason=str(error))
            return False
        if client.address in self._unreachable:
            self._unreachable.discard(client.address)
            log.info("name_server_found", namesrv=client.address)
        self._laggards.discard(client.address)
        # Name servers do not share their configurations, and one that lost its own takes nothing from the others.
        self._ordered[client.address] = set(order)
        self._topics.set_ordered(set().union(*self._ordered.values()))
        self._answered(client.address, reply)
        return True

    def _command(self) -> Command:
        options = self._options
        table = self._topics.snapshot()
        if options.broker_permission & (PERM_READ | PERM_WRITE) != PERM_READ | PERM_WRITE:
            table = table.with_permission(options.broker_permission)
        body = RegisterBrokerBody(topic_config_serialize_wrapper=table).encode(compressed=options.compressed_register)
        header = RegisterBroker(
            broker_name=options.broker_name,
            broker_addr=f"{options.broker_ip1}:{options.listen_port}",
            cluster_name=options.broker_cluster_name,
            ha_server_addr=self._ha_address,
            broker_id=options.broker_id,
            compressed=options.compressed_register,
            body_crc32=crc32(body),
        )
        return Command(RequestCode.REGISTER_BROKER, header=header, body=body)

    async def _unregister(self, client: RemotingClient) -> None:
        if not client.connected:
            return
        options = self._options
        header = UnregisterBroker(
            broker_name=options.broker_name,
            broker_addr=f"{options.broker_ip1}:{options.listen_port}",
            cluster_name=options.broker_cluster_name,
            broker_id=options.broker_id,
        )
        try:
            await client.call(Command(RequestCode.UNREGISTER_BROKER, header=header), UNREGISTER_SECONDS)
        except CallFailed as error:
            log.info("unregister_failed", namesrv=client.address, reason=str(error))
