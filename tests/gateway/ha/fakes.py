"""A log in memory, a master that is asked without a network, and an official master as far as a slave can see it."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from gateway.client import CallFailed
from gateway.ha.joining import Joiner
from gateway.ha.master import HaMaster, Identity
from gateway.routing import Refused
from gateway.watermark import Watermark
from protocol.bodies.routes import KVTable
from protocol.codes import LanguageCode, RequestCode, ResponseCode
from protocol.command import Command, response
from protocol.message import NewMessage, encode_record
from protocol.requests.queries import ViewMessageById
from protocol.requests.replication import JoinReplication, QueryReplication
from protocol.requests.runtime import GetBrokerConfig
from store.errors import OffsetOutOfRange
from store.options import BrokerRole, StoreOptions

T = TypeVar("T")

FILE_SIZE = 4096
CLUSTER = "DefaultCluster"
BROKER = "broker-a"


def options(**changes: object) -> StoreOptions:
    given = {"mapped_file_size_commit_log": FILE_SIZE, "broker_role": BrokerRole.SYNC_MASTER, **changes}
    return StoreOptions(**given)  # type: ignore[arg-type]


class MemoryLog:
    """The bytes of a log; `start` may be above 0, as after retention."""

    def __init__(self, data: bytes = b"", start: int = 0, file_size: int = FILE_SIZE) -> None:
        self.data = bytearray(data)
        self.start_offset = start
        self.file_size = file_size

    @property
    def end_offset(self) -> int:
        return self.start_offset + len(self.data)

    def read_raw(self, offset: int, limit: int) -> bytes:
        if not self.start_offset <= offset < self.end_offset:
            raise OffsetOutOfRange(offset, self.start_offset, self.end_offset)
        begin = offset - self.start_offset
        return bytes(self.data[begin : begin + min(limit, self.file_size - offset % self.file_size)])

    def append_raw(self, offset: int, data: bytes) -> None:
        if not self.data and offset % self.file_size == 0:
            self.start_offset = offset
        assert offset == self.end_offset, "replication must not write anywhere else"
        self.data += data

    def forget_below(self, offset: int) -> None:
        del self.data[: offset - self.start_offset]
        self.start_offset = offset


class MemoryStorage:
    """Storage around a MemoryLog; threads are not used, flushing is done by hand."""

    def __init__(self, log: MemoryLog) -> None:
        self.store = log
        self.appended = Watermark(log.end_offset)
        self.flushed = Watermark(log.end_offset)
        self.full = False

    def append(self, data: bytes) -> int:
        self.store.append_raw(self.store.end_offset, data)
        self.appended.advance(self.store.end_offset)
        return self.store.end_offset

    def append_raw(self, offset: int, data: bytes) -> int:
        self.store.append_raw(offset, data)
        self.appended.advance(self.store.end_offset)
        return self.store.end_offset

    undispatched_bytes = 0

    def dispatch(self, limit: int) -> bool:
        return False

    def flush(self) -> None:
        self.flushed.advance(self.store.end_offset)

    async def read_cold(self, read: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return read()


def message(offset: int, body: bytes = b"body", store_timestamp: int = 1_700_000_000_000) -> bytes:
    """The record of a message that stands at `offset`."""
    return encode_record(
        NewMessage(
            topic="TopicTest",
            queue_id=0,
            flag=0,
            sys_flag=0,
            born_timestamp=store_timestamp,
            born_host=bytes(8),
            store_host=bytes(8),
            body=body,
            properties=b"",
            tags_code=0,
            physical_offset=offset,
            store_timestamp=store_timestamp,
        )
    )


def messages(begin: int, until: int, *, store_timestamp: int = 1_700_000_000_000, body: bytes = b"body") -> bytes:
    """Messages one behind the other from `begin` on, until `until` is passed; no regard to files."""
    parts = []
    offset = begin
    while offset < until:
        parts.append(message(offset, body, store_timestamp))
        offset += len(parts[-1])
    return b"".join(parts)


class DirectClient:
    """RemotingClient to a HaMaster in the same process."""

    address = "master:10911"

    def __init__(self, master: HaMaster) -> None:
        self._master = master

    async def call(self, command: Command, timeout: float) -> Command:
        header = command.header
        if isinstance(header, GetBrokerConfig):
            return response(command)
        try:
            if isinstance(header, QueryReplication):
                return response(command, header=await self._master.query(header))
            if isinstance(header, JoinReplication):
                return response(command, header=await self._master.join(header, "slave:10911"))
        except Refused as refused:
            return response(command, refused.code, remark=refused.remark)
        return response(command, ResponseCode.REQUEST_CODE_NOT_SUPPORTED)


class OfficialClient:
    """RemotingClient to an official master: what it answers of its configuration, offsets and messages."""

    address = "official:10911"

    def __init__(self, log: MemoryLog, **changes: str) -> None:
        self.log = log
        self.config = {
            "brokerClusterName": CLUSTER,
            "brokerName": BROKER,
            "mappedFileSizeCommitLog": str(log.file_size),
            **changes,
        }
        self.refuses: Mapping[int, ResponseCode] = {}
        self.remark = "refused"
        self.asked: list[int] = []

    async def call(self, command: Command, timeout: float) -> Command:
        await trio.lowlevel.checkpoint()
        self.asked.append(command.code)
        answer = self._answer(command)
        answer.language = LanguageCode.JAVA
        return answer

    def _answer(self, command: Command) -> Command:
        if command.code in self.refuses:
            return response(command, self.refuses[command.code], remark=self.remark)
        if command.code == RequestCode.GET_BROKER_CONFIG:
            return response(command, body="".join(f"{key}={text}\n" for key, text in self.config.items()).encode())
        if command.code == RequestCode.GET_BROKER_RUNTIME_INFO:
            is_new = self.log.end_offset == 0
            offsets = {
                "commitLogMinOffset": str(-1 if is_new else self.log.start_offset),
                "commitLogMaxOffset": str(self.log.end_offset),
            }
            return response(command, body=KVTable(table=offsets).encode())
        if isinstance(command.header, ViewMessageById):
            try:
                data = self.log.read_raw(command.header.offset, 4)
            except OffsetOutOfRange:
                remark = f"can not find message by the offset, {command.header.offset}"
                return response(command, ResponseCode.SYSTEM_ERROR, remark=remark)
            size = int.from_bytes(data, "big")
            return response(command, body=self.log.read_raw(command.header.offset, size))
        raise CallFailed(f"4.8.0 does not answer {command.code}")


class DeadClient:
    """RemotingClient to nobody."""

    address = "dead:10911"

    async def call(self, command: Command, timeout: float) -> Command:
        await trio.lowlevel.checkpoint()
        raise CallFailed("dead:10911: connection refused")


def make_master(log: MemoryLog, **changes: object) -> tuple[HaMaster, MemoryStorage]:
    storage = MemoryStorage(log)
    return HaMaster(storage, options(**changes), Identity(CLUSTER, BROKER)), storage


def make_joiner(client: object, log: MemoryLog, **changes: object) -> Joiner:
    names = {"cluster": CLUSTER, "broker": BROKER, "broker_id": 1, "address": "slave:10911"}
    given = {**names, "file_size": FILE_SIZE, "whole_log": False, **changes}
    return Joiner(client, MemoryStorage(log), **given)  # type: ignore[arg-type]


def opening(client: object) -> Callable[[str], object]:
    """What HaSlave calls to get a client."""

    @asynccontextmanager
    async def open_client(address: str) -> AsyncIterator[object]:
        async with trio.open_nursery():  # as the real one, which turns what is raised inside into groups
            yield client

    return open_client

