"""The commands: arguments, boot lines, errors in one line, signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from gateway import cli
from gateway.config import BrokerOptions, ConfigError, NamesrvOptions
from store.errors import StoreLocked
from store.options import StoreOptions

ROOT = Path(__file__).parent.parent.parent
NO_FILES = "logDir="


class FakeServers:
    """Stand-ins for both servers: they record what happens, and end themselves by a signal once all have started."""

    def __init__(self, expected: int) -> None:
        self.events: list[str] = []
        self.namesrv_options = NamesrvOptions()
        self.broker_options = BrokerOptions()
        self.store_options = StoreOptions()
        self.failure: BaseException | None = None
        self.late_failure: BaseException | None = None
        self._missing = expected

    async def serve_namesrv(self, options: NamesrvOptions, *, task_status: trio.TaskStatus[str]) -> None:
        self.namesrv_options = options
        await self._serve("namesrv", "0.0.0.0:4321", task_status)

    async def serve_broker(
        self, options: BrokerOptions, store_options: StoreOptions, *, task_status: trio.TaskStatus[str]
    ) -> None:
        self.broker_options, self.store_options = options, store_options
        if self.failure is not None:
            async with trio.open_nursery():  # as deep as in a real server
                raise self.failure
        await self._serve("broker", f"{options.broker_ip1}:{options.listen_port}", task_status)

    async def _serve(self, name: str, address: str, task_status: trio.TaskStatus[str]) -> None:
        self.events.append(f"{name} starts")
        task_status.started(address)
        await trio.lowlevel.checkpoint()
        self._missing -= 1
        if self._missing == 0:
            await trio.testing.wait_all_tasks_blocked()
            if self.late_failure is not None:
                raise self.late_failure
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            await trio.sleep_forever()
        finally:
            self.events.append(f"{name} ends")


@contextmanager
def fake_servers(monkeypatch: pytest.MonkeyPatch, expected: int) -> Iterator[FakeServers]:
    fakes = FakeServers(expected)
    for name in ("namesrv", "broker"):
        module: Any = types.ModuleType(f"gateway.{name}.app")
        setattr(module, f"serve_{name}", getattr(fakes, f"serve_{name}"))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield fakes
    structlog.reset_defaults()


@pytest.fixture
def one_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServers]:
    with fake_servers(monkeypatch, 1) as fakes:
        yield fakes


@pytest.fixture
def both_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServers]:
    with fake_servers(monkeypatch, 2) as fakes:
        yield fakes


class TestArguments:
    def test_all_keys_are_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.mqbroker(["-p", "brokerName=b", "flushDiskType=SYNC_FLUSH"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert {"brokerName=b", "flushDiskType=SYNC_FLUSH", "listenPort=10911", "haListenPort=10912"} <= set(lines)
        keys = [line.partition("=")[0] for line in lines]
        assert sorted(keys) == sorted(BrokerOptions.declared().keys() | StoreOptions.declared().keys())

    def test_important_keys_are_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.mqbroker(["-m"]) == 0
        lines = capsys.readouterr().out
        assert "brokerRole=ASYNC_MASTER\n" in lines
        assert "flushConsumeQueueLeastPages" not in lines

    def test_keys_of_both_servers_in_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.pocketmq(["-p", "namesrvPort=1234"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert {"namesrvPort=1234", "namesrvMetricsPort=5556", "listenPort=10911", "clusterTest=false"} <= set(lines)

    def test_remarks_of_a_printed_configuration_go_to_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.mqbroker(["-m", "brokerIp1=10.0.0.1"]) == 0
        assert "mqbroker: unknown_config_key key=brokerIp1" in capsys.readouterr().err

    def test_name_servers_over_the_file_and_the_environment(
        self, one_server: FakeServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NAMESRV_ADDR", "env:1")
        file = tmp_path / "b.properties"
        file.write_text("namesrvAddr=file:1\n")
        assert cli.mqbroker(["brokerName=x", "-n", "a:1;b:2", "-c", str(file), NO_FILES]) == 0
        assert one_server.broker_options.namesrv_addr == "a:1;b:2"
        assert one_server.broker_options.broker_name == "x"

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="0"):
            cli.pocketmq(["-h"])
        assert "key=value" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("command", "used"), [(cli.mqnamesrv, False), (cli.mqbroker, True), (cli.pocketmq, False)]
    )
    def test_help_speaks_of_the_environment_where_it_counts(
        self, command: Callable[[list[str]], int], used: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="0"):
            command(["-h"])
        assert ("NAMESRV_ADDR" in capsys.readouterr().out) == used

    def test_help_of_a_name_server_promises_nothing_for_n(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="0"):
            cli.mqnamesrv(["-h"])
        assert "--namesrvAddr ADDR no effect" in " ".join(capsys.readouterr().out.split())

    def test_check_is_handed_to_the_store(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module: Any = types.ModuleType("store.check")
        module.check_main = lambda argv: len(argv)
        monkeypatch.setitem(sys.modules, "store.check", module)
        assert cli.pocketmq(["check", "a", "b"]) == 2


class TestBoot:
    def test_a_broker_says_so_when_it_accepts(
        self, one_server: FakeServers, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = ["brokerName=broker-a", "brokerIP1=10.9.8.7", "listenPort=2000", "namesrvAddr=n:1", NO_FILES]
        assert cli.mqbroker(given) == 0
        assert capsys.readouterr().out == (
            "The broker[broker-a, 10.9.8.7:2000] boot success. serializeType=JSON and name server is n:1\n"
        )

    def test_a_name_server_says_so(self, one_server: FakeServers, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.mqnamesrv([NO_FILES, "-n", "ignored:1"]) == 0
        assert capsys.readouterr().out == "The Name Server boot success. serializeType=JSON\n"

    def test_both_in_one(self, both_servers: FakeServers, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.pocketmq([NO_FILES, "brokerIP1=10.9.8.7"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "The Name Server boot success. serializeType=JSON",
            "The broker[broker-a, 10.9.8.7:10911] boot success. serializeType=JSON and name server is 127.0.0.1:4321",
        ]

    def test_the_broker_ends_before_the_name_server(self, both_servers: FakeServers) -> None:
        assert cli.pocketmq([NO_FILES]) == 0
        assert both_servers.events == ["namesrv starts", "broker starts", "broker ends", "namesrv ends"]

    def test_other_name_servers_are_used_too(self, both_servers: FakeServers) -> None:
        assert cli.pocketmq([NO_FILES, "-n", "other:9876"]) == 0
        assert both_servers.broker_options.namesrv_addr == "127.0.0.1:4321;other:9876"

    def test_an_address_that_means_nothing_elsewhere_is_warned_about(
        self, one_server: FakeServers, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.mqbroker(["brokerIP1=127.0.0.1", NO_FILES]) == 0
        events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        (warning,) = [event for event in events if event["level"] == "warning"]
        assert (warning["event"], warning["brokerIP1"]) == ("clients_elsewhere_cannot_connect", "127.0.0.1")

    def test_each_server_has_its_log_file(self, both_servers: FakeServers, tmp_path: Path) -> None:
        assert cli.pocketmq([f"logDir={tmp_path}"]) == 0
        logged = {name: (tmp_path / f"{name}.log").read_text() for name in ("broker", "namesrv")}
        assert "broker_started" in logged["broker"]
        assert "broker_started" not in logged["namesrv"]
        assert "namesrv_started" in logged["namesrv"]


class TestErrors:
    @pytest.mark.parametrize(
        "failure",
        [
            OSError(98, "port 10911 is taken by another process"),
            PermissionError(13, "Permission denied", "/store"),
            StoreLocked("/store/lock is held by another broker"),
            ConfigError("conf/plain_acl.yml: line 3: no accessKey"),
        ],
        ids=lambda failure: type(failure).__name__,
    )
    def test_what_a_person_can_mend_is_one_line(
        self, one_server: FakeServers, failure: Exception, capsys: pytest.CaptureFixture[str]
    ) -> None:
        one_server.failure = failure
        assert cli.mqbroker([NO_FILES]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("mqbroker: ")
        assert str(failure.args[-1]) in line

    def test_a_bad_value_is_one_line_and_leaves_no_trace(
        self, one_server: FakeServers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = [f"storePathRootDir={tmp_path}/store", f"logDir={tmp_path}/logs", "flushDiskType=SYNC"]
        assert cli.mqbroker(given) == 1
        assert capsys.readouterr().err == (
            "mqbroker: command line: flushDiskType=SYNC: allowed is ASYNC_FLUSH or SYNC_FLUSH\n"
        )
        assert one_server.events == []
        assert list(tmp_path.iterdir()) == []

    def test_both_servers_end_if_one_fails(self, both_servers: FakeServers) -> None:
        both_servers.failure = StoreLocked("in use")
        assert cli.pocketmq([NO_FILES]) == 1
        assert both_servers.events == ["namesrv starts", "namesrv ends"]

    def test_a_defect_is_logged_with_its_traceback(
        self, one_server: FakeServers, capsys: pytest.CaptureFixture[str]
    ) -> None:
        one_server.failure = ZeroDivisionError("of the broker")
        assert cli.mqbroker([NO_FILES]) == 1
        *_, event, line = capsys.readouterr().err.splitlines()
        assert "Traceback" in json.loads(event)["exception"]
        assert line == "mqbroker: stopped by a defect: ZeroDivisionError('of the broker')"

    def test_an_os_error_after_the_start_is_a_defect(
        self, one_server: FakeServers, capsys: pytest.CaptureFixture[str]
    ) -> None:
        one_server.late_failure = OSError(5, "Input/output error")
        assert cli.mqbroker([NO_FILES]) == 1
        assert "server_failed" in capsys.readouterr().err


BLOCKED_BROKER = """
import sys, time, types, trio
async def serve_broker(options, store_options, *, task_status):
    task_status.started("here")
    try:
        await trio.sleep_forever()
    finally:
        print("stopping", flush=True)
        time.sleep(60)  # a loop that does not come back
