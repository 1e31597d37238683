"""From a request's code to the function that answers it, and from what that function says to a reply.

A handler module has a `Routes` object; `@routes.handle` reads the handler's annotation `Call[SomeRequest]` and so knows
the codes. `Router` merges the modules' routes, refuses duplicates, and answers unknown codes. It alone turns results
and errors into replies:

    handler returns a Header, a Reply or None   success
    handler raises Refused                      its code and remark
    RemoteProtocolError while decoding          its code and remark, which name the field
    anything else                               SYSTEM_ERROR; logged once with peer, code and opaque

A plain function runs in line, in the order of arrival. An `async` one runs in the connection's nursery and may wait.
A handler that returns `LATER` has kept the call and answers it itself, with `Call.answer`, `resume` or `wait`. Requests
marked one-way are never answered. An answer that does not fit into a frame becomes SYSTEM_ERROR.

A batch handler gets all the requests that one read of the socket brought for its codes, at the end of that read: what
makes a send cheap is that dozens of them are one append and one write (design decision 1).
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import structlog

from protocol.codes import FLAG_ONEWAY, RequestCode, ResponseCode
from protocol.command import Command, encode, response
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.header import REQUESTS, Header

if TYPE_CHECKING:
    from gateway.connection import Connection

log = structlog.get_logger(__name__)

H = TypeVar("H", bound=Header)


class Refused(Exception):
    """A request is answered with this code and remark instead of being carried out."""

    def __init__(self, code: ResponseCode, remark: str) -> None:
        super().__init__(remark)
        self.code = code
        self.remark = remark


class Reply:
    """What a handler answers beyond a mere header."""

    __slots__ = ("body", "code", "header", "remark")

    def __init__(
        self,
        header: Header | None = None,
        body: bytes = b"",
        code: int = ResponseCode.SUCCESS,
        remark: str | None = None,
    ) -> None:
        self.header = header
        self.body = body
        self.code = code
        self.remark = remark


class Later(Enum):
    """Marks a call that its handler has kept and will answer with `Call.answer`."""

    LATER = "later"


LATER = Later.LATER
Result = Header | Reply | None


class Call(Generic[H]):
    """One request on its way through a handler."""

    __slots__ = ("_router", "_started", "command", "connection", "header")

    def __init__(self, header: H, command: Command, connection: "Connection", router: "Router[Any]") -> None:
        self.header = header
        self.command = command
        self.connection = connection
        self._router = router
        self._started = perf_counter()

    @property
    def body(self) -> bytes:
        return self.command.body

    @property
    def version(self) -> int:
        return self.command.version

    @property
    def language(self) -> int:
        return self.command.language

    def answer(self, result: Result | Refused) -> None:
        """Sends the reply; for calls whose handler returned LATER."""
        self._router.answer(self.connection, self.command, result, self._started)

    def resume(self, function: "Callable[..., Result | Later]", *args: Any) -> None:
        """Goes on with a kept call: `function(*args)` returns or raises what a handler does. Never raises."""
        self._router._conclude(self, function, *args)

    def wait(self, function: "Callable[..., Awaitable[Result | Later]]", *args: Any) -> Later:
        """Goes on in the connection's nursery: `function(*args)` returns or raises what an async handler does."""
        self.connection.start_waiting(self._router._conclude_later, self, function, *args)
        return LATER


Handler = Callable[[Any, Call[Any]], Result | Later | Awaitable[Result]]
BatchHandler = Callable[[Any, "Connection", list[Command]], None]


class Routes:
    """The handlers of one module."""

    def __init__(self) -> None:
        self.handlers: dict[int, tuple[type[Header], Handler]] = {}
        self.batch_handlers: dict[int, BatchHandler] = {}

    def handle(self, handler: Handler) -> Handler:
        """Registers `handler(state, call: Call[SomeRequest])` for the codes of SomeRequest."""
        header_class = _header_class(handler)
        for code, declared in REQUESTS.items():
            if declared is header_class:
                self.handlers[code] = (header_class, handler)
        if not any(known is handler for _, known in self.handlers.values()):
            raise TypeError(f"{handler.__qualname__}: no request code is declared for {header_class.__name__}")
        return handler

    def handle_batch(self, *codes: RequestCode) -> Callable[[BatchHandler], BatchHandler]:
        """Registers `handler(state, connection, commands)` for whole batches of these codes."""

        def register(handler: BatchHandler) -> BatchHandler:
            for code in codes:
                self.batch_handlers[code] = handler
            return handler

        return register


def _header_class(handler: Handler) -> type[Header]:
    for annotation in get_type_hints(handler, localns=_handler_names(handler)).values():
        if get_origin(annotation) is Call:
            (header_class,) = get_args(annotation)
            return header_class  # type: ignore[no-any-return]
    raise TypeError(f"{handler.__qualname__} has no parameter annotated Call[...]")


def _handler_names(handler: Handler) -> dict[str, Any]:
    """Stand-ins for names that a handler module imports for type checking only."""
    names = {}
    for annotation in handler.__annotations__.values():
        if isinstance(annotation, str) and annotation.isidentifier() and annotation not in handler.__globals__:
            names[annotation] = Any
    return names


S = TypeVar("S")
RequestObserver = Callable[[int, int, float], None]


