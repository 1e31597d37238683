"""Makes tests/data: what official clients, brokers and name servers say to each other, and what they store.

    python -m tests.interop.capture [SCENARIO …]

Everything is thrown away and made anew, so the bytes (ports, times, ids) differ from run to run while their
shape does not; the files of one folder belong together. Tests read the files and never this program.
"""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.interop import external, raw
from tests.interop.child import free_ports, wait_until
from tests.interop.codes import NAMES
from tests.interop.driver import Driver, Producer
from tests.interop.mqadmin import mqadmin
from tests.interop.processes import PROJECT, Broker, Cluster
from tests.interop.wiretap import Exchange, Frame, Wiretap

DATA: Final = PROJECT / "tests" / "data"

# Small enough to be committed whole: the log rolls after a few dozen messages.
SMALL_STORE: Final[Mapping[str, Any]] = {
    "mappedFileSizeCommitLog": 16384,
    "mappedFileSizeConsumeQueue": 1000,
    "maxHashSlotNum": 50,
    "maxIndexNum": 200,
    "flushConsumerOffsetInterval": 500,
    "flushDelayOffsetInterval": 1000,
    "defaultTopicQueueNums": 4,
    "transactionCheckInterval": 1500,
    "transactionTimeOut": 500,
}

PULL_MESSAGE: Final = 11

CPP: Final = "4.9.4-cpp"

# (command, what it is given beside -n); {broker}, {cluster}, {topic}, {group}, {client} are filled in
ADMIN: Final[Sequence[tuple[str, ...]]] = (
    ("updateTopic", "-c", "DefaultCluster", "-t", "admin-topic", "-r", "4", "-w", "4"),
    ("updateSubGroup", "-c", "DefaultCluster", "-g", "admin-group"),
    ("topicRoute", "-t", "golden"),
    ("topicList",),
    ("topicStatus", "-t", "golden"),
    ("clusterList",),
    ("brokerStatus", "-b", "{broker}"),
    ("getBrokerConfig", "-b", "{broker}"),
    ("consumerProgress", "-g", "golden-group"),
    ("consumerConnection", "-g", "golden-group"),
    ("producerConnection", "-g", "golden-producer", "-t", "golden"),
    ("consumerStatus", "-g", "golden-group"),
    ("queryCq", "-t", "golden", "-q", "0", "-i", "0", "-b", "{broker}"),
    ("updateKvConfig", "-s", "golden-space", "-k", "golden-key", "-v", "golden-value"),
    ("deleteKvConfig", "-s", "golden-space", "-k", "golden-key"),
    ("getNamesrvConfig",),
    ("updateNamesrvConfig", "-k", "orderMessageEnable", "-v", "true"),
    ("wipeWritePerm", "-b", "broker-a"),
    ("addWritePerm", "-b", "broker-a"),
    ("resetOffsetByTime", "-g", "golden-group", "-t", "golden", "-s", "now"),
    ("deleteSubGroup", "-c", "DefaultCluster", "-g", "admin-group"),
    ("deleteTopic", "-c", "DefaultCluster", "-t", "admin-topic"),
)


class Scenario(NamedTuple):
    """Which versions talk, and in which header serialization."""

    server: str
    client: str
    serialization: str
    admin: str | None = None
    slave: bool = False


SCENARIOS: Final = {
    "4.9.4-json": Scenario("4.9.4", "4.9.4", "JSON", admin="4.9.4", slave=True),
    "4.9.4-rocketmq": Scenario("4.9.4", "4.9.4", "ROCKETMQ"),
    "4.8.0-json": Scenario("4.8.0", "4.8.0", "JSON"),
    "5.3.3-json": Scenario("5.3.3", "5.3.3", "JSON"),
}


