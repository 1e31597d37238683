"""The commands `mqnamesrv`, `mqbroker` and `pocketmq` (both servers in one process).

They run in the foreground. The boot line goes to stdout, and only after the port accepts, because scripts wait for
it; everything else goes to stderr. What a person can mend (a bad value, a taken port, a locked store) ends the command
with one line and exit code 1, without a traceback and before anything is written.

SIGTERM and SIGINT stop gracefully: the servers are cancelled from the inside out and drain. A second one exits at once,
also when the loop is busy, which is why the handlers are set here and not with trio.open_signal_receiver.
"""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
import trio

from gateway.config import ConfigError, NamesrvOptions
from gateway.logs import bind_server, logging_to
from gateway.settings import (
    NAMESRV_ALIASES,
    BrokerConfiguration,
    NamesrvConfiguration,
    Remark,
    load_both,
    load_broker,
    load_namesrv,
    parse_overrides,
)
from protocol.options import properties_text
from store.errors import StoreError

log = structlog.get_logger(__name__)

Arguments = Sequence[str] | None
ALL_ADDRESSES = ("", "0.0.0.0", "::")
GC_THRESHOLDS = (50_000, 20, 50)
"""Nearly all that a request makes is freed by its reference count; cycles are few (exceptions, ended tasks). Looking
for them rarely keeps their search out of the slowest sends."""


def mqnamesrv(argv: Arguments = None) -> int:
    """Run a name server; returns the exit code."""

    def prepare(words: argparse.Namespace) -> _Plan:
        configuration = load_namesrv(words.file, parse_overrides(words.settings))
        options, remarks = configuration
        return _Plan(options.log_dir, options.to_properties, remarks, lambda boot: _namesrv(configuration, boot))

    return _command("mqnamesrv", "Run a name server.", ("namesrv",), prepare, argv)


def mqbroker(argv: Arguments = None) -> int:
    """Run a broker; returns the exit code."""

    def prepare(words: argparse.Namespace) -> _Plan:
        configuration = load_broker(words.file, _overrides(words), environ=os.environ)
        options, store_options, remarks = configuration

        def properties(*, important: bool) -> dict[str, str]:
            return options.to_properties(important=important) | store_options.to_properties(important=important)

        return _Plan(options.log_dir, properties, remarks, lambda boot: _broker(configuration, boot))

    return _command("mqbroker", "Run a broker.", ("broker",), prepare, argv)


def pocketmq(argv: Arguments = None) -> int:
    """Run a name server and a broker in one process, or a subcommand; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["check"]:
        from store.check import check_main

        return check_main(words[1:])

    def prepare(words: argparse.Namespace) -> _Plan:
        namesrv, broker = load_both(words.file, _overrides(words))
        options, store_options, remarks = broker

        def properties(*, important: bool) -> dict[str, str]:
            lookup = namesrv.options.to_properties(important=important)
            aliased = {alias: lookup.pop(key) for alias, key in NAMESRV_ALIASES.items()}
            own = options.to_properties(important=important) | store_options.to_properties(important=important)
            return aliased | lookup | own

        return _Plan(options.log_dir, properties, remarks, lambda boot: _both(namesrv, broker, boot))

    about = (
        "Run a name server (key namesrvPort, 9876) and a broker (listenPort, 10911) in one process, with data under"
        " ./data. `pocketmq check DIR` verifies the store of a stopped broker."
    )
    return _command("pocketmq", about, ("broker", "namesrv"), prepare, words)


@dataclass
class _Boot:
    """How far a start has come, and the scope that a signal cancels."""

    cancel_scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    complete: bool = False
    """The ports accept; until then an OSError is the user's to mend, afterwards it is a defect."""


class _Properties(Protocol):
    def __call__(self, *, important: bool) -> dict[str, str]: ...


@dataclass
class _Plan:
    """A command after its configuration was read: keys to print, remarks to make, servers to run."""

    log_dir: str
    properties: _Properties
    remarks: list[Remark]
    serve: Callable[[_Boot], Awaitable[None]]


def _command(
    name: str,
    about: str,
    servers: tuple[str, ...],
    prepare: Callable[[argparse.Namespace], _Plan],
    argv: Arguments,
) -> int:
    words = _parser(name, about).parse_intermixed_args(argv)
    try:
        plan = prepare(words)
    except ConfigError as error:
        return _fail(name, str(error))
    if words.print_all or words.print_important:
        for remark in plan.remarks:
            print(f"{name}: {remark}", file=sys.stderr)
        print(properties_text(plan.properties(important=words.print_important)), end="")
        return 0
    with logging_to(plan.log_dir, servers):
        for remark in plan.remarks:
            log.warning(remark.event, **remark.facts)
        return _run(name, plan)


