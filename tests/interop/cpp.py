"""The C++ client as its Python package `rocketmq` 0.4.4 brings it, in processes of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.interop import maven
from tests.interop.child import Process

PROGRAM: Final = Path(__file__).resolve().parent / "clients" / "cpp_python.py"
VERSION: Final = "0.4.4"

Json = dict[str, Any]


def package() -> Path:
    """The folder with the package, installed nowhere else; maven.Unavailable when it cannot be had."""

    def install(folder: Path) -> None:
        where = ["--quiet", "--no-deps", "--target", str(folder)]
        maven.run_tool([sys.executable, "-m", "pip", "install", *where, f"rocketmq=={VERSION}"])

    return maven.once(f"python-rocketmq-{VERSION}", install)


class Cpp:
    """The C++ client at a name server, with a folder for its logs."""

    def __init__(self, folder: Path, namesrv: str) -> None:
        self.namesrv = namesrv
        self.folder = folder
        self.env = {"PYTHONPATH": str(package()), "HOME": str(folder)}  # it logs to ~/logs

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(PROGRAM), *arguments]

    def produce(self, *messages: Json) -> list[Json]:
        """Sends the messages in one process and returns its results."""
        arguments = ("produce", self.namesrv, "cpp-producer", json.dumps(messages))
        done = subprocess.run(
            self._command(*arguments), env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    @contextmanager
    def consume(
        self, topic: str, group: str, expression: str = "*", how: str = "cluster"
    ) -> Iterator[Callable[[], list[Json]]]:
        """A running push consumer; gives what it has received so far."""
        arguments = ("consume", self.namesrv, group, topic, expression, how)
        process = Process(self._command(*arguments), self.folder, self.env, log=f"consumer-{group}")
        try:
            process.wait_line('"started"', 30)
            yield lambda: [json.loads(line) for line in process.output.splitlines() if line.startswith("{")]
            process.terminate()
            assert '"stopped"' in process.output
        finally:
            process.kill()
