"""Clients in other languages, each a small program in processes of its own: C++ by its Python package, and Go.

Both programs are called the same way: `produce NAMESRV GROUP MESSAGES`, `consume NAMESRV GROUP TOPIC
EXPRESSION …`.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.interop import maven
from tests.interop.child import Process

PROGRAMS: Final = Path(__file__).resolve().parent / "clients"
CPP_VERSION: Final = "0.4.4"

Json = dict[str, Any]


def cpp_package() -> Path:
    """The folder with the Python package, installed nowhere else; maven.Unavailable when it cannot be had."""

    def install(folder: Path) -> None:
        where = ["--quiet", "--no-deps", "--target", str(folder)]
        maven.run_tool([sys.executable, "-m", "pip", "install", *where, f"rocketmq=={CPP_VERSION}"])

    return maven.once(f"python-rocketmq-{CPP_VERSION}", install)


def go_program() -> Path:
    """The compiled Go program; maven.Unavailable when there is no Go or its modules cannot be had."""
    sources = sorted((PROGRAMS / "go").iterdir())
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]

    def build(folder: Path) -> None:
        for source in sources:
            shutil.copy(source, folder)
        maven.run_tool(["go", "build", "-o", "client", "."], cwd=folder)

    return maven.once(f"go-{digest}", build) / "client"


class External:
    """One of the programs at a name server, with a folder for its logs."""

    def __init__(self, command: list[str], env: Mapping[str, str], folder: Path, namesrv: str) -> None:
        self.command = command
        self.env = {"HOME": str(folder), **env}
        self.folder = folder
        self.namesrv = namesrv

    def produce(self, *messages: Json) -> list[Json]:
        """Sends the messages in one process and returns its results."""
        arguments = ("produce", self.namesrv, "external-producer", json.dumps(messages))
        done = subprocess.run(
            [*self.command, *arguments], env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    @contextmanager
    def consume(self, topic: str, group: str, expression: str = "*", *how: str) -> Iterator[Callable[[], list[Json]]]:
        """A running push consumer; gives what it has received so far."""
        arguments = ("consume", self.namesrv, group, topic, expression, *how)
        process = Process([*self.command, *arguments], self.folder, self.env, log=f"consumer-{group}")
        try:
            process.wait_line('"started"', 30)
            yield lambda: [json.loads(line) for line in process.output.splitlines() if line.startswith("{")]
            process.terminate()
            assert '"stopped"' in process.output
        finally:
            process.kill()


def cpp(folder: Path, namesrv: str) -> External:
    """The C++ client."""
    command = [sys.executable, str(PROGRAMS / "cpp_python.py")]
    return External(command, {"PYTHONPATH": str(cpp_package())}, folder, namesrv)


def go(folder: Path, namesrv: str) -> External:
    """The Go client."""
    return External([str(go_program())], {"ROCKETMQ_GO_LOG_LEVEL": "error"}, folder, namesrv)
