"""What interop tests share: one cluster of the target and one JVM per client version and serialization, a session long.

INTEROP_TARGET in the environment says who is tested: `ours` (default), or an official version such as
`4.9.4`, by which the tests themselves are tested. Without a JDK or Maven everything here is skipped, with
CI=true it fails.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import pytest

from tests.interop import maven, raw
from tests.interop.beside import Beside, is_marked
from tests.interop.child import wait_until
from tests.interop.driver import Driver, Json, Producer, PullConsumer
from tests.interop.processes import OURS, Cluster

CLIENTS: Final = ("4.8.0", "4.9.8", "5.3.3")
PARTS: Final = {"client": CLIENTS, "tools": ("4.9.4", "5.3.3"), "server": ("4.8.0", "4.9.4", "5.3.3")}
SERIALIZATIONS: Final = ("JSON", "ROCKETMQ")

# For what does not depend on how headers are written: every client, and the other serialization once.
each_client_once = pytest.mark.parametrize(
    "client", [*((version, "JSON") for version in CLIENTS), (CLIENTS[1], "ROCKETMQ")], indirect=True, ids="-".join
)

ASKS_SOON: Final[Json] = {"transactionCheckInterval": 1500, "transactionTimeOut": 1000, "transactionCheckMax": 5}

MakeTopic = Callable[..., str]
MakeDriver = Callable[..., Driver]
Site = Callable[[], AbstractContextManager[tuple[Cluster, Producer]]]


def give_up(reason: str) -> None:
    """Skips, or fails where everything is required."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"required with CI=true: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def target() -> str:
    """Who is tested: `ours` or an official version."""
    return os.environ.get("INTEROP_TARGET", OURS)


@pytest.fixture(scope="session", autouse=True)
def _official_parts(target: str) -> None:
    """Fetches what most tests need, so that a missing tool or network shows as such and not as a failed
    test.
    """
    missing = maven.missing_tools()
    if missing is not None:
        give_up(missing)
    try:
        for what, versions in PARTS.items():
            for version in versions:
                maven.jars(what, version)
        if target != OURS:
            maven.jars("server", target)
    except maven.Unavailable as error:
        give_up(str(error))


# ---- tests that run side by side


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests that run beside each other behind all others."""
    items.sort(key=is_marked)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs those in threads."""
    if not is_marked(pyfuncitem):
        return None
    beside = pyfuncitem.funcargs["_beside"]
    assert isinstance(beside, Beside)
    beside.run(pyfuncitem, pyfuncitem.session.items)
    return True


@pytest.fixture(scope="session", autouse=True)
def _beside(request: pytest.FixtureRequest, drivers: MakeDriver) -> Iterator[Beside]:
    """Ends before the drivers do."""
    with Beside(request) as running:
        yield running


@pytest.fixture(scope="session")
def site(target: str, drivers: MakeDriver) -> Site:
    """For replication: starts a name server of ours and an official producer; each test adds its brokers."""
    if target != OURS:
        pytest.skip("pairs have an official side already")

    @contextmanager
    def started() -> Iterator[tuple[Cluster, Producer]]:
        with Cluster() as cluster:
            cluster.add_namesrv()
            with drivers("4.9.8").producer(cluster.namesrv_addr) as producer:
                yield cluster, producer

    return started


@pytest.fixture(scope="session")
def asking(target: str) -> Iterator[Cluster]:
    """For transactions: a cluster whose broker asks soon."""
    with Cluster(target) as running:
        running.add_namesrv()
        running.add_broker(**ASKS_SOON)
        yield running


# ---- servers and clients


@pytest.fixture(scope="session")
def cluster(target: str, _official_parts: None) -> Iterator[Cluster]:
    """A name server and a broker with default settings that every test may use and none may stop."""
    with Cluster(target) as running:
        running.add_namesrv()
        running.add_broker()
        yield running


@pytest.fixture(scope="session")
def drivers(_official_parts: None) -> Iterator[MakeDriver]:
    """Gives the session's JVM for a version and serialization, starting it when it is first asked for."""
    running: dict[tuple[str, str], Driver] = {}
    starting = threading.Lock()

    def get(version: str, serialization: str = "JSON") -> Driver:
        key = (version, serialization)
        with starting:
            if key not in running:
                running[key] = Driver(*key)
            return running[key]

    yield get
    for driver in running.values():
        driver.close()


@pytest.fixture(
    scope="session",
    params=[(version, serialization) for version in CLIENTS for serialization in SERIALIZATIONS],
    ids=lambda param: "-".join(param),
)
def client(request: pytest.FixtureRequest, drivers: MakeDriver) -> Driver:
    """Each official client in each header serialization."""
    version, serialization = request.param
    return drivers(version, serialization)


@pytest.fixture(scope="session")
def producer(client: Driver, cluster: Cluster) -> Iterator[Producer]:
    """A producer of the client under test at the shared cluster."""
    with client.producer(cluster.namesrv_addr) as started:
        yield started


@pytest.fixture(scope="session")
def puller(client: Driver, cluster: Cluster) -> Iterator[PullConsumer]:
    """A pull consumer of the client under test at the shared cluster."""
    with client.puller(cluster.namesrv_addr) as started:
        yield started


def has_route(cluster: Cluster, topic: str) -> bool:
    """Whether the first name server knows the topic."""
    return cluster.namesrvs[0].call(raw.GET_ROUTEINFO_BY_TOPIC, {"topic": topic}).code == 0


@pytest.fixture
def make_topic(producer: Producer, cluster: Cluster) -> MakeTopic:
    """Makes a new topic with that many queues, as the official client does it, and returns its name."""

    def make(queues: int = 4) -> str:
        topic = producer.driver.fresh("topic")
        producer.create_topic(topic, queues)
        wait_until(lambda: has_route(cluster, topic), f"the route of {topic}", 10)
        return topic

    return make


# ---- what tests of other clients need of Java


@pytest.fixture
def java(drivers: MakeDriver) -> Driver:
    """A Java client for the other end."""
    return drivers("4.9.8")


@pytest.fixture
def sender(java: Driver, cluster: Cluster) -> Iterator[Producer]:
    """A Java producer."""
    with java.producer(cluster.namesrv_addr) as started:
        yield started


@pytest.fixture
def topic(sender: Producer, cluster: Cluster) -> str:
    """A topic with two queues, made by Java."""
    name = sender.driver.fresh("topic")
    sender.create_topic(name, 2)
    wait_until(lambda: has_route(cluster, name), "the route", 10)
    return name
