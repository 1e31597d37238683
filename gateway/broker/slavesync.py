"""A slave's copy of its master's tables: topics, consumer offsets, delivered delay offsets, groups (spec/ha.md 3).

A round each 10 s in the official order, each step for itself: what fails is tried again in the next round, and the
others still count. A message of a topic that the table lacks brings the next round forward: a consumer that has to read
here must not be told for ten seconds that there is no such topic.

Official slaves ask for the topics at the fast port (the master's port - 2) and get none if a firewall hides it; here
the main port is asked then, which answers the same.

Only a master that this slave is linked to is asked, because only its log agrees with ours: one that lost its log, or
has another, has tables to match, and they must not replace those of the messages here.

The delay offsets are only kept on disk: delivery does not run on a slave, and reads them when it starts as a master.
"""

from collections.abc import Awaitable, Callable, Set
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import structlog
import trio

from gateway.broker import names
from gateway.broker.groups import GroupTable
from gateway.broker.offsets import OffsetTable
from gateway.broker.topics import TopicTable
from gateway.client import CallFailed, RemotingClient, open_client, split_address
from gateway.routing import Refused
from protocol.bodies.groups import GroupTableBody
from protocol.bodies.offsets import ConsumerOffsetBody, DelayOffsetBody
from protocol.bodies.topics import TableVersion, TopicTableBody
from protocol.codes import RequestCode, ResponseCode
from protocol.command import Command
from protocol.errors import RemoteProtocolError
from store.engine import Arrivals
from store.jsonfile import save_json

log = structlog.get_logger(__name__)

ROUND_SECONDS = 10.0
RETRY_SECONDS = 1.0
MAX_UNKNOWN_TOPICS = 10_000
CALL_SECONDS = 3.0
FAST_PORT_DISTANCE = 2
TIMERS = "a master of 5.x delivers them when they are due; this broker, if it becomes the master, does not"

WriteFile = Callable[[Callable[[], None]], Awaitable[OSError | None]]


class SlaveSync:
    """Copies the tables of the master whose address `master_address` tells; None while there is no link to one."""

    def __init__(
        self,
        topics: TopicTable,
        groups: GroupTable,
        offsets: OffsetTable,
        delay_offsets: Path,
        *,
        master_address: Callable[[], str | None],
        write_file: WriteFile,
    ) -> None:
        self._topics = topics
        self._groups = groups
        self._offsets = offsets
        self._delay_offsets = delay_offsets
        self._master_address = master_address
        self._write_file = write_file
        self._delay_text = b""
        self._kept_offsets: Set[str] = frozenset()
        self._failing: set[str] = set()
        self._unknown_topics: set[str] = set()
        self._topic_seen = trio.Event()
        self._told_of_timers = False

    def arrived(self, messages: Arrivals) -> None:
        """These messages were replicated. Each unknown topic counts once: the master may have deleted it since."""
        for topic in messages.topics:
            if topic == names.TIMER_TOPIC and not self._told_of_timers:
                self._told_of_timers = True
                log.warning("timer_messages_not_delivered", topic=topic, reason=TIMERS)
            if topic not in self._topics and topic not in self._unknown_topics:
                if len(self._unknown_topics) >= MAX_UNKNOWN_TOPICS:
                    self._unknown_topics.clear()
                self._unknown_topics.add(topic)
                self._topic_seen.set()

    async def run(self) -> NoReturn:
        """A round each 10 s, and when an unknown topic was seen or one failed; a second apart at least."""
        while True:
            begun = trio.current_time()
            address = self._master_address()
            self._topic_seen = trio.Event()
            if address is not None and await self.sync(address):
                with trio.move_on_after(ROUND_SECONDS):
                    await self._topic_seen.wait()
            await trio.sleep_until(begun + RETRY_SECONDS)

    async def sync(self, address: str) -> bool:
        """One round with the master at `address`; whether every table is the master's now."""
        async with open_client(address) as client:
            steps: dict[str, Callable[[], Awaitable[None]]] = {
                "topics": lambda: self._sync_topics(client),
                "consumer_offsets": lambda: self._sync_offsets(client),
                "delay_offsets": lambda: self._sync_delay_offsets(client),
                "groups": lambda: self._sync_groups(client),
            }
            is_done = all([await self._step(name, address, step) for name, step in steps.items()])
        if is_done:
            self._offsets.forget_deleted(
                self._kept_offsets, lambda topic, group: topic in self._topics and group in self._groups
            )
        return is_done

    async def sync_topics(self) -> bool:
        """Copies the topics alone, at once; whether they are the master's now."""
        address = self._master_address()
        if address is None:
            return False
        async with open_client(address) as client:
            return await self._step("topics", address, lambda: self._sync_topics(client))

    async def _step(self, name: str, address: str, step: Callable[[], Awaitable[None]]) -> bool:
        try:
            await step()
        except (CallFailed, RemoteProtocolError, Refused, OSError, ValueError) as error:
            if name not in self._failing:
                self._failing.add(name)
                log.warning("not_copied_from_master", table=name, master=address, reason=str(error))
            return False
        if name in self._failing:
            self._failing.discard(name)
            log.info("copied_from_master_again", table=name, master=address)
        return True

    async def _sync_topics(self, client: RemotingClient) -> None:
        host, port = split_address(client.address)
        body: bytes | None = None
        async with open_client(f"{host}:{port - FAST_PORT_DISTANCE}") as fast_client:
            with suppress(CallFailed):
                body = await _fetch(fast_client, RequestCode.GET_ALL_TOPIC_CONFIG)
        if body is None:
            body = await _fetch(client, RequestCode.GET_ALL_TOPIC_CONFIG)
        self._topics.replace(TopicTableBody.decode(body))

    async def _sync_offsets(self, client: RemotingClient) -> None:
        body = ConsumerOffsetBody.decode(await _fetch(client, RequestCode.GET_ALL_CONSUMER_OFFSET))
        self._offsets.merge(body)
        self._kept_offsets = body.offset_table.keys()

    async def _sync_delay_offsets(self, client: RemotingClient) -> None:
        text = await _fetch(client, RequestCode.GET_ALL_DELAY_OFFSET)
        if not text or text == self._delay_text:
            return
        DelayOffsetBody.decode(text)
        error = await self._write_file(lambda: save_json(self._delay_offsets, text))
        if error is not None:
            raise error
        self._delay_text = text

    async def _sync_groups(self, client: RemotingClient) -> None:
        body = await _fetch(client, RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG)
        if TableVersion.decode(body).data_version != self._groups.data_version:  # the whole takes longer to read
            self._groups.replace(GroupTableBody.decode(body))


async def _fetch(client: RemotingClient, code: RequestCode) -> bytes:
    answer = await client.call(Command(code), CALL_SECONDS)
    if answer.code != ResponseCode.SUCCESS:
        raise CallFailed(f"{client.address} answers {code.name} with {answer.code}: {answer.remark}")
    return answer.body