class Recorder:
    """Writes frames of the wiretaps under a name, each name once."""

    def __init__(self, folder: Path, taps: Sequence[Wiretap]) -> None:
        self.folder = folder
        self.taps = taps
        self.names: set[str] = set()
        self.codes: set[int] = set()
        folder.mkdir(parents=True)

    def _pairs(self) -> list[Exchange]:
        return [pair for tap in self.taps for pair in tap.exchanges()]

    def _of(self, code: int) -> list[Exchange]:
        return [pair for pair in self._pairs() if pair.request.head[0] == code]

    def step(self, name: str, code: int, action: Callable[[], Any]) -> Any:
        """Does something and keeps the last exchange of `code` that came of it."""
        self.codes.add(code)
        before = len(self._of(code))
        result = action()
        wait_until(lambda: len(self._of(code)) > before and self._of(code)[-1].settled, f"{name} passing", 10)
        self.write(name, *self._of(code)[-1])
        return result

    def rest(self) -> None:
        """Keeps one exchange of every other code, the one that says most; of pulls one by a push consumer."""
        for pair in sorted(self._pairs(), key=_worth, reverse=True):
            code = pair.request.head[0]
            if code not in self.codes or code == PULL_MESSAGE:
                self.write(NAMES.get(code, f"code-{code}"), *pair)

    def write(self, name: str, request: Frame, answer: Frame | None) -> None:
        """Writes NAME.request.bin and NAME.response.bin unless the name has been used."""
        if name in self.names:
            return
        self.names.add(name)
        (self.folder / f"{name}.request.bin").write_bytes(request.data)
        if answer is not None:
            (self.folder / f"{name}.response.bin").write_bytes(answer.data)


def _worth(pair: Exchange) -> tuple[bool, int]:
    return pair.answer is not None, sum(len(frame.data) for frame in pair if frame)


def _send_all(recorder: Recorder, producer: Producer, topic: str) -> str:
    """Every way of sending; returns an offset message id."""
    queue = producer.queues(topic)[0]
    # One plain send first, so that connections and routes are there and each step holds what it is named for.
    producer.send(topic, "first", keys="first-key")
    sent = recorder.step(
        "send-v2-full",
        310,
        lambda: producer.send(
            topic,
            "body 内容 😀",
            to=queue,
            tags="TagA",
            keys="key-1 key-2",
            flag=7,
            props={"colour": "blue", "größe": "7 内"},
        ),
    )
    recorder.step("send-v2-plain", 310, lambda: producer.send(topic, "plain", to=queue))
    recorder.step("send-v2-compressed", 310, lambda: producer.send(topic, size=2000, seed=1, to=queue))
    recorder.step("send-v2-delay", 310, lambda: producer.send(topic, "later", to=queue, delay=1))
    recorder.step("send-v2-no-wait", 310, lambda: producer.send(topic, "no wait", to=queue, wait=False))
    recorder.step("send-v2-async", 310, lambda: producer.send(topic, "async", to=queue, mode="async"))
    before = producer.offset("maxOffset", queue)

    def oneway() -> None:
        producer.send(topic, "oneway", to=queue, mode="oneway")
        wait_until(lambda: producer.offset("maxOffset", queue) > before, "the one-way message", 10)

    recorder.step("send-v2-oneway", 310, oneway)
    messages = [{"body": f"batch {i}", "tags": "TagB", "keys": f"batch-{i}"} for i in range(3)]
    recorder.step("send-batch", 320, lambda: producer.send_batch(topic, messages, to=queue))
    offset_id: str = sent["offsetMsgId"]
    return offset_id


def _transactions(recorder: Recorder, driver: Driver, namesrv: str, topic: str) -> None:
    with driver.producer(namesrv, group="golden-transactions", transactional=True) as producer:
        for name, local in (("commit", "COMMIT_MESSAGE"), ("rollback", "ROLLBACK_MESSAGE")):
            message = {"body": name, "keys": f"tx-{name}", "props": {"local": local, "check": local}}
            recorder.step(
                f"end-transaction-{name}",
                37,
                partial(producer.do, "transaction", topic=topic, message=message),
            )
        message = {"body": "unknown", "props": {"local": "UNKNOW", "check": "COMMIT_MESSAGE"}}
        producer.do("transaction", topic=topic, message=message)
        wait_until(
            lambda: any(pair.request.head[0] == 39 for tap in recorder.taps for pair in tap.exchanges()),
            "the broker's question about the transaction",
            60,
        )