module = types.ModuleType("gateway.broker.app")
module.serve_broker = serve_broker
sys.modules[module.__name__] = module
from gateway.cli import mqbroker
sys.exit(mqbroker(["logDir="]))
"""


class TestProcesses:
    """Real processes, as a user starts them."""

    @contextmanager
    def process(self, *command: str, cwd: Path = ROOT) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @staticmethod
    def first_line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_a_server_cleanly(self, number: signal.Signals, tmp_path: Path) -> None:
        given = ["listenPort=0", "metricsPort=0", f"logDir={tmp_path}", f"kvConfigPath={tmp_path}/kv.json"]
        command = "import sys; from gateway.cli import mqnamesrv; sys.exit(mqnamesrv())"
        with self.process(sys.executable, "-c", command, *given) as process:
            assert "boot success" in self.first_line(process)
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
            assert (out, process.returncode) == ("", 0)
            assert "Traceback" not in err
            assert number.name in err

    def test_a_second_signal_ends_a_server_that_hangs(self) -> None:
        with self.process(sys.executable, "-c", BLOCKED_BROKER) as process:
            assert "boot success" in self.first_line(process)
            process.send_signal(signal.SIGTERM)
            assert self.first_line(process) == "stopping\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 128 + signal.SIGTERM


@pytest.mark.skipif(not (ROOT / ".venv" / "bin" / "mqbroker").exists(), reason="scripts run what is in .venv")
class TestScripts:
    """bin/* from any directory."""

    @pytest.mark.parametrize("name", ["mqbroker", "mqnamesrv"])
    def test_wrappers_run_the_command_where_they_are_called(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "x.properties").write_text("listenPort=4242\n")
        command = ["sh", str(ROOT / "bin" / name), "-c", "x.properties", "-m"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "listenPort=4242\n" in done.stdout

    def test_a_wrapper_may_be_linked_to(self, tmp_path: Path) -> None:
        (tmp_path / "mqbroker").symlink_to(ROOT / "bin" / "mqbroker")
        done = subprocess.run(["sh", "mqbroker", "-p"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert f"rocketmqHome={ROOT}\n" in done.stdout


SHELLS = ["sh", *(shell for shell in ("dash", "bash") if shutil.which(shell))]


@pytest.mark.parametrize("shell", SHELLS)
class TestShutdown:
    """bin/mqshutdown on a directory of its own, so that it finds no other servers."""

    @pytest.fixture(params=["plain", "with  two blanks"])
    def home(self, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
        home = tmp_path / str(request.param)
        (home / "bin").mkdir(parents=True)
        (home / ".venv" / "bin").mkdir(parents=True)
        (home / "bin" / "mqshutdown").write_text((ROOT / "bin" / "mqshutdown").read_text())
        for name in ("mqbroker", "mqnamesrv"):
            script = home / ".venv" / "bin" / name
            # As pip writes it for a path that a #! line cannot hold.
            script.write_text(
                f"#!/bin/sh\n'''exec' \"{home}/.venv/bin/python\" \"$0\" \"$@\"\n' '''\n"
                "print('up', flush=True)\nimport time\ntime.sleep(60)\n"
            )
            script.chmod(0o755)
        (home / ".venv" / "bin" / "python").symlink_to(sys.executable)
        return home

    @staticmethod
    def shutdown(shell: str, home: Path, *words: str) -> tuple[int, str]:
        command = [shell, str(home / "bin" / "mqshutdown"), *words]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout

    def test_only_the_named_server_is_asked_to_stop(self, shell: str, home: Path) -> None:
        started = [
            subprocess.Popen([home / ".venv" / "bin" / name, "-n", "x"], stdout=subprocess.PIPE)
            for name in ("mqbroker", "mqnamesrv")
        ]
        broker, namesrv = started
        try:
            for process in started:
                assert process.stdout is not None
                assert process.stdout.readline() == b"up\n"
            code, out = self.shutdown(shell, home, "broker")
            assert (code, out) == (
                0,
                f"The mqbroker({broker.pid}) is running...\nSend shutdown request to mqbroker({broker.pid}) OK\n",
            )
            assert broker.wait(timeout=20) == -signal.SIGTERM
            assert namesrv.poll() is None
        finally:
            for process in started:
                process.kill()
                process.communicate()

    def test_nothing_to_stop(self, shell: str, home: Path) -> None:
        assert self.shutdown(shell, home, "broker") == (255, "No mqbroker running.\n")

    @pytest.mark.parametrize("words", [[], ["everything"]])
    def test_usage(self, shell: str, home: Path, words: list[str]) -> None:
        assert self.shutdown(shell, home, *words) == (2, "")
