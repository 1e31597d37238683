"""Routing: results and errors become replies, one-way requests get none, nothing a handler does ends the connection."""

from typing import Any

import pytest
import trio

from gateway.connection import Connection
from gateway.routing import LATER, Call, Later, Refused, Reply, Router, Routes
from protocol.codes import FLAG_ONEWAY, RequestCode, ResponseCode, SerializeType
from protocol.command import MAX_FRAME_BYTES, Command
from protocol.errors import RemoteProtocolError
from protocol.frame import FrameDecoder
from protocol.requests.offsets import GetMaxOffset, OffsetReply, QueryConsumerOffset


class FakeConnection:
    """Keeps what is posted."""

    remote_address = "127.0.0.1:1"

    def __init__(self) -> None:
        self.posted: list[bytes] = []

    def post(self, *buffers: bytes) -> None:
        self.posted += buffers

    @property
    def replies(self) -> list[Command]:
        return FrameDecoder().receive(b"".join(self.posted))


def run(router: Router[Any], command: Command) -> list[Command]:
    connection: Any = FakeConnection()
    router.run(connection, command)
    return connection.replies  # type: ignore[no-any-return]


def router_of(result: Any) -> Router[Any]:
    """A router whose handler of GET_MAX_OFFSET returns or raises `result`."""
    routes = Routes()

    def get_max_offset(state: str, call: Call[GetMaxOffset]) -> Any:
        assert state == "state"
        assert call.header.queue_id == 3
        if isinstance(result, Exception):
            raise result
        return result

    routes.handle(get_max_offset)
    return Router("state", [routes])


REQUEST_FIELDS = {"topic": "t", "queueId": "3"}


def request(fields: dict[str, str] = REQUEST_FIELDS, flag: int = 0) -> Command:
    return Command(RequestCode.GET_MAX_OFFSET, 7, fields=fields, flag=flag)


@pytest.mark.parametrize(
    ("result", "code", "fields", "body", "remark"),
    [
        (None, 0, {}, b"", None),
        (OffsetReply(offset=5), 0, {"offset": "5"}, b"", None),
        (Reply(body=b"b", remark="r"), 0, {}, b"b", "r"),
        (Refused(ResponseCode.NO_PERMISSION, "no"), 16, {}, b"", "no"),
        (RemoteProtocolError("bad body"), 1, {}, b"", "bad body"),
        (ZeroDivisionError("oops"), 1, {}, b"", "ZeroDivisionError: oops"),
    ],
)
def test_results_and_errors_become_replies(
    result: Any, code: int, fields: dict[str, str], body: bytes, remark: str | None
) -> None:
    (reply,) = run(router_of(result), request())
    assert reply.is_response
    assert (7, code, fields, body, remark) == (reply.opaque, reply.code, reply.fields, reply.body, reply.remark)


@pytest.mark.parametrize("result", [None, Refused(ResponseCode.NO_PERMISSION, "no"), ZeroDivisionError()])
def test_one_way_requests_are_never_answered(result: Any) -> None:
    assert run(router_of(result), request(flag=FLAG_ONEWAY)) == []


def test_unknown_code_is_named() -> None:
    (reply,) = run(router_of(None), Command(9999, 7))
    assert reply.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
    assert "9999" in (reply.remark or "")
    assert run(router_of(None), Command(9999, 7, flag=FLAG_ONEWAY)) == []


def test_bad_field_is_named() -> None:
    (reply,) = run(router_of(None), request({"topic": "t", "queueId": "x"}))
    assert reply.code == ResponseCode.SYSTEM_ERROR
    assert "queueId" in (reply.remark or "")


def test_too_long_body_is_refused() -> None:
    asked = request()
    asked.body = bytes(GetMaxOffset.max_body_bytes)
    assert run(router_of(None), asked)[0].code == ResponseCode.SUCCESS
    asked.body += b"x"
    (reply,) = run(router_of(None), asked)
    assert (reply.code, reply.remark) == (1, "a body of 1048577 bytes, the limit is 1048576")


