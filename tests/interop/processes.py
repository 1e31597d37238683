"""Name servers and brokers of any make, started as a user starts them, on free ports.

Owns the processes: whoever starts one through a Cluster gets it ended with the Cluster, whatever happens.
`kind` is "ours" (bin/mqnamesrv, bin/mqbroker of this checkout) or an official version such as "4.9.4" (its
jars by Maven). A broker keeps its port and its store directory over restarts, also when it is restarted as
another kind: that is how stores are handed from one make to the other.

Waiting is for events: a line of output, an exit, an answer. Nothing here sleeps for a guessed time.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.interop import maven, raw
from tests.interop.child import Process, free_ports, wait_until

PROJECT: Final = Path(__file__).resolve().parents[2]
OURS: Final = "ours"

UPDATE_BROKER_CONFIG: Final = 25

BOOT: Final = "boot success"  # both makes print it, and only when the port accepts

# The official servers are given small heaps and a cheap JIT: the proofs ask what they do, not how fast.
JVM: Final = [
    *("-Xms64m", "-Xmx512m", "-XX:MaxDirectMemorySize=512m"),
    *("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"),
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
    *(f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in ("jdk.internal.ref", "sun.nio.ch", "java.nio")),
]
_LOGBACK: Final = '<configuration><root level="OFF"/></configuration>\n'
_LOGBACK_NAMES: Final = (
    "logback_namesrv.xml",
    "logback_broker.xml",
    "rmq.namesrv.logback.xml",
    "rmq.broker.logback.xml",
)  # 4.x and 5.x names; the start-up wants them to exist


# ---- servers


class Server:
    """What name server and broker share: a folder, a port, settings, and a process that comes and goes."""

    role: str
    main_class: str
    stop_code: int = 0

    def __init__(self, kind: str, folder: Path, port: int, settings: Mapping[str, object]) -> None:
        self.kind = kind
        self.folder = folder
        self.port = port
        self.settings: dict[str, str] = {key: str(value) for key, value in settings.items()}
        self.jvm: list[str] = []  # more options for an official one
        self.prefix: list[str] = []  # words in front of the command, which run it elsewhere
        self.process: Process | None = None
        self._starts = 0

    @property
    def address(self) -> str:
        """host:port as clients are told."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> Process:
        """The process; AssertionError when the server is not started."""
        assert self.process is not None, f"{self.role} is not started"
        return self.process

    def _command(self, config: Path) -> tuple[list[str], dict[str, str]]:
        if self.kind == OURS:
            return ["sh", str(PROJECT / "bin" / f"mq{self.role}"), "-c", str(config)], {}
        home = self.folder / "home"
        (home / "conf").mkdir(parents=True, exist_ok=True)
        for name in _LOGBACK_NAMES:
            (home / "conf" / name).write_text(_LOGBACK, encoding="utf-8")
        classpath = maven.classpath("server", self.kind)
        options = [f"-Duser.home={self.folder}", f"-Djava.io.tmpdir={self.folder}"]
        command = ["java", *JVM, *options, *self.jvm, "-cp", classpath, self.main_class, "-c", str(config)]
        return command, {"ROCKETMQ_HOME": str(home)}

    def launch(self, **settings: Any) -> Process:
        """Starts the process and returns at once; `settings` are kept for later starts too."""
        assert self.process is None or not self.process.is_running(), f"{self.role} runs already"
        self.settings.update((key, str(value)) for key, value in settings.items())
        self.folder.mkdir(parents=True, exist_ok=True)
        own = {"metricsPort": "0", "logDir": str(self.folder / "logs")} if self.kind == OURS else {}
        config = self.folder / f"{self.role}.properties"
        values = {**own, **self.settings}
        config.write_text("".join(f"{key}={value}\n" for key, value in values.items()), encoding="utf-8")
        command, env = self._command(config)
        self._starts += 1
        self.process = Process([*self.prefix, *command], self.folder, env, log=f"out-{self._starts}")
        return self.process

    def start(self, *, timeout: float = 60.0, **settings: Any) -> Self:
        """Starts the process and waits until it says that it serves."""
        self.launch(**settings).wait_line(BOOT, timeout)
        return self

    def stop(self, timeout: float = 40.0) -> int:
        """SIGTERM and wait; the exit code."""
        return self.running.terminate(timeout)

    def kill(self) -> None:
        """SIGKILL."""
        self.running.kill()

    def pause(self) -> None:
        """SIGSTOP: alive to the kernel, dead to everyone else."""
        self.running.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.running.signal(signal.SIGCONT)

    def restart(self, kind: str | None = None, *, kill: bool = False, timeout: float = 60.0, **settings: Any) -> Self:
        """Ends the process (by SIGKILL if `kill`) and starts it on the same port and files, perhaps as
        another kind.
        """
        if self.process is not None and self.process.is_running():
            if kill:
                self.kill()
            else:
                self.stop()
        self.kind = kind or self.kind
        return self.start(timeout=timeout, **settings)

    def call(self, code: int, fields: Mapping[str, object] | None = None, body: bytes = b"") -> raw.Answer:
        """One request to this server over a connection of its own."""
        return raw.call(self.address, code, fields, body)


