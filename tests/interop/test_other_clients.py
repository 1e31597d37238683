"""What the C++ and the Go client do alike: push consumers of what Java sends, and one group shared with Java.

What each does in its own way is in test_python_client.py and test_go_client.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.interop import external, maven
from tests.interop.child import wait_until
from tests.interop.conftest import give_up
from tests.interop.driver import Producer
from tests.interop.external import External
from tests.interop.messages import bodies, numbered
from tests.interop.processes import Cluster

pytestmark = pytest.mark.interop

# Who is to be had only where Go is installed is a matter of choice, so never required.
CLIENTS: Final[dict[str, tuple[Callable[[Path, str], External], Callable[[str], None]]]] = {
    "cpp": (external.cpp, give_up),
    "go": (external.go, pytest.skip),
}


@pytest.fixture(params=CLIENTS)
def other(request: pytest.FixtureRequest, tmp_path: Path, cluster: Cluster) -> External:
    """Each client at the shared cluster."""
    make, missing = CLIENTS[request.param]
    try:
        return make(tmp_path, cluster.namesrv_addr)
    except maven.Unavailable as error:
        missing(str(error))
        raise


def test_what_java_sends_it_reads(other: External, sender: Producer, topic: str) -> None:
    """What is sent while it runs, filtered by tag; compressed bodies too; with tags, keys and properties."""
    with other.consume(topic, f"group-{topic}", "A || B") as received:
        sender.send(topic, "内容", tags="A", keys="k", props={"colour": "blau"})
        for tag in ("C", "none"):
            sender.send(topic, "not for it", tags=tag)
        sender.send(topic, size=100_000, seed=7, tags="B")
        sender.send_many(topic, "m", 20, tags="B")
        wait_until(lambda: len(received()) >= 22, "the messages", 60)
        assert "not for it" not in bodies(received())
        assert 100_000 in {message["size"] for message in received()}
        (first,) = [message for message in received() if message["body"] == "内容"]
        assert (first["tags"], first["keys"].strip(), first["colour"]) == ("A", "k", "blau")
        assert set(numbered("m", 20)) <= set(bodies(received()))


def test_offsets_survive_the_consumer(other: External, sender: Producer, topic: str) -> None:
    """A group that comes back goes on where it stopped."""
    group = f"group-{topic}"
    with other.consume(topic, group) as received:
        sender.send_many(topic, "before", 10)
        wait_until(lambda: len(received()) >= 10, "the messages", 60)
    with other.consume(topic, group) as received:
        sender.send_many(topic, "after", 10)
        wait_until(lambda: len(received()) >= 10, "the messages", 60)
        assert bodies(received()) == numbered("after", 10)
