"""Free ports, waiting for what happens outside this process, and a child whose output can be waited for."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final

# ---- ports

# Below the range from which the kernel takes ports for outgoing connections, so that none is snatched
# between the look and the start; a random place in it, so that test runs side by side seldom meet.
_FIRST_PORT: Final = 12_000
_LAST_PORT: Final = 31_000
_dice = random.Random()
_given: set[int] = set()
_giving = threading.Lock()


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def free_ports(before: int = 0, after: int = 0) -> int:
    """A port that is free together with the `before` ports under it and the `after` ports above it."""
    for _ in range(1000):
        port = _dice.randrange(_FIRST_PORT, _LAST_PORT)
        block = range(port - before, port + after + 1)
        with _giving:
            if _given.isdisjoint(block) and all(map(_is_free, block)):
                _given.update(block)
                return port
    raise RuntimeError("no free block of ports found")


def wait_until(condition: Callable[[], bool], what: str, timeout: float, interval: float = 0.02) -> float:
    """Polls something outside this process until it holds.

    The seconds that took. AssertionError after `timeout`.
    """
    began = time.monotonic()
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return time.monotonic() - began
        if time.monotonic() - began > timeout:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(interval)


# ---- one process


class Process:
    """A child in its own session, its output collected line by line and kept in a file."""

    def __init__(
        self, command: list[str], folder: Path, env: Mapping[str, str] | None = None, *, log: str = "out"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.command = command
        self.log = folder / log
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self.began = time.monotonic()
        self._popen = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._popen.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._popen.stdout,), daemon=True)
        self._reader.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe, self.log.open("ab") as log:
            for line in pipe:
                log.write(line)
                log.flush()
                with self._changed:
                    self._lines.append(line.decode(errors="replace").rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        """Process id; also the id of its session and process group."""
        return self._popen.pid

    @property
    def output(self) -> str:
        """All that it has printed, stdout and stderr mixed."""
        with self._changed:
            return "\n".join(self._lines)

    def wait_line(self, pattern: str, timeout: float = 60.0) -> str:
        """The first line that matches, waiting for it.

        AssertionError with the output when it ends or time runs out.
        """
        seen = 0
        limit = time.monotonic() + timeout
        with self._changed:
            while True:
                for line in self._lines[seen:]:
                    if re.search(pattern, line):
                        return line
                seen = len(self._lines)
                left = limit - time.monotonic()
                if self._ended or left <= 0:
                    state = "ended" if self._ended else f"did not print it in {timeout} s"
                    tail = "\n".join(self._lines[-40:])
                    raise AssertionError(
                        f"{' '.join(self.command[:3])} … {state}; no line like {pattern!r} in:\n{tail}"
                    )
                self._changed.wait(left)

    def is_running(self) -> bool:
        """Whether the child lives."""
        return self._popen.poll() is None

    def signal(self, number: int) -> None:
        """Sends a signal to the child and everything it started; nothing when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGTERM:
                os.kill(self.pid, number)
            else:
                os.killpg(self.pid, number)

    def wait(self, timeout: float = 30.0) -> int:
        """The exit code, waiting for the end.

        Negative for a signal. subprocess.TimeoutExpired after `timeout`.
        """
        code = self._popen.wait(timeout)
        self._reader.join(5)
        return code

    def terminate(self, timeout: float = 30.0) -> int:
        """SIGTERM, then the exit code; SIGKILL and AssertionError when it does not end in time."""
        if not self.is_running():
            return self.wait()
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end within {timeout} s of SIGTERM:\n{self.output[-3000:]}") from None

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        self.signal(signal.SIGKILL)
        self.wait()