NAMESRV_HELP = {
    "mqnamesrv": "no effect; the official command takes it too",
    "mqbroker": "name servers: host:port;host:port",
    "pocketmq": "other name servers that the broker registers with too: host:port;host:port",
}


def _parser(name: str, about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name,
        description=about,
        epilog="Keys have the names of the official configuration; -p lists them all."
        f" A later one wins: {'environment (NAMESRV_ADDR), ' if name == 'mqbroker' else ''}file, command line.",
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="set a key, over the file")
    parser.add_argument("-c", "--configFile", dest="file", metavar="FILE", help=".properties file")
    parser.add_argument("-n", "--namesrvAddr", dest="namesrv", metavar="ADDR", help=NAMESRV_HELP[name])
    parser.add_argument("-p", "--printConfigItem", dest="print_all", action="store_true", help="print all keys")
    parser.add_argument(
        "-m", "--printImportantConfig", dest="print_important", action="store_true", help="print important keys"
    )
    return parser


def _overrides(words: argparse.Namespace) -> Mapping[str, str]:
    overrides = parse_overrides(words.settings)
    return overrides | {"namesrvAddr": words.namesrv} if words.namesrv is not None else overrides


def _run(name: str, plan: _Plan) -> int:
    """Run the servers until a signal or a failure; returns the exit code."""
    boot = _Boot()

    async def main() -> None:
        with _stopping_on_signals(boot.cancel_scope):
            await plan.serve(boot)

    gc.set_threshold(*GC_THRESHOLDS)
    try:
        trio.run(main)
    except BaseException as error:
        causes = list(_leaves(error))
        mendable = (ConfigError, StoreError) if boot.complete else (ConfigError, StoreError, OSError)
        if all(isinstance(cause, mendable) for cause in causes):
            return _fail(name, "; ".join(dict.fromkeys(_one_line(cause) for cause in causes)))
        log.critical("server_failed", exc_info=error)
        return _fail(name, f"stopped by a defect: {'; '.join(dict.fromkeys(map(repr, causes)))}")
    return 0


@contextmanager
def _stopping_on_signals(scope: trio.CancelScope) -> Iterator[None]:
    token = trio.lowlevel.current_trio_token()
    asked = False

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)
        asked = True
        token.run_sync_soon(scope.cancel)
        token.run_sync_soon(lambda: log.info("stopping", signal=signal.Signals(number).name))

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def _namesrv(configuration: NamesrvConfiguration, boot: _Boot) -> None:
    with boot.cancel_scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(_start_namesrv, configuration)
            boot.complete = True


async def _broker(configuration: BrokerConfiguration, boot: _Boot) -> None:
    with boot.cancel_scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(_start_broker, configuration)
            boot.complete = True


async def _both(namesrv: NamesrvConfiguration, broker: BrokerConfiguration, boot: _Boot) -> None:
    """The broker ends first, so that it can still unregister."""
    async with trio.open_nursery() as outer:
        address: str = await outer.start(_start_namesrv, namesrv)
        own = f"{_reachable_host(namesrv.options)}:{address.rpartition(':')[2]}"
        given = broker.options.namesrv_addr
        broker.options.namesrv_addr = f"{own};{given}" if given and given != own else own
        await _broker(broker, boot)
        outer.cancel_scope.cancel()


def _reachable_host(options: NamesrvOptions) -> str:
    return "127.0.0.1" if options.bind_address in ALL_ADDRESSES else options.bind_address


async def _start_namesrv(
    configuration: NamesrvConfiguration, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    from gateway.namesrv.app import serve_namesrv

    bind_server("namesrv")
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_namesrv, configuration.options)
        log.info("namesrv_started", address=address)
        print("The Name Server boot success. serializeType=JSON", flush=True)
        task_status.started(address)


async def _start_broker(
    configuration: BrokerConfiguration, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    from gateway.addresses import why_unreachable
    from gateway.broker.app import serve_broker

    bind_server("broker")
    options = configuration.options
    if reason := why_unreachable(options.broker_ip1):
        log.warning(
            "clients_elsewhere_cannot_connect", brokerIP1=options.broker_ip1, reason=reason, remedy="set brokerIP1"
        )
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_broker, options, configuration.store_options)
        log.info("broker_started", name=options.broker_name, address=address, namesrv=options.namesrv_addr)
        tail = f" and name server is {options.namesrv_addr}" if options.namesrv_addr else ""
        print(f"The broker[{options.broker_name}, {address}] boot success. serializeType=JSON{tail}", flush=True)
        task_status.started(address)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.filename:
        text = f"{text}: {error.filename}"
    return " ".join(text.split()) or type(error).__name__


def _fail(name: str, text: str) -> int:
    print(f"{name}: {text}", file=sys.stderr, flush=True)
    return 1
