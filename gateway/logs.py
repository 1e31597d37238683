"""Logging: events with facts, readable on a terminal, JSON lines elsewhere, and JSON lines in rotated files.

Log lines go to stderr; stdout belongs to the boot line and to `-p`. A line also goes to the file of the server that
wrote it, `broker.log` or `namesrv.log`: the context variable `server` says which, and tasks inherit it.

Invariant: logging never fails a server. A full disk, an unwritable directory or a closed terminal costs the lines,
and is told once where it can be.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

FILE_BYTES = 32 << 20
FILE_COUNT = 10


@contextmanager
def logging_to(log_dir: str, servers: tuple[str, ...], stream: TextIO | None = None) -> Iterator[None]:
    """Configure structlog for the process; `servers` are the names ("broker", "namesrv") that get a file.

    An empty `log_dir` means no files. Files are closed at the end of the context.
    """
    stream = stream or sys.stderr
    files, problem = _open_files(log_dir, servers)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *_renderers(files, terminal=stream.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: _Stream(stream),
    )
    bridge = _FromStandardLibrary(logging.WARNING)
    logging.getLogger().addHandler(bridge)
    if problem:
        structlog.get_logger().warning("log_files_off", **problem)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(bridge)
        for file in files.values():
            file.close()


def bind_server(name: str) -> None:
    """Say that this task and those it starts belong to the server of this name."""
    structlog.contextvars.bind_contextvars(server=name)


def _renderers(files: dict[str, "_File"], *, terminal: bool) -> list[Processor]:
    as_json = structlog.processors.JSONRenderer()

    def to_file(logger: Any, method: str, event: EventDict) -> EventDict:
        file = files.get(event.get("server", "")) or next(iter(files.values()), None)
        if file is not None:
            file.write(str(as_json(logger, method, dict(event))))
        return event

    # A terminal gets tracebacks set out below the line, a file gets them as one field of it.
    exceptions = structlog.processors.ExceptionRenderer()
    if not terminal:
        return [exceptions, to_file, as_json]

    def to_file_with_traceback(logger: Any, method: str, event: EventDict) -> EventDict:
        to_file(logger, method, exceptions(logger, method, dict(event)))
        return event

    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    return [to_file_with_traceback, console]


class _Stream:
    """The logger under structlog: one line to a stream, whatever state that stream is in."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        # A terminal that was closed after `nohup … &` must not take the server along (OSError; ValueError if
        # the stream object itself is closed).
        with suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = exception = log = msg


class _File(RotatingFileHandler):
    """A rotated file that drops what it cannot write."""

    def write(self, line: str) -> None:
        self.emit(logging.makeLogRecord({"msg": line}))

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the record. The standard library would print a traceback for each."""


class _FromStandardLibrary(logging.Handler):
    """Warnings that libraries log (Trio when it runs out of file descriptors) become events like ours."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def _open_files(log_dir: str, servers: tuple[str, ...]) -> tuple[dict[str, _File], dict[str, str]]:
    """One file per server, and what is wrong with the directory, if anything."""
    files: dict[str, _File] = {}
    if not log_dir:
        return files, {}
    try:
        os.makedirs(log_dir, exist_ok=True)
        for server in servers:
            path = os.path.join(log_dir, f"{server}.log")
            files[server] = _File(path, maxBytes=FILE_BYTES, backupCount=FILE_COUNT, encoding="utf-8")
    except OSError as problem:
        return files, {"log_dir": log_dir, "reason": problem.strerror or str(problem)}
    return files, {}