class Router(Generic[S]):
    """All routes of one server around its state; `refused_codes` are those a listener does not serve.

    `check` is asked before each handler but the batch handlers, and raises Refused.
    """

    def __init__(
        self,
        state: S,
        routes: Iterable[Routes],
        *,
        observe: RequestObserver = lambda code, response_code, seconds: None,
        check: Callable[[Header], None] = lambda header: None,
        refused_codes: frozenset[int] = frozenset(),
    ) -> None:
        self._state = state
        self._observe = observe
        self._check = check
        self._handlers: dict[int, tuple[type[Header], Handler, bool]] = {}
        self._batch_handlers: dict[int, BatchHandler] = {}
        for module in routes:
            for code, (header_class, handler) in module.handlers.items():
                self._refuse_duplicate(code)
                waits = inspect.iscoroutinefunction(handler)
                self._handlers[code] = (header_class, handler, waits)
            for code, batch_handler in module.batch_handlers.items():
                self._refuse_duplicate(code)
                self._batch_handlers[code] = batch_handler
        for code in refused_codes:
            self._handlers.pop(code, None)
            self._batch_handlers.pop(code, None)

    def _refuse_duplicate(self, code: int) -> None:
        if code in self._handlers or code in self._batch_handlers:
            raise TypeError(f"two handlers for {RequestCode(code)!r}")

    @property
    def codes(self) -> frozenset[int]:
        """The request codes that are served."""
        return frozenset(self._handlers) | frozenset(self._batch_handlers)

    def batch_handler(self, code: int) -> BatchHandler | None:
        return self._batch_handlers.get(code)

    def run_batch(self, handler: BatchHandler, connection: "Connection", commands: list[Command]) -> None:
        """Hands one read's requests to their batch handler; a failure there answers each of them."""
        try:
            handler(self._state, connection, commands)
        except Exception as error:
            for command in commands:
                self._failed(connection, command, error, perf_counter())

    def run(self, connection: "Connection", command: Command) -> None:
        """Carries out one request: in line if its handler is a plain function, else in the connection's nursery."""
        started = perf_counter()
        route = self._handlers.get(command.code)
        if route is None:
            remark = f" request type {command.code} not supported"
            self.answer(connection, command, Refused(ResponseCode.REQUEST_CODE_NOT_SUPPORTED, remark), started)
            return
        header_class, handler, waits = route
        try:
            if len(command.body) > header_class.max_body_bytes:
                remark = f"a body of {len(command.body)} bytes, the limit is {header_class.max_body_bytes}"
                raise Refused(ResponseCode.SYSTEM_ERROR, remark)
            header = command.typed_header(header_class)
            self._check(header)
        except (Refused, RemoteProtocolError) as refusal:
            self.answer(connection, command, refusal, started)
            return
        call = Call(header, command, connection, self)
        if waits:
            connection.start_waiting(self._conclude_later, call, handler, self._state, call)
        else:
            self._conclude(call, handler, self._state, call)  # type: ignore[arg-type]

    def _conclude(self, call: Call[Any], function: Callable[..., Result | Later], *args: Any) -> None:
        try:
            result = function(*args)
        except (Refused, RemoteProtocolError) as refusal:
            self.answer(call.connection, call.command, refusal, call._started)
        except Exception as error:
            self._failed(call.connection, call.command, error, call._started)
        else:
            if result is not LATER:
                self.answer(call.connection, call.command, result, call._started)

    async def _conclude_later(
        self, call: Call[Any], function: Callable[..., Awaitable[Result | Later]], *args: Any
    ) -> None:
        try:
            result = await function(*args)
        except (Refused, RemoteProtocolError) as refusal:
            self.answer(call.connection, call.command, refusal, call._started)
        except Exception as error:
            self._failed(call.connection, call.command, error, call._started)
        else:
            if result is not LATER:
                self.answer(call.connection, call.command, result, call._started)

    def answer(
        self,
        connection: "Connection",
        command: Command,
        result: Result | Refused | RemoteProtocolError,
        started: float,
    ) -> None:
        """Encodes the reply to `command` and posts it; one-way requests get none."""
        if result is None:
            reply = response(command)
        elif isinstance(result, Header):
            reply = response(command, header=result)
        elif isinstance(result, Reply):
            reply = response(command, result.code, header=result.header, body=result.body, remark=result.remark)
        elif isinstance(result, Refused):
            reply = response(command, result.code, remark=result.remark)
        else:
            reply = response(command, result.response_code, remark=result.remark)
        if not command.flag & FLAG_ONEWAY:
            try:
                connection.post(encode(reply))
            except LocalProtocolError as error:
                remark = f"the answer cannot be sent: {error}"
                log.warning("answer_not_sent", peer=connection.remote_address, code=command.code, reason=str(error))
                self.answer(connection, command, Refused(ResponseCode.SYSTEM_ERROR, remark), started)
                return
        self._observe(command.code, reply.code, perf_counter() - started)

    def _failed(self, connection: "Connection", command: Command, error: Exception, started: float) -> None:
        log.error(
            "request_failed",
            peer=connection.remote_address,
            code=command.code,
            opaque=command.opaque,
            exc_info=error,
        )
        remark = f"{type(error).__name__}: {error}"
        self.answer(connection, command, Refused(ResponseCode.SYSTEM_ERROR, remark), started)
