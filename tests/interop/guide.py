"""The clusters of the README, started with the README's own commands.

Owns the reading of those commands and the processes that come of them. The README means machines with
addresses of their own; here all of them are this one, so each command gets a port and folders of its own by
the keys that the README names for that, and addresses of name servers are replaced. Nothing else of a
command is changed.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.interop import raw
from tests.interop.child import Process, free_ports, wait_until
from tests.interop.processes import BOOT, PROJECT

README: Final = PROJECT / "README.md"
BIN: Final = PROJECT / "bin"
LOCAL: Final = "127.0.0.1"


def section(heading: str) -> str:
    """The README's text under a heading, up to the next one of the same or a higher level."""
    text = README.read_text(encoding="utf-8")
    match = re.search(rf"^(#+) {re.escape(heading)}$(.*?)(?=^#{{1,6}} |\Z)", text, re.M | re.S)
    assert match, f"the README has no section {heading!r}"
    return match[2]


def code(text: str) -> str:
    """The indented lines of a text, each continued line as one."""
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    return "\n".join(lines).replace("\\\n", " ")


class Step(NamedTuple):
    """One command that starts a server, without its `&`, and what was exported before it on that machine."""

    command: str
    machine: str
    environment: dict[str, str]


def steps(text: str) -> list[Step]:
    """The starts in a section: `# address` begins the commands of another machine."""
    found: list[Step] = []
    machine = "localhost"
    environment: dict[str, str] = {}
    for line in code(text).splitlines():
        if line.startswith("# "):
            machine, environment = line[2:], {}
        elif line.startswith("export "):
            (assignment,) = shlex.split(line)[1:]
            name, _, value = assignment.partition("=")
            environment = {**environment, name: value}
        elif line.startswith("nohup sh mq"):
            assert line.endswith(" &"), line
            found.append(Step(line.removesuffix(" &"), machine, environment))
    return found


class Server:
    """One started command: `name` is namesrv-1, namesrv-2, … or that of the broker's file."""

    def __init__(self, name: str, step: Step, port: int, folder: Path) -> None:
        self.name = name
        self.port = port
        self.folder = folder
        self.step = step
        self.process: Process | None = None
        self._starts = 0

    @property
    def address(self) -> str:
        return f"{LOCAL}:{self.port}"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def launch(self, replaced: dict[str, str], **keys: object) -> None:
        """Runs the command in bin/, as `&` would; `replaced` are addresses and what stands here for them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        all_keys = {**self._keys(), **keys}
        words = " ".join(f"{key}={shlex.quote(str(value))}" for key, value in all_keys.items())
        command = f"exec {self.step.command} {words}"
        environment = dict(self.step.environment)
        for address, ours in replaced.items():
            command = command.replace(address, ours)
            environment = {name: value.replace(address, ours) for name, value in environment.items()}
        self._starts += 1
        log = str(self.folder / f"out-{self._starts}")
        self.process = Process(["sh", "-c", command], BIN, {"HOME": str(self.folder), **environment}, log=log)

    def _keys(self) -> dict[str, object]:
        common = {"listenPort": self.port, "metricsPort": 0, "logDir": self.folder / "logs"}
        if self.name.startswith("namesrv"):
            return {**common, "kvConfigPath": self.folder / "kvConfig.json"}
        return {**common, "brokerIP1": LOCAL, "brokerIP2": LOCAL, "storePathRootDir": self.store}

    @property
    def running(self) -> Process:
        assert self.process is not None
        return self.process

    def kill(self) -> None:
        """SIGKILL."""
        self.running.kill()

    def call(self, code: int, fields: dict[str, object] | None = None) -> raw.Answer:
        return raw.call(self.address, code, fields)


class GuideCluster:
    """All servers of one section of the README; they end with the `with` block."""

    def __init__(self, heading: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pocketmq-guide-"))
        self.servers: dict[str, Server] = {}
        self._replaced: dict[str, str] = {}
        for step in steps(section(heading)):
            self._add(step)

    def _add(self, step: Step) -> None:
        words = shlex.split(step.command)
        if "mqnamesrv" in words:
            name = f"namesrv-{sum(name.startswith('namesrv') for name in self.servers) + 1}"
            port = free_ports()
            self._replaced[f"{step.machine}:9876"] = f"{LOCAL}:{port}"
        else:
            name = Path(words[words.index("-c") + 1]).stem if "-c" in words else "broker"
            port = free_ports(before=2, after=1)
        self.servers[name] = Server(name, step, port, self.folder / name)

    def __getitem__(self, name: str) -> Server:
        return self.servers[name]

    @property
    def namesrvs(self) -> list[Server]:
        return [server for server in self.servers.values() if server.name.startswith("namesrv")]

    @property
    def brokers(self) -> list[Server]:
        return [server for server in self.servers.values() if not server.name.startswith("namesrv")]

    @property
    def namesrv_addr(self) -> str:
        """All name servers, as clients are given them."""
        return ";".join(server.address for server in self.namesrvs)

    def start(self, *names: str, **keys: object) -> None:
        """Runs all commands, or those of the named servers (again), and waits until all serve and are
        registered.
        """
        servers = [self.servers[name] for name in names] or list(self.servers.values())
        for server in servers:
            server.launch(self._replaced, **keys)
        for server in servers:
            server.running.wait_line(BOOT, 60)
        for broker in self.brokers:
            if broker.running.is_running():
                self.wait_listed(broker)

    def wait_listed(self, broker: Server, *, listed: bool = True, timeout: float = 20) -> None:
        """Until every living name server has the broker, or has it no more."""
        for namesrv in self.namesrvs:
            if namesrv.running.is_running():
                wait_until(
                    lambda at=namesrv: (f'"{broker.address}"' in cluster_table(at)) is listed,  # type: ignore[misc]
                    f"{broker.name} at {namesrv.name}: {listed}",
                    timeout,
                )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.servers.values():
            if server.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.kill()
        if not os.environ.get("POCKETMQ_KEEP"):
            shutil.rmtree(self.folder, ignore_errors=True)


def cluster_table(namesrv: Server) -> str:
    return namesrv.call(raw.GET_BROKER_CLUSTER_INFO).body.decode()
