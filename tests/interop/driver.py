"""The official Java client, driven from Python: one JVM per client version and header serialization.

Owns the JVM that runs `java/interop/Driver.java` and the pairing of questions with answers; a Driver may be
used from several threads. The clients it makes are handles: Producer, PushConsumer, LitePullConsumer,
PullConsumer. What the client returns comes back as the JSON objects that Texts.java describes.
"""

import concurrent.futures
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from tests.interop import maven, raw

Json = dict[str, Any]

JAVA_SOURCES: Final = Path(__file__).resolve().parent / "java"

JVM: Final = [
    *("-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"),
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in ("java.nio", "sun.nio.ch")),  # 4.8.0's netty
]

# Milliseconds; 20,000 and 30,000 by default. The first is still so long that who sees a rebalance within
# 5 s knows that the broker asked for it.
REBALANCE_PERIOD: Final = 8_000
HEARTBEAT_PERIOD: Final = 3_000


class ClientError(Exception):
    """The exception that the official client threw, with its causes, as text."""


class Driver:
    """One JVM with the official client of one version; ends with the `with` block."""

    def __init__(self, version: str, serialization: str = "JSON", **system_properties: str) -> None:
        self.version = version
        self.serialization = serialization
        self.folder = Path(tempfile.mkdtemp(prefix=f"pocketmq-client-{version}-"))
        self._numbers = itertools.count(1)
        self._waiting: dict[int, concurrent.futures.Future[Any]] = {}
        self._lock = threading.Lock()
        classes = maven.compiled(JAVA_SOURCES.rglob("*.java"), "client", version)
        properties = {
            "user.home": str(self.folder),  # its logs and the offsets of broadcasting consumers go there
            "java.io.tmpdir": str(self.folder),
            "rocketmq.serialize.type": serialization,
            "rocketmq.client.rebalance.waitInterval": str(REBALANCE_PERIOD),
            **system_properties,
        }
        self._errors = (self.folder / "stderr").open("wb")
        self._popen = subprocess.Popen(
            [
                *("java", *JVM),
                *(f"-D{key}={value}" for key, value in properties.items()),
                *("-cp", maven.classpath("client", version, classes), "interop.Driver"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._questions = self._popen.stdin
        self._reader = threading.Thread(target=self._read, args=(self._popen.stdout,), daemon=True)
        self._reader.start()

    def _read(self, answers: IO[bytes]) -> None:
        with answers:
            for line in answers:
                answer = json.loads(line)
                with self._lock:
                    future = self._waiting.pop(answer["id"])
                if "error" in answer:
                    future.set_exception(ClientError(answer["error"]))
                else:
                    future.set_result(answer.get("result"))
        with self._lock:
            left = list(self._waiting.values())
            self._waiting.clear()
        for future in left:
            future.set_exception(ClientError("the JVM ended"))

    def begin(self, command: str, **arguments: Any) -> "concurrent.futures.Future[Any]":
        """Sends a command and returns the future of its result; ClientError when the client throws."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = future
            self._questions.write(json.dumps({"id": number, "do": command, **arguments}).encode() + b"\n")
            self._questions.flush()
        return future

    def do(self, command: str, *, within: float = 60.0, **arguments: Any) -> Any:
        """The result of a command, for which it has `within` seconds."""
        return self.begin(command, **arguments).result(within)

    def fresh(self, what: str) -> str:
        """A name that no other client of this or another driver bears."""
        return f"{what}-{raw.nonce()}"

    def producer(self, namesrv: str, *, group: str | None = None, **options: Any) -> "Producer":
        """A started producer; options as in Producers.java: retries, timeout, vip, transactional, …"""
        name = self.fresh("producer")
        client_id = self.do("producer", name=name, namesrv=namesrv, group=group or name, **options)
        return Producer(self, name, group or name, client_id)

    def push(self, namesrv: str, topic: str, *, group: str | None = None, **options: Any) -> "PushConsumer":
        """A started push consumer; options as in PushConsumers.java: tags, broadcast, where, orderly, …

        Now and then two threads of a 5.x consumer want to send its first heartbeat and neither does; the broker, of
        whatever make, then has nothing for it until the next one, 30 s later unless it is told otherwise.
        """
        if self.version.startswith("5."):
            options = {"heartbeat": HEARTBEAT_PERIOD, **options}
        name = self.fresh("push")
        group = group or name
        client_id = self.do("push", name=name, namesrv=namesrv, topic=topic, group=group, **options)
        return PushConsumer(self, name, group, client_id)

    def lite(self, namesrv: str, topic: str, *, group: str | None = None, **options: Any) -> "LitePullConsumer":
        """A started lite pull consumer, subscribed to the topic unless `assign` lists queues."""
        name = self.fresh("lite")
        group = group or name
        client_id = self.do("lite", name=name, namesrv=namesrv, topic=topic, group=group, **options)
        return LitePullConsumer(self, name, group, client_id)

    def puller(self, namesrv: str, *, group: str | None = None, **options: Any) -> "PullConsumer":
        """A started pull consumer of the older kind."""
        name = self.fresh("pull")
        group = group or name
        client_id = self.do("puller", name=name, namesrv=namesrv, group=group, **options)
        return PullConsumer(self, name, group, client_id)

    def close(self) -> None:
        """Ends the JVM, and with it every client that was not closed."""
        with contextlib.suppress(OSError):
            self._questions.close()
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join(5)
        self._errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL: the clients vanish without a word."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Client:
    """What the handles share: a name in the JVM, a group, a client id; closed with the `with` block."""

    def __init__(self, driver: Driver, name: str, group: str, client_id: str) -> None:
        self.driver = driver
        self.name = name
        self.group = group
        self.client_id = client_id

    def do(self, command: str, *, within: float = 60.0, **arguments: Any) -> Any:
        """A command to this client."""
        return self.driver.do(command, within=within, name=self.name, **arguments)

    def close(self) -> None:
        """The client's own orderly shutdown."""
        self.do("shutdown")

    def leave(self) -> None:
        """What the end of a `with` block does: closes, and does not mind an error."""
        with contextlib.suppress(ClientError, concurrent.futures.TimeoutError):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


class Unattended(Client):
    """A client whose end nobody watches. 5.x needs up to 3 s for it, so it is begun and not waited for."""

    def leave(self) -> None:
        self.driver.begin("shutdown", name=self.name)


class Producer(Unattended):
    """DefaultMQProducer or TransactionMQProducer, and the questions that MQAdmin can ask."""

    def create_topic(self, topic: str, queues: int = 4) -> None:
        """Creates the topic on every broker that has TBW102."""
        self.do("createTopic", topic=topic, queues=queues)

    def send(
        self,
        topic: str,
        body: str | None = None,
        *,
        mode: str = "sync",
        to: Mapping[str, object] | None = None,
        select: int | None = None,
        **message: Any,
    ) -> Json:
        """Sends one message: mode sync, async or oneway; `to` a queue, or `select`ed by number, or wherever.

        `message`: tags, keys, props, flag, wait, delay, system (properties as setters of newer clients write
        them); size and seed instead of a body. The result has the fields of SendResult (none of them when
        oneway) and `sentAt` in µs.
        """
        how: Json = {"mode": mode}
        if to is not None:
            how.update(broker=to["broker"], queue=to["queue"])
        if select is not None:
            how["select"] = select
        content = message if body is None else {"body": body, **message}
        result: Json = self.do("send", topic=topic, message=content, **how)
        return result

    def send_many(self, topic: str, prefix: str, count: int, *, mode: str = "sync", **message: Any) -> list[Json]:
        """Sends `count` messages with the bodies prefix0, prefix1, …"""
        results: list[Json] = self.do("sendMany", topic=topic, prefix=prefix, count=count, mode=mode, message=message)
        return results

    def send_batch(
        self, topic: str, messages: Sequence[Mapping[str, object]], to: Mapping[str, object] | None = None
    ) -> Json:
        """Sends the messages as one batch."""
        where: Json = {} if to is None else {"broker": to["broker"], "queue": to["queue"]}
        result: Json = self.do("batch", topic=topic, messages=list(messages), **where)
        return result

    def queues(self, topic: str) -> list[Json]:
        """The queues it would send to."""
        queues: list[Json] = self.do("publishQueues", topic=topic)
        return queues

    def offset(self, kind: str, queue: Mapping[str, object], **more: Any) -> int:
        """One of minOffset, maxOffset, earliest, searchOffset (with timestamp, ms)."""
        value: int = self.do(kind, **{**queue, **more})
        return value

    def view(self, topic: str, message_id: str) -> Json:
        """The message with that offset id (or unique id, if the broker has an index)."""
        message: Json = self.do("view", topic=topic, msgId=message_id)
        return message

    def query(self, topic: str, key: str, **limits: Any) -> list[Json]:
        """The messages with that key; limits begin, end (ms), max."""
        messages: list[Json] = self.do("query", topic=topic, key=key, **limits)
        return messages

    def flow(self, topic: str, file: Path, **options: Any) -> "Flow":
        """Starts sending, recording what is acknowledged in `file`.

        Options: threads, size, limit, pause (ms after each message of a thread; 0).
        """
        name = self.driver.fresh("flow")
        self.driver.do("flow", name=name, producer=self.name, topic=topic, file=str(file), keys=f"{name}-", **options)
        return Flow(self.driver, name, self.group, self.client_id)


class Flow(Client):
    """Threads that send until stopped."""

    def state(self) -> Json:
        """Counts so far: acknowledged (SEND_OK), failed, lastError, running."""
        state: Json = self.do("flowState")
        return state

    def stop(self) -> Json:
        """Stops sending and returns the last counts."""
        state: Json = self.do("stopFlow", within=90.0)
        return state

    @staticmethod
    def acknowledged(file: Path, statuses: Sequence[str] = ("SEND_OK",)) -> list[Json]:
        """What the file says was acknowledged. A last line cut short by a kill was not."""
        names = ("key", "msgId", "offsetMsgId", "broker", "queue", "offset", "status")
        rows = [
            dict(zip(names, line.split(), strict=True))
            for line in file.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
        return [
            {**row, "queue": int(row["queue"]), "offset": int(row["offset"])}
            for row in rows
            if row["status"] in statuses
        ]


class PushConsumer(Client):
    """DefaultMQPushConsumer that keeps what it is given.

    5.3.3 now and then misses its own first rebalance (two of its threads want to send the first heartbeat)
    and then waits for the next period, so the default patience is several of REBALANCE_PERIOD.
    """

    def received(self, count: int = 0, *, timeout: float = 45.0, skip: int = 0) -> list[Json]:
        """All received so far (after the first `skip`), once there are `count` or `timeout` seconds are
        over.
        """
        messages: list[Json] = self.do(
            "received", count=count, timeout=int(timeout * 1000), within=timeout + 30, **{"from": skip}
        )
        return messages

    def assigned(self, topic: str) -> list[Json]:
        """The topic's queues that it holds now."""
        return [queue for queue in self.do("assigned") if queue["topic"] == topic]

    def pulls_from(self, queue: Mapping[str, Any]) -> int:
        """The id of the broker that its next pull of the queue goes to."""
        broker_id: int = self.do("pullsFrom", **queue)
        return broker_id


class LitePullConsumer(Client):
    """DefaultLitePullConsumer."""

    def poll(self, count: int, *, timeout: float = 45.0) -> list[Json]:
        """Polls until it has `count` messages or `timeout` seconds are over."""
        messages: list[Json] = self.do("poll", count=count, timeout=int(timeout * 1000), within=timeout + 30)
        return messages

    def at(self, kind: str, queue: Mapping[str, object], **more: Any) -> Any:
        """One of seek (with offset), committed, offsetForTimestamp (with timestamp, ms)."""
        return self.do(kind, **{**queue, **more})


class PullConsumer(Unattended):
    """DefaultMQPullConsumer."""

    def pull(self, queue: Mapping[str, object], offset: int, **options: Any) -> Json:
        """One pull; options max, tags, sql, block, async. Status, next, min, max, messages."""
        result: Json = self.do("pull", **{**queue, "offset": offset, **options})
        return result

    def queues(self, topic: str) -> list[Json]:
        """The topic's queues to read from."""
        queues: list[Json] = self.do("pullQueues", topic=topic)
        return queues
