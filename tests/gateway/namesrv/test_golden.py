"""What official brokers, clients and tools really sent, and what the official name server answered to it."""

import json
from pathlib import Path

import pytest

from protocol.command import Command
from protocol.frame import FrameDecoder
from tests.gateway.namesrv.samples import Server

WIRE = Path(__file__).parents[2] / "data" / "wire"
MAKES = ("4.8.0-json", "4.9.4-json", "4.9.4-json-slave", "4.9.4-rocketmq", "5.3.3-json")


def command(name: str) -> Command:
    (decoded,) = FrameDecoder().receive((WIRE / f"{name}.bin").read_bytes())
    return decoded


def answer(server: Server, name: str) -> Command:
    """Our answer to a recorded request."""
    server.run((WIRE / f"{name}.request.bin").read_bytes())
    return server.connection.answers.pop()


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def register(server: Server, make: str) -> Command:
    """Carries out the recorded registration of a broker."""
    server.run((WIRE / make / "register-broker.request.bin").read_bytes())
    return command(f"{make}/register-broker.request")


@pytest.mark.parametrize("make", MAKES)
def test_registrations_are_understood(server: Server, make: str) -> None:
    """Each version's header, checksum and body: the broker is there with exactly its topics."""
    request = register(server, make)
    name, address = request.fields["brokerName"], request.fields["brokerAddr"]
    assert server.namesrv.routes.member_addresses(name) == {int(request.fields["brokerId"]): address}
    table = json.loads(request.body)["topicConfigSerializeWrapper"]["topicConfigTable"]
    is_slave = request.fields["brokerId"] != "0"
    assert set(server.namesrv.routes.topics()) == (set() if is_slave else set(table))
    for topic in server.namesrv.routes.topics():
        route = server.namesrv.routes.route(topic)
        assert route is not None
        (queue,) = route.queue_datas
        assert (queue.perm, queue.read_queue_nums) == (table[topic]["perm"], table[topic]["readQueueNums"])


def test_a_slave_gets_its_master(server: Server) -> None:
    """Recorded: the master's addresses, in the answer's fields."""
    register(server, "4.9.4-json")
    ours, theirs = (
        answer(server, "4.9.4-json-slave/register-broker"),
        command("4.9.4-json-slave/register-broker.response"),
    )
    assert (ours.code, ours.opaque, ours.fields) == (theirs.code, theirs.opaque, theirs.fields)


@pytest.mark.parametrize("name", ["route-unquoted", "route-standard-json"])
def test_routes_are_byte_equal(server: Server, name: str) -> None:
    """With one broker there is only one order that fastjson could have chosen."""
    register(server, "4.9.4-json")
    assert answer(server, f"4.9.4-json/{name}").body == command(f"4.9.4-json/{name}.response").body


@pytest.mark.parametrize("make", ["4.8.0-json", "4.9.4-json", "5.3.3-json"])
def test_routes_tell_what_every_version_tells(server: Server, make: str) -> None:
    """Apart from the old spelling of a flag that no client needs and a field of 5.x that is false."""
    request = register(server, make)
    if "golden" not in json.loads(request.body)["topicConfigSerializeWrapper"]["topicConfigTable"]:
        pytest.skip("recorded before the topic was made")
    theirs = command(f"{make}/route-unquoted.response").body
    theirs = theirs.replace(b"topicSynFlag", b"topicSysFlag").replace(b',"enableActingMaster":false', b"")
    assert answer(server, f"{make}/route-unquoted").body == theirs


def test_cluster_info_is_byte_equal(server: Server) -> None:
    """Unquoted ids, also for a client that reads standard JSON routes."""
    register(server, "4.9.4-json")
    name = "4.9.4-json/get-broker-cluster-info"
    assert answer(server, name).body == command(f"{name}.response").body


@pytest.mark.parametrize(
    "name",
    [
        *("route-missing", "error-kv-missing", "unregister-broker", "update-namesrv-config", "delete-topic-in-namesrv"),
        *("wipe-write-perm-of-broker", "add-write-perm-of-broker"),
    ],
)
def test_answers_are_those_of_the_official_name_server(server: Server, name: str) -> None:
    """Code, remark and fields; counts of topics apart, as the recording had made more of them by then."""
    register(server, "4.9.4-json")
    ours, theirs = answer(server, f"4.9.4-json/{name}"), command(f"4.9.4-json/{name}.response")
    assert (ours.code, ours.opaque, ours.remark, ours.body) == (theirs.code, theirs.opaque, theirs.remark, theirs.body)
    assert ours.fields.keys() == theirs.fields.keys()


def test_a_broker_that_speaks_binary_headers_is_answered_alike(server: Server) -> None:
    """The answer comes in the serialization of the request."""
    frame = (WIRE / "4.9.4-rocketmq" / "unregister-broker.request.bin").read_bytes()
    server.run(frame)
    (ours,) = server.connection.answers
    theirs = command("4.9.4-rocketmq/unregister-broker.response")
    assert (ours.serialize_type, ours.opaque, ours.code) == (theirs.serialize_type, theirs.opaque, theirs.code)


def test_configuration_keys(server: Server) -> None:
    """Every key of the official answer is in ours: `exportConfigs` and scripts look for them."""
    name = "4.9.4-json/get-namesrv-config"
    keys = [{line.split(b"=")[0] for line in body.splitlines()} for body in _bodies(server, name)]
    assert keys[0] >= keys[1]


def _bodies(server: Server, name: str) -> tuple[bytes, bytes]:
    return answer(server, name).body, command(f"{name}.response").body