def _consume(recorder: Recorder, driver: Driver, namesrv: str, topic: str, queue: dict[str, Any]) -> None:
    with driver.puller(namesrv) as puller:
        puller.queues(topic)
        recorder.step("pull-found", 11, lambda: puller.pull(queue, 0, max=4))
        recorder.step("pull-tags", 11, lambda: puller.pull(queue, 0, tags="TagA || TagB"))
        recorder.step("pull-no-new-message", 11, lambda: puller.pull(queue, 1 << 20))
        end = puller.pull(queue, 0, max=1)["max"]
        recorder.step("pull-at-end", 11, lambda: puller.pull(queue, end))
        recorder.step("pull-no-match", 11, lambda: puller.pull(queue, 0, tags="Nowhere"))
    options: dict[str, Any] = {"group": "golden-group", "where": "FIRST_OFFSET", "persist": 300}
    with driver.push(namesrv, topic, failures=1, delayLevel=1, **options) as first:
        first.received(8)
        with driver.push(namesrv, topic, **options):
            wait_until(lambda: len(first.assigned(topic)) == 2, "the rebalance", 20)
        admin_during(recorder, namesrv)
    with driver.push(namesrv, topic, orderly=True, where="FIRST_OFFSET") as ordered:
        ordered.received(8)
    with driver.lite(namesrv, topic, where="FIRST_OFFSET") as lite:
        lite.poll(1, timeout=5)
    with driver.push(namesrv, topic, broadcast=True, where="FIRST_OFFSET") as broadcast:
        broadcast.received(1)


_admin: dict[str, str] = {}


def admin_during(recorder: Recorder, namesrv: str) -> None:
    """The mqadmin commands, while there are a consumer and a producer to be asked about."""
    if not _admin:
        return
    folder = DATA / "mqadmin"
    folder.mkdir(exist_ok=True)
    for command, *arguments in ADMIN:
        filled = [argument.format(**_admin) for argument in arguments]
        said = mqadmin(_admin["version"], command, *filled, namesrv=namesrv)
        text = f"$ mqadmin {' '.join([command, *filled])}\n{said}"
        (folder / f"{command}.txt").write_text(text, encoding="utf-8")


def _questions(
    recorder: Recorder, producer: Producer, topic: str, queue: dict[str, Any], address: str, offset_id: str
) -> None:
    recorder.step("search-offset-by-timestamp", 29, lambda: producer.offset("searchOffset", queue, timestamp=1))
    producer.offset("minOffset", queue)
    producer.offset("earliest", queue)
    wait_until(lambda: len(producer.query(topic, "key-1")) == 1, "the index entry", 20)
    recorder.step("query-message", 12, lambda: producer.query(topic, "key-1"))
    raw.call(address, 33, {"offset": int(offset_id[16:], 16)})


def _routes(recorder: Recorder, namesrv: str, topic: str) -> None:
    """The same route as clients before and since 4.9.4 are given it, and the refusals."""
    for name, version, asked in (
        ("route-unquoted", 399, topic),
        ("route-standard-json", 401, topic),
        ("route-missing", 401, "no-such-topic"),
    ):
        recorder.step(name, 105, partial(raw.call, namesrv, 105, {"topic": asked}, version=version))