class NameServer(Server):
    """A name server; its KV configuration stays in its folder."""

    role = "namesrv"
    main_class = "org.apache.rocketmq.namesrv.NamesrvStartup"

    def __init__(self, kind: str, folder: Path, **settings: Any) -> None:
        port = free_ports()
        own = {"listenPort": port, "kvConfigPath": folder / "kvConfig.json"}
        super().__init__(kind, folder, port, {**own, **settings})

    def brokers(self) -> str:
        """The cluster table as text."""
        return self.call(raw.GET_BROKER_CLUSTER_INFO).body.decode()


class Broker(Server):
    """A broker; settings not given are those of the shape `one master, asynchronous`, on 127.0.0.1.

    Official 4.x brokers put their fast listener on listenPort - 2 and, whatever haListenPort says in some
    versions, HA on listenPort + 1, so four ports in a row are kept for each broker.
    """

    role = "broker"
    main_class = "org.apache.rocketmq.broker.BrokerStartup"

    def __init__(
        self,
        kind: str,
        folder: Path,
        namesrv: str,
        *,
        name: str = "broker-a",
        broker_id: int = 0,
        role: str = "ASYNC_MASTER",
        store: Path | None = None,
        **settings: Any,
    ) -> None:
        port = free_ports(before=2, after=1)
        self.store = store or folder / "store"
        self.name = name
        self.broker_id = broker_id
        own = {
            "brokerClusterName": "DefaultCluster",
            "brokerName": name,
            "brokerId": broker_id,
            "brokerRole": role,
            "brokerIP1": "127.0.0.1",
            "brokerIP2": "127.0.0.1",
            "listenPort": port,
            "haListenPort": port + 1,
            "namesrvAddr": namesrv,
            "storePathRootDir": self.store,
            "storePathCommitLog": self.store / "commitlog",
            "flushDiskType": "ASYNC_FLUSH",
            "autoCreateTopicEnable": "true",
        }
        super().__init__(kind, folder, port, {**own, **settings})

    def start(self, *, timeout: float = 60.0, **settings: Any) -> Self:
        """Starts the process and waits until it says that it serves.

        A 5.x broker registers for the first time before it knows which name servers live, so in vain, and then only
        10 s later. A permission that is set makes any official broker register at once.
        """
        super().start(timeout=timeout, **settings)
        if self.kind.startswith("5."):
            self.call(UPDATE_BROKER_CONFIG, body=b"brokerPermission=6\n")
        return self

    @property
    def ha_address(self) -> str:
        """Where slaves connect."""
        return f"127.0.0.1:{self.port + 1}"


class Cluster:
    """Servers that live and die together in one temporary folder.

    `with Cluster() as cluster: cluster.add_namesrv(); cluster.add_broker(); …`. Leaving the block ends
    every process by SIGKILL (whoever wants to see a clean end calls stop() itself) and removes the folder,
    except when `keep` is set or POCKETMQ_KEEP is in the environment.
    """

    def __init__(self, kind: str = OURS, *, keep: bool = False) -> None:
        self.kind = kind
        self.folder = Path(tempfile.mkdtemp(prefix="pocketmq-interop-"))
        self.keep = keep or bool(os.environ.get("POCKETMQ_KEEP"))
        self.servers: list[Server] = []

    @property
    def namesrvs(self) -> list[NameServer]:
        """The name servers, in the order of their start."""
        return [server for server in self.servers if isinstance(server, NameServer)]

    @property
    def brokers(self) -> list[Broker]:
        """The brokers, in the order of their start."""
        return [server for server in self.servers if isinstance(server, Broker)]

    @property
    def namesrv_addr(self) -> str:
        """All name servers as clients and brokers are given them."""
        return ";".join(server.address for server in self.namesrvs)

    def add_namesrv(self, kind: str | None = None, *, start: bool = True, **settings: Any) -> NameServer:
        """One more name server."""
        folder = self.folder / f"namesrv-{len(self.servers)}"
        server = NameServer(kind or self.kind, folder, **settings)
        self.servers.append(server)
        return server.start() if start else server

    def add_broker(
        self,
        kind: str | None = None,
        *,
        start: bool = True,
        name: str = "broker-a",
        broker_id: int = 0,
        role: str = "ASYNC_MASTER",
        store: Path | None = None,
        **settings: Any,
    ) -> Broker:
        """One more broker, registered with all name servers of the cluster when this returns (if started)."""
        folder = self.folder / f"{name}-{broker_id}-{len(self.servers)}"
        server = Broker(
            kind or self.kind,
            folder,
            self.namesrv_addr,
            name=name,
            broker_id=broker_id,
            role=role,
            store=store,
            **settings,
        )
        self.servers.append(server)
        if start:
            server.start()
            self.wait_registered(server)
        return server

    def start_together(self, *brokers: Broker) -> None:
        """Starts brokers that were only added, and waits until all of them are registered."""
        with ThreadPoolExecutor(len(brokers)) as threads:
            list(threads.map(lambda broker: broker.start(), brokers))
        for broker in brokers:
            self.wait_registered(broker)

    def wait_registered(self, broker: Broker, timeout: float = 40.0) -> None:
        """Until every running name server lists the broker."""
        for namesrv in self.namesrvs:
            if namesrv.process is not None and namesrv.process.is_running():
                wait_until(
                    lambda server=namesrv: broker.address in server.brokers(),  # type: ignore[misc]
                    f"{broker.name} {broker.address} at name server {namesrv.address}",
                    timeout,
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in reversed(self.servers):
            if server.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.process.kill()
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)
