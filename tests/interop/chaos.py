"""A 2m-2s-sync cluster whose every connection goes through the fault proxy, and the faults that befall it.

Servers listen on 127.0.0.1 and register under 127.0.0.2, where the proxy listens on the same ports: what clients,
slaves and brokers say to each other can be held up, and the harness itself still reaches the servers directly.

The promise to be checked is in `audit`: what the client was told SEND_OK for stands, at the queue and offset that it
was told, at the slave too, and it does so at the moment in which the master dies.
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.interop import raw
from tests.interop.child import wait_until
from tests.interop.driver import Flow, Json
from tests.interop.faultproxy import TO_CLIENT, TO_SERVER, FaultProxy, Link
from tests.interop.processes import BOOT, Broker, Cluster, Server

GET_ALL_TOPIC_CONFIG: Final = 21
GET_BROKER_RUNTIME_INFO: Final = 28

DIRECT: Final = "127.0.0.1"
PROXIED: Final = "127.0.0.2"
NAMES: Final = ("broker-a", "broker-b")
QUEUES: Final = 2  # on each master
FILE_SIZE: Final = 1 << 20

# Times of a patient network, shortened: a half-dead connection is noticed within haHousekeepingInterval.
TIMES: Final[Json] = {"haHousekeepingInterval": 3000, "haSendHeartbeatInterval": 500, "slaveTimeout": 1000}


class Member(NamedTuple):
    """A server and the links that lead to it, by purpose."""

    server: Server
    links: dict[str, Link]


class ChaosCluster:
    """Two name servers, two masters, two slaves, all started."""

    def __init__(self, cluster: Cluster, proxy: FaultProxy) -> None:
        self._cluster = cluster
        self._proxy = proxy
        self.namesrvs = [self._add_namesrv() for _ in range(2)]
        self.namesrv_addr = ";".join(f"{PROXIED}:{member.server.port}" for member in self.namesrvs)
        self.masters = {name: self._add_broker(name, 0, "SYNC_MASTER") for name in NAMES}
        self.slaves = {name: self._add_broker(name, 1, "SLAVE") for name in NAMES}
        for member in self.members:
            member.server.launch()
        for member in self.members:
            member.server.running.wait_line(BOOT)

    @property
    def members(self) -> list[Member]:
        return [*self.namesrvs, *self.masters.values(), *self.slaves.values()]

    def _add_namesrv(self) -> Member:
        server = self._cluster.add_namesrv(start=False, bindAddress=DIRECT)
        return Member(server, {"remoting": self._link(server.port)})

    def _add_broker(self, name: str, broker_id: int, role: str) -> Member:
        addresses = {"bindAddress": DIRECT, "brokerIP1": PROXIED, "brokerIP2": PROXIED}
        settings: Json = {"namesrvAddr": self.namesrv_addr, "mappedFileSizeCommitLog": FILE_SIZE, **addresses, **TIMES}
        server = self._cluster.add_broker(start=False, name=name, broker_id=broker_id, role=role, **settings)
        links = {"remoting": self._link(server.port), "fast": self._link(server.port - 2)}
        if broker_id == 0:
            links["ha"] = self._link(server.port + 1)
        return Member(server, links)

    def _link(self, port: int) -> Link:
        return self._proxy.link((PROXIED, port), (DIRECT, port))

    # ---- looking at it

    def is_linked(self, name: str) -> bool:
        """Whether the slave has all that its master has."""
        master, slave = self.masters[name].server, self.slaves[name].server
        return figure(master, "commitLogMaxOffset") == figure(slave, "commitLogMaxOffset")

    def lists(self, namesrv: Server, name: str) -> bool:
        text = namesrv.call(raw.GET_BROKER_CLUSTER_INFO).body.decode()
        return all(f'"{PROXIED}:{side[name].server.port}"' in text for side in (self.masters, self.slaves))

    def wait_ready(self) -> None:
        """Until every name server knows every broker."""
        for namesrv in self.namesrvs:
            for name in NAMES:
                wait_until(
                    lambda at=namesrv.server, one=name: self.lists(at, one),  # type: ignore[misc]
                    f"master and slave of {name} at name server {namesrv.server.port}",
                    20,
                )

    def wait_tables(self, topic: str) -> None:
        """Until the slaves have copied the topic; before that they answer that there is none."""
        for member in self.slaves.values():
            wait_until(
                lambda at=member.server: topic in at.call(GET_ALL_TOPIC_CONFIG).body.decode(),  # type: ignore[misc]
                f"{topic} at {member.server.folder.name}",
                15,
            )

    def audit(self, server: Server, name: str, topic: str, promised: list[Json]) -> None:
        """Everything promised under this broker name stands at this server, where it was said to be."""
        wait_until(lambda: figure(server, "dispatchBehindBytes") == 0, "queues that name all that is stored", 10)
        stored = {
            (message.queue, message.offset): message.properties["KEYS"]
            for queue in range(QUEUES)
            for message in raw.read_queue(server.address, topic, queue)
        }
        of_name = [row for row in promised if row["broker"] == name]
        lost = [row for row in of_name if stored.get((row["queue"], row["offset"])) != row["key"]]
        assert not lost, f"{len(lost)} of {len(of_name)} acknowledged are not at {server.folder.name}: {lost[:3]}"


def figure(broker: Server, key: str) -> int:
    """One of the figures of GET_BROKER_RUNTIME_INFO."""
    table: Json = json.loads(broker.call(GET_BROKER_RUNTIME_INFO).body)["table"]
    return int(table[key])


def commitlog(broker: Broker) -> dict[str, bytes]:
    """The files that have something in them."""
    files = {path.name: path.read_bytes() for path in (broker.store / "commitlog").iterdir() if path.name.isdigit()}
    return {name: data for name, data in files.items() if data.strip(b"\0")}


class Fault(NamedTuple):
    """What is done to whom; `act` returns when it is over and healed."""

    name: str
    act: Callable[[], None]


def both(fault: Fault, other: Fault) -> Fault:
    """Two faults at the same time."""

    def act() -> None:
        thread = threading.Thread(target=other.act)
        thread.start()
        try:
            fault.act()
        finally:
            thread.join()

    return Fault(f"{fault.name}, together with {other.name}", act)


class Faults:
    """Chooses faults at random, and keeps count of what was done."""

    def __init__(self, cluster: ChaosCluster, dice: random.Random, on_master_killed: Callable[[str], None]) -> None:
        self.done: Counter[str] = Counter()
        self._cluster = cluster
        self._dice = dice
        self._on_master_killed = on_master_killed

    def next(self) -> Fault:
        """A fault; half of them befall processes, half the network. The first ones are those that matter most."""
        count = sum(self.done.values())
        if count == 0:
            return self._death_out_of_reach()
        if count == 1:
            return self._of_process("master", "kill")
        if count == 2:
            return self._of_network(self._cluster.masters[self._dice.choice(NAMES)], "ha")
        fault = self._of_process() if self._dice.random() < 0.5 else self._of_network()
        return both(fault, self._of_network()) if self._dice.random() < 0.25 else fault

    def act(self, fault: Fault) -> None:
        fault.act()
        self.done[fault.name.split()[0]] += 1

    def _pause(self, longest: float) -> float:
        return self._dice.uniform(0.2, longest)

    def _of_process(self, role: str = "", how: str = "") -> Fault:
        role = role or self._dice.choice(("master", "master", "slave", "slave", "namesrv"))
        how = how or self._dice.choice(("kill", "kill", "pause", "stop"))
        name = self._dice.choice(NAMES)
        if role == "namesrv":
            server = self._dice.choice(self._cluster.namesrvs).server
        else:
            server = (self._cluster.masters if role == "master" else self._cluster.slaves)[name].server
        away = self._pause(2.0)

        def kill() -> None:
            server.kill()
            if role == "master":
                self._on_master_killed(name)
            time.sleep(away)
            server.start()

        def pause() -> None:
            server.pause()
            time.sleep(2 * away)
            server.resume()

        def stop() -> None:
            assert server.stop() == 0
            time.sleep(away)
            server.start()

        act = {"kill": kill, "pause": pause, "stop": stop}[how]
        return Fault(f"{how} {role} {server.folder.name} for {away:.1f} s", act)

    def _death_out_of_reach(self) -> Fault:
        """A master dies after its slave has got nothing for a while: what it acknowledged then would be missing."""
        name = self._dice.choice(NAMES)
        server, links = self._cluster.masters[name]

        def act() -> None:
            links["ha"].freeze()
            time.sleep(1.0)
            server.kill()
            self._on_master_killed(name)
            links["ha"].heal()
            server.start()

        return Fault(f"kill master {server.folder.name} after a second without its slave", act)

    def _of_network(self, member: Member | None = None, purpose: str = "") -> Fault:
        member = member or self._dice.choice([*self._cluster.masters.values()] * 2 + self._cluster.members)
        purpose = purpose or ("ha" if "ha" in member.links and self._dice.random() < 0.6 else "remoting")
        link = member.links[purpose]
        seconds = self._pause(3.0)
        direction = self._dice.choice(((), (TO_SERVER,), (TO_CLIENT,)))
        reset = self._dice.random() < 0.5
        piece = self._dice.choice((1, 2, 7))
        begin: dict[str, Callable[[], Any]] = {
            "cut": lambda: link.cut(reset=reset),
            "refuse": link.refuse,
            "freeze": lambda: link.freeze(*direction),
            "half-open": link.half_open,
            "delay": lambda: link.delay(0.05),
            "split": lambda: link.split(piece),
        }
        how = self._dice.choice(list(begin))

        def act() -> None:
            begin[how]()
            time.sleep(seconds)
            link.heal()

        return Fault(f"{how} {purpose} of {member.server.folder.name} for {seconds:.1f} s", act)


class Record:
    """What the client wrote down, read piece by piece."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def acknowledged(self) -> list[Json]:
        """All that was answered with SEND_OK."""
        return Flow.acknowledged(self._file)

    def count_by_name(self) -> Counter[str]:
        return Counter(row["broker"] for row in self.acknowledged())