def _errors(recorder: Recorder, broker: str, namesrv: str) -> None:
    """What the official servers say to requests that cannot be served."""
    send = {
        "a": "group",
        "b": "no topic!",
        "c": "TBW102",
        "d": 4,
        "e": 0,
        "f": 0,
        "g": 1,
        "h": 0,
        "i": "",
        "j": 0,
        "k": "false",
        "l": 16,
        "m": "false",
    }
    pull = {
        "consumerGroup": "no-such-group",
        "topic": "no-such-topic",
        "queueId": 0,
        "queueOffset": 0,
        "maxMsgNums": 32,
        "sysFlag": 4,
        "commitOffset": 0,
        "suspendTimeoutMillis": 0,
        "subscription": "*",
        "subVersion": 0,
    }
    for name, address, code, fields in (
        ("error-unknown-code-broker", broker, 9999, {}),
        ("error-send-illegal-topic", broker, 310, send),
        ("error-send-unknown-topic", broker, 310, {**send, "b": "unknown", "c": "unknown"}),
        ("error-send-queue-id", broker, 310, {**send, "b": "golden", "e": 99}),
        ("error-pull-unknown-topic", broker, 11, pull),
        ("error-pull-queue-id", broker, 11, {**pull, "topic": "golden", "queueId": 99}),
        ("error-consumer-offset-not-found", broker, 14, {"consumerGroup": "g", "topic": "golden", "queueId": 0}),
        ("error-consumer-list-empty", broker, 38, {"consumerGroup": "nobody"}),
        ("error-view-missing", broker, 33, {"offset": 1 << 40}),
        ("error-kv-missing", namesrv, 101, {"namespace": "nowhere", "key": "nothing"}),
    ):
        try:
            recorder.step(name, code, partial(raw.call, address, code, fields))
        except TimeoutError:
            sys.stdout.write(f"{name}: no answer\n")


def _slave(cluster: Cluster, master: Broker, folder: Path) -> None:
    """A slave that finds its master through wiretaps.

    Metadata synchronisation, and the HA connection's bytes.
    """
    with (
        Wiretap(master.address, port=(port := free_ports(before=2))) as metadata,
        Wiretap(f"127.0.0.1:{master.port - 2}", port=port - 2) as fast,
        Wiretap(master.ha_address, framed=False) as ha,
    ):
        swap = {
            f"127.0.0.1:{old}".encode(): f"127.0.0.1:{new}".encode()
            for old, new in ((master.port, metadata.port), (master.port + 1, ha.port))
        }
        with Wiretap(cluster.namesrvs[0].address, swap) as namesrv:
            cluster.add_broker(name="broker-a", broker_id=1, role="SLAVE", namesrvAddr=namesrv.address, **SMALL_STORE)
            wait_until(lambda: sum(len(f.data) for f in ha.frames if not f.from_client) > 200, "replication", 60)
            wait_until(
                lambda: {f.head[0] for f in metadata.frames + fast.frames if not f.is_response} >= {21, 43, 45, 201},
                "the metadata",
                60,
            )
            recorder = Recorder(folder, [namesrv, metadata, fast])
            recorder.rest()
        for name, from_client in (("slave-to-master", True), ("master-to-slave", False)):
            data = b"".join(f.data for f in ha.frames if f.from_client == from_client)
            (folder / f"ha-{name}.bin").write_bytes(data[:20480])


