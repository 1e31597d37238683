"""mqadmin, the official command line, in the version asked for."""

import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.interop import maven

MAIN: Final = "org.apache.rocketmq.tools.command.MQAdminStartup"

JVM: Final = [
    *("-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"),
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in ("java.nio", "sun.nio.ch")),
]
_LOGBACK: Final = '<configuration><root level="OFF"/></configuration>\n'


def mqadmin(version: str, command: str, *arguments: str, namesrv: str | None = None) -> str:
    """Runs one command and returns all that it printed. It exits with 0 whatever happens: read the text."""
    with tempfile.TemporaryDirectory(prefix="pocketmq-mqadmin-") as name:
        home = Path(name)
        (home / "conf").mkdir()
        for file in ("logback_tools.xml", "rmq.tools.logback.xml"):
            (home / "conf" / file).write_text(_LOGBACK, encoding="utf-8")
        where = [] if namesrv is None else ["-n", namesrv]
        done = subprocess.run(
            [
                *("java", *JVM, f"-Drocketmq.home.dir={home}", f"-Duser.home={home}"),
                *("-cp", maven.classpath("tools", version), MAIN, command, *arguments, *where),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            cwd=home,
        )
    return done.stdout.decode(errors="replace")