def test_kept_call_is_answered_by_its_keeper() -> None:
    kept: list[Call[GetMaxOffset]] = []
    routes = Routes()

    @routes.handle
    def get_max_offset(state: None, call: Call[GetMaxOffset]) -> Later:
        kept.append(call)
        return LATER

    connection: Any = FakeConnection()
    Router(None, [routes]).run(connection, request())
    assert connection.replies == []
    kept[0].answer(OffsetReply(offset=9))
    assert [reply.fields["offset"] for reply in connection.replies] == ["9"]


@pytest.mark.parametrize("error", [Refused(ResponseCode.NO_PERMISSION, "no"), ZeroDivisionError("oops")])
def test_what_a_kept_call_raises_is_answered_and_goes_no_further(error: Exception) -> None:
    kept: list[Call[GetMaxOffset]] = []
    routes = Routes()

    @routes.handle
    def get_max_offset(state: None, call: Call[GetMaxOffset]) -> Later:
        kept.append(call)
        return LATER

    def fail() -> Later:
        raise error

    connection: Any = FakeConnection()
    Router(None, [routes]).run(connection, request())
    kept[0].resume(lambda: LATER)
    assert connection.replies == []
    kept[0].resume(fail)
    assert [str(error) in (reply.remark or "") for reply in connection.replies] == [True]


async def test_a_kept_call_may_wait_beside_the_receive_loop(nursery: trio.Nursery) -> None:
    released = trio.Event()
    routes = Routes()

    async def answer(offset: int) -> OffsetReply:
        await released.wait()
        return OffsetReply(offset=offset)

    @routes.handle
    def get_max_offset(state: None, call: Call[GetMaxOffset]) -> Later:
        return call.wait(answer, 5)

    connection: Any = FakeConnection()
    connection.start_waiting = nursery.start_soon
    Router(None, [routes]).run(connection, request())
    await trio.testing.wait_all_tasks_blocked()
    assert connection.replies == []
    released.set()
    await trio.testing.wait_all_tasks_blocked()
    assert [reply.fields["offset"] for reply in connection.replies] == ["5"]


@pytest.mark.parametrize("reply", [Reply(body=bytes(MAX_FRAME_BYTES)), Reply(code=200_050)])
def test_an_answer_that_does_not_fit_becomes_an_error(reply: Reply) -> None:
    asked = request()
    asked.serialize_type = SerializeType.ROCKETMQ
    (answer,) = run(router_of(reply), asked)
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert (answer.remark or "").startswith("the answer cannot be sent: ")


def test_two_handlers_for_one_code_are_refused() -> None:
    def make() -> Routes:
        routes = Routes()

        @routes.handle
        def query(state: None, call: Call[QueryConsumerOffset]) -> None: ...

        return routes

    with pytest.raises(TypeError, match="QUERY_CONSUMER_OFFSET"):
        Router(None, [make(), make()])


def test_handler_without_a_call_is_refused() -> None:
    def handler(state: None, header: GetMaxOffset) -> None: ...

    with pytest.raises(TypeError, match="Call"):
        Routes().handle(handler)  # type: ignore[arg-type]


def test_listener_that_refuses_a_code() -> None:
    routes = Routes()

    @routes.handle
    def get_max_offset(state: None, call: Call[GetMaxOffset]) -> None: ...

    router = Router(None, [routes], refused_codes=frozenset({RequestCode.GET_MAX_OFFSET}))
    (reply,) = run(router, request())
    assert reply.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED


def test_failing_batch_handler_answers_each_request() -> None:
    routes = Routes()

    @routes.handle_batch(RequestCode.SEND_MESSAGE)
    def send(state: None, connection: Connection, commands: list[Command]) -> None:
        raise ZeroDivisionError("oops")

    connection: Any = FakeConnection()
    router = Router(None, [routes])
    handler = router.batch_handler(RequestCode.SEND_MESSAGE)
    assert handler is not None
    router.run_batch(handler, connection, [Command(10, 1), Command(10, 2)])
    assert [(reply.opaque, reply.code) for reply in connection.replies] == [(1, 1), (2, 1)]