def capture(name: str, scenario: Scenario) -> None:
    """Runs one scenario and writes its files."""
    folder = DATA / "wire" / name
    shutil.rmtree(folder, ignore_errors=True)
    with Cluster(scenario.server) as cluster:
        jvm = [f"-Drocketmq.serialize.type={scenario.serialization}"]
        namesrv = cluster.add_namesrv(start=False)
        namesrv.jvm = jvm
        namesrv.start()
        master = cluster.add_broker(start=False, **SMALL_STORE)
        master.jvm = jvm
        with (
            Wiretap(namesrv.address) as registration,
            Wiretap(master.address) as broker,
            Wiretap(namesrv.address, {master.address.encode(): b"127.0.0.1:%d" % broker.port}) as names,
            Driver(scenario.client, scenario.serialization) as driver,
        ):
            recorder = Recorder(folder, [registration, names, broker])
            master.start(namesrvAddr=registration.address)
            cluster.wait_registered(master)
            _admin.clear()
            if scenario.admin:
                _admin.update(version=scenario.admin, broker=broker.address)
            with driver.producer(names.address, group="golden-producer", compressOver=1000) as producer:
                producer.create_topic("golden", 4)
                offset_id = _send_all(recorder, producer, "golden")
                queue = producer.queues("golden")[0]
                _questions(recorder, producer, "golden", queue, broker.address, offset_id)
                _transactions(recorder, driver, names.address, "golden")
                _consume(recorder, driver, names.address, "golden", queue)
            with (
                Driver(
                    scenario.client, scenario.serialization, **{"org.apache.rocketmq.client.sendSmartMsg": "false"}
                ) as long,
                long.producer(names.address) as producer,
            ):
                recorder.step("send-message", 10, lambda: producer.send("golden", "long header names", tags="T"))
            _routes(recorder, names.address, "golden")
            _errors(recorder, broker.address, names.address)
            recorder.rest()
            if scenario.slave:
                shutil.rmtree(DATA / "wire" / f"{name}-slave", ignore_errors=True)
                _slave(cluster, master, DATA / "wire" / f"{name}-slave")
            master.stop()
            recorder.rest()
        if scenario.serialization == "JSON":
            keep_store(master, DATA / "store" / scenario.server)


def capture_cpp(name: str) -> None:
    """The C++ client with 4.9.4 servers: its way of writing headers, heartbeats and lock requests."""
    folder = DATA / "wire" / name
    shutil.rmtree(folder, ignore_errors=True)
    with Cluster("4.9.4") as cluster:
        namesrv = cluster.add_namesrv()
        master = cluster.add_broker(**SMALL_STORE)
        with (
            Wiretap(master.address) as broker,
            Wiretap(namesrv.address, {master.address.encode(): b"127.0.0.1:%d" % broker.port}) as names,
        ):
            recorder = Recorder(folder, [names, broker])
            cpp = external.cpp(cluster.folder, names.address)
            message: dict[str, Any] = {"topic": "golden", "body": "内容", "tags": "TagA", "keys": "k"}
            for step, code, sent in (
                ("send-message", 10, {**message, "props": {"colour": "blue"}}),
                ("send-message-batch", 10, {"mode": "batch", "batch": [message, message]}),
                ("send-message-compressed", 10, {**message, "body": "abcd" * 2000}),
            ):
                recorder.step(step, code, partial(cpp.produce, sent))
            for how in ([], ["orderly"]):
                _consume_cpp(cpp, how, message)
            recorder.rest()


def _consume_cpp(cpp: external.External, how: list[str], message: dict[str, Any]) -> None:
    with cpp.consume("golden", f"golden-{len(how)}", "TagA || TagB", *how) as received:
        cpp.produce(message)
        wait_until(lambda: bool(received()), "a message", 40)


def keep_store(broker: Broker, folder: Path) -> None:
    """The stopped broker's whole store.

    Only zeros at the end of files are cut, to the length that is in use.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for file in sorted(broker.store.rglob("*")):
        relative = file.relative_to(broker.store)
        if file.is_file() and file.suffix != ".bak" and file.name not in ("lock", "abort"):
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            data = file.read_bytes()
            (folder / relative).write_bytes(data if len(data) <= 1 << 16 else data[:4096])


def main() -> None:
    """Runs the scenarios named on the command line, or all."""
    for name in sys.argv[1:] or [*SCENARIOS, CPP]:
        if name == CPP:
            capture_cpp(name)
        else:
            capture(name, SCENARIOS[name])
        sys.stdout.write(f"{name}: done\n")


if __name__ == "__main__":
    main()
