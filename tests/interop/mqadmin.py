"""mqadmin, the official command line, one JVM for many commands."""

import atexit
import contextlib
import json
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.interop import maven
from tests.interop.driver import JVM

JAVA_SOURCES: Final = Path(__file__).resolve().parent / "java-tools"
_LOGBACK: Final = '<configuration><root level="OFF"/></configuration>\n'


class Admin:
    """mqadmin of one version; ends with the `with` block. One command at a time."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.folder = Path(tempfile.mkdtemp(prefix=f"pocketmq-mqadmin-{version}-"))
        (self.folder / "conf").mkdir()
        for file in ("logback_tools.xml", "rmq.tools.logback.xml"):
            (self.folder / "conf" / file).write_text(_LOGBACK, encoding="utf-8")
        classes = maven.compiled(JAVA_SOURCES.rglob("*.java"), "tools", version)
        self._errors = (self.folder / "stderr").open("wb")
        self._popen = subprocess.Popen(
            [
                *("java", *JVM, f"-Drocketmq.home.dir={self.folder}", f"-Duser.home={self.folder}"),
                *("-cp", maven.classpath("tools", version, classes), "interop.AdminShell"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=self.folder,
            start_new_session=True,
        )

    def run(self, command: str, *arguments: str, namesrv: str | None = None) -> str:
        """Runs one command and returns all that it printed; mqadmin has no exit code worth the name."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        where = [] if namesrv is None else ["-n", namesrv]
        line = json.dumps({"arguments": [command, *arguments, *where]})
        self._popen.stdin.write(line.encode() + b"\n")
        self._popen.stdin.flush()
        answer = self._popen.stdout.readline()
        assert answer, f"mqadmin {command} ended its JVM, as it does when it does not know an option"
        output: str = json.loads(answer)["output"]
        return output

    def close(self) -> None:
        """Ends the JVM."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        with contextlib.suppress(OSError):
            self._popen.stdin.close()
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._popen.stdout.close()
        self._errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_running: dict[str, Admin] = {}
_one_at_a_time = threading.Lock()


def mqadmin(version: str, command: str, *arguments: str, namesrv: str | None = None) -> str:
    """Runs one command in this process's JVM for that version, which lives until this process ends."""
    with _one_at_a_time:
        if version not in _running:
            _running[version] = Admin(version)
            atexit.register(_running[version].close)
        try:
            return _running[version].run(command, *arguments, namesrv=namesrv)
        except AssertionError:
            atexit.unregister(_running[version].close)
            _running.pop(version).close()
            raise
