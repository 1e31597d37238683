"""How a slave and its master find out that their logs are one log, before the HA link is opened.

A PocketMQ master is asked with our own requests: it compares names, offsets and bytes, and says from where it will
send. An official master does not know them (4.8.0 does not even answer), so the first question is an official one,
whose answer tells the make. Of an official master, its own answers are compared here: names and file size from its
configuration, offsets from its runtime info, and the message at the place of our last one.

A new slave that is to have the whole log of an official master needs a trick, because that master takes a reported
offset 0 for "the last file": the slave reports the master's oldest offset; and if that is 0 it first fetches the one
message there by its id, and reports where that ends.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import structlog

from gateway.client import CallFailed, RemotingClient
from gateway.ha import history
from gateway.ha.history import MAX_CHECK_BYTES, WINDOW_BYTES, Holdings, Parting, Sameness
from gateway.ha.parts import LogStorage
from protocol.bodies.routes import KVTable
from protocol.codes import ResponseCode
from protocol.command import OWN_LANGUAGE, Command
from protocol.errors import RemoteProtocolError
from protocol.header import Header
from protocol.requests.queries import ViewMessageById
from protocol.requests.replication import (
    JoinReplication,
    JoinReplicationReply,
    QueryReplication,
    QueryReplicationReply,
)
from protocol.requests.runtime import GetBrokerConfig, GetBrokerRuntimeInfo
from store.errors import OffsetOutOfRange

log = structlog.get_logger(__name__)

CALL_SECONDS = 10.0
STEP_BYTES = 64 << 10  # compared at a time to find the place where two logs part

MISSING = "no answer"


class JoinRefused(Exception):
    """This master cannot be followed; the text says why, and what to do."""


class TryLater(Exception):
    """The master did not say yes or no; the text says what happened."""


class Plan(NamedTuple):
    """A join that was agreed on."""

    first_report: int
    """What is sent first on the HA connection: a ticket, or an offset."""
    begin_offset: int | None
    """Where the first bytes belong; None: an official master chooses the file."""
    own_make: bool
    eager: bool = True
    """Whether producers wait for our reports; if not, one in a while will do."""


class Joiner:
    """Asks the master behind `client` on behalf of the slave that `storage` and the names belong to."""

    def __init__(
        self,
        client: RemotingClient,
        storage: LogStorage,
        *,
        cluster: str,
        broker: str,
        broker_id: int,
        address: str,
        file_size: int,
        whole_log: bool,
    ) -> None:
        self._client = client
        self._storage = storage
        self._cluster = cluster
        self._broker = broker
        self._broker_id = broker_id
        self._address = address
        self._file_size = file_size
        self._whole_log = whole_log

    def holdings(self) -> Holdings:
        """Who this slave is and which part of the log it has."""
        store = self._storage.store
        return Holdings(self._cluster, self._broker, self._file_size, store.start_offset, store.end_offset)

    async def join(self) -> Plan:
        """Agrees with the master on where to go on; raises JoinRefused or TryLater."""
        try:
            config = await self._ask(GetBrokerConfig())
            if config.language != OWN_LANGUAGE:
                return await self._join_official(config)
            answer = await self._ask(QueryReplication())
            if answer.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED:
                return await self._join_official(config)
            return await self._join_own(answer)
        except (CallFailed, RemoteProtocolError, OffsetOutOfRange) as error:
            raise TryLater(str(error)) from None

    async def _ask(self, header: Header) -> Command:
        return await self._client.call(Command(header.code, header=header), CALL_SECONDS)

    # ---- a master of our own make

    async def _join_own(self, facts: Command) -> Plan:
        if facts.code != ResponseCode.SUCCESS:
            raise TryLater(facts.remark or MISSING)
        master = _holdings(facts.typed_header(QueryReplicationReply))
        ours = self.holdings()
        check_from, checksum = await self._own_checksum(ours, master)
        answer = await self._ask(
            JoinReplication(
                cluster_name=ours.cluster,
                broker_name=ours.broker,
                broker_id=self._broker_id,
                file_size=ours.file_size,
                start_offset=ours.start,
                end_offset=ours.end,
                check_offset=check_from,
                checksum=checksum,
                whole_log=self._whole_log,
                address=self._address,
            )
        )
        if answer.code == ResponseCode.SYSTEM_BUSY:
            raise TryLater(answer.remark or MISSING)
        if answer.code == ResponseCode.NO_PERMISSION:
            raise JoinRefused(answer.remark or MISSING)
        if answer.code != ResponseCode.SUCCESS:
            raise JoinRefused(await self._why_refused(ours, master, answer.remark or MISSING))
        reply = answer.typed_header(JoinReplicationReply)
        if reply.ticket >= 0 or not self._fits(reply.begin_offset, ours):
            raise TryLater(f"the master's answer makes no sense: {reply}")
        return Plan(reply.ticket, reply.begin_offset, own_make=True, eager=reply.eager)

    def _fits(self, begin: int, ours: Holdings) -> bool:
        return begin % self._file_size == 0 if ours.start == ours.end else begin == ours.end

    async def _own_checksum(self, ours: Holdings, master: Holdings) -> tuple[int, int]:
        """(from, CRC-32) of our last bytes that the master should have too."""
        low = max(ours.start, master.start)
        if low >= ours.end:
            return ours.end, 0
        return await self._storage.read_cold(partial(self._sum_window, low, ours.end, WINDOW_BYTES))

    def _sum_window(self, low: int, end: int, step: int) -> tuple[int, int]:
        read = self._storage.store.read_raw
        begin = max(history.window(low, end, read, step), end - MAX_CHECK_BYTES)
        return begin, history.checksum(begin, end, read)

    async def _why_refused(self, ours: Holdings, master: Holdings, remark: str) -> str:
        """The master's reason, or where the logs part if bytes that both have differ."""
        low, end = max(ours.start, master.start), min(ours.end, master.end)
        if low >= end or history.why_not(master, ours._replace(end=end)) is not None:
            return remark
        place = await self._parting(low, end)
        if place.latest < end:
            return history.differs(ours.end, place)
        return f"{remark}. {place}" if place.earliest == end else remark

    async def _parting(self, low: int, end: int) -> Parting:
        """Where the two logs part in [low, end); `latest` is `end` if no byte was found to differ."""

        async def same(equal: int, until: int) -> bool:
            begin, checksum = await self._storage.read_cold(partial(self._sum_window, equal, until, STEP_BYTES))
            answer = await self._ask(QueryReplication(offset=begin, length=until - begin))
            if answer.code != ResponseCode.SUCCESS:
                raise CallFailed(answer.remark or MISSING)
            return checksum == answer.typed_header(QueryReplicationReply).checksum

        place = await parting(low, end, same)
        try:
            read = self._storage.store.read_raw
            first, _ = await self._storage.read_cold(partial(history.last_message_before, low, place.earliest, read))
        except OffsetOutOfRange:
            first = None
        return place if first is not None or low == 0 else place._replace(earliest=0)

    # ---- an official master

    async def _join_official(self, config: Command) -> Plan:
        ours = self.holdings()
        master = await self._official_holdings(config)
        if master is None:
            self._not_compared("the master does not let this broker ask (ACL)")
            return Plan(ours.end, ours.end if ours.start < ours.end else None, own_make=False)
        reason = history.why_not(master, ours)
        if reason is not None:
            raise JoinRefused(reason)
        if ours.start < ours.end:
            await self._compare_last_message(ours, master)
            return Plan(ours.end, ours.end, own_make=False)
        if not self._whole_log or master.start == master.end:
            return Plan(0, None, own_make=False)
        if master.start == 0:
            await self._fetch_first_message()
            end = self._storage.store.end_offset
            return Plan(end, end, own_make=False)
        return Plan(master.start, master.start, own_make=False)

    async def _official_holdings(self, config: Command) -> Holdings | None:
        """What an official master tells of itself; None if it may not. Raises TryLater: one that starts up fails."""
        runtime = await self._ask(GetBrokerRuntimeInfo())
        for answer in (config, runtime):
            if _is_denied(answer):
                return None
            if answer.code != ResponseCode.SUCCESS:
                raise TryLater(answer.remark or MISSING)
        settings = dict(line.split("=", 1) for line in config.body.decode().splitlines() if "=" in line)
        figures = KVTable.decode(runtime.body).table
        try:
            return Holdings(
                settings["brokerClusterName"],
                settings["brokerName"],
                int(settings["mappedFileSizeCommitLog"]),
                max(0, int(figures["commitLogMinOffset"])),  # -1 before there is a file
                int(figures["commitLogMaxOffset"]),
            )
        except (KeyError, ValueError) as error:
            raise TryLater(f"the master does not tell what it holds: {error!r}") from None

    async def _compare_last_message(self, ours: Holdings, master: Holdings) -> None:
        """Raises JoinRefused if the master has another message where we have our last one."""
        low = max(ours.start, master.start)
        if low >= ours.end:
            return
        read = self._storage.store.read_raw
        begin, data = await self._storage.read_cold(partial(history.last_message_before, low, ours.end, read))
        if begin is None:
            self._not_compared("no message begins in both logs")
            return
        answer = await self._ask(ViewMessageById(offset=begin))
        if _is_denied(answer):
            self._not_compared(answer.remark or MISSING)
            return
        sameness = history.same_message(data, answer.code, answer.remark, answer.body)
        if sameness is Sameness.DIFFERENT:
            raise JoinRefused(history.differs(ours.end))
        if sameness is Sameness.UNKNOWN:
            raise TryLater(answer.remark or MISSING)

    def _not_compared(self, reason: str) -> None:
        log.warning("history_not_compared", master=self._client.address, reason=reason)

    async def _fetch_first_message(self) -> None:
        answer = await self._ask(ViewMessageById(offset=0))
        if answer.code != ResponseCode.SUCCESS or history.last_message(answer.body, 0) != 0:
            raise TryLater(f"the master does not give its first message: {answer.remark or MISSING}")
        self._storage.append_raw(0, answer.body)


async def parting(low: int, high: int, same: Callable[[int, int], Awaitable[bool]]) -> Parting:
    """Where two logs part in [low, high); `high` stands for nowhere.

    `same(equal, until)` tells whether they are equal up to `until`, knowing that they are up to `equal`. The place is
    exact, except where an answer failed.
    """
    earliest, latest = low, high
    while earliest < latest:
        middle = (earliest + latest + 1) // 2
        try:
            equal = await same(earliest, middle)
        except (CallFailed, RemoteProtocolError, OffsetOutOfRange):
            break
        if equal:
            earliest = middle
        else:
            latest = middle - 1
    return Parting(earliest, latest)


def _is_denied(answer: Command) -> bool:
    """Whether the master's ACL is why it does not answer; official brokers show their AclException as SYSTEM_ERROR."""
    return answer.code == ResponseCode.NO_PERMISSION or "AclException" in (answer.remark or "")


def _holdings(facts: QueryReplicationReply) -> Holdings:
    return Holdings(facts.cluster_name, facts.broker_name, facts.file_size, facts.start_offset, facts.end_offset)
