"""Logging: where lines go, how they look, and that logging cannot fail a server."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from gateway import logs
from gateway.logs import bind_server, logging_to

SERVERS = ("broker", "namesrv")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def fresh_structlog() -> Iterator[None]:
    """The configuration is the process's: each test leaves none behind."""
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def json_lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_pipe_gets_json_lines() -> None:
    stream = io.StringIO()
    with logging_to("", SERVERS, stream):
        structlog.get_logger().info("slave_connected", addr="10.0.0.1:1", offset=7)
    (line,) = json_lines(stream.getvalue())
    assert {"event": "slave_connected", "addr": "10.0.0.1:1", "offset": 7, "level": "info"}.items() <= line.items()
    assert str(line["timestamp"]).endswith("Z")


def test_a_terminal_gets_readable_lines() -> None:
    stream = Terminal()
    with logging_to("", SERVERS, stream):
        structlog.get_logger().info("slave_connected", offset=7)
    assert "slave_connected" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_each_server_writes_its_file(tmp_path: Path) -> None:
    with logging_to(str(tmp_path / "a" / "b"), SERVERS, io.StringIO()):
        log = structlog.get_logger()
        bind_server("namesrv")
        log.info("one")
        bind_server("broker")
        log.info("two")
    files = {path.name: json_lines(path.read_text()) for path in (tmp_path / "a" / "b").iterdir()}
    assert {name: [line["event"] for line in lines] for name, lines in files.items()} == {
        "namesrv.log": ["one"],
        "broker.log": ["two"],
    }


@pytest.mark.parametrize("stream_class", [io.StringIO, Terminal])
def test_a_file_gets_the_traceback_as_a_field(tmp_path: Path, stream_class: type[io.StringIO]) -> None:
    stream = stream_class()
    with logging_to(str(tmp_path), ("broker",), stream):
        try:
            raise LookupError("lost")
        except LookupError:
            structlog.get_logger().exception("request_failed")
    (line,) = json_lines((tmp_path / "broker.log").read_text())
    assert "LookupError: lost" in str(line["exception"])
    assert "LookupError" in stream.getvalue()


def test_debug_is_not_written() -> None:
    stream = io.StringIO()
    with logging_to("", SERVERS, stream):
        structlog.get_logger().debug("each_message")
    assert stream.getvalue() == ""


def test_an_unwritable_directory_is_told_once_and_no_more(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    stream = io.StringIO()
    with logging_to(str(blocker / "logs"), SERVERS, stream):
        structlog.get_logger().info("going_on")
    warning, line = json_lines(stream.getvalue())
    assert (warning["event"], warning["reason"]) == ("log_files_off", "Not a directory")
    assert line["event"] == "going_on"


def test_a_closed_stream_costs_the_lines_and_not_the_server(tmp_path: Path) -> None:
    stream = io.StringIO()
    with logging_to(str(tmp_path), ("broker",), stream):
        stream.close()
        structlog.get_logger().info("nobody_reads_this")
    assert len(json_lines((tmp_path / "broker.log").read_text())) == 1


def test_a_full_disk_costs_the_lines_and_not_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: object, record: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs._File, "shouldRollover", full)
    stream = io.StringIO()
    with logging_to(str(tmp_path), ("broker",), stream):
        structlog.get_logger().info("going_on")
    assert len(json_lines(stream.getvalue())) == 1
    assert capsys.readouterr().err == ""


def test_files_are_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 2000)
    monkeypatch.setattr(logs, "FILE_COUNT", 2)
    with logging_to(str(tmp_path), ("broker",), io.StringIO()):
        for number in range(100):
            structlog.get_logger().info("event", number=number)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["broker.log", "broker.log.1", "broker.log.2"]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())
    assert json_lines((tmp_path / "broker.log").read_text())[-1]["number"] == 99


def test_warnings_of_libraries_become_events() -> None:
    stream = io.StringIO()
    with logging_to("", SERVERS, stream):
        logging.getLogger("trio.serve_listeners").error("out of %s", "descriptors")
        logging.getLogger("trio").info("not this")
    (line,) = json_lines(stream.getvalue())
    assert (line["event"], line["level"], line["logger"]) == ("out of descriptors", "error", "trio.serve_listeners")
    assert not any(isinstance(handler, logs._FromStandardLibrary) for handler in logging.getLogger().handlers)
