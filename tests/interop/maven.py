"""Official artifacts and compiled Java programs, kept in a cache outside the project.

Owns the folder `${XDG_CACHE_HOME:-~/.cache}/pocketmq-interop`. Invariant: a folder in it under its final
name is complete. Everything is made in a temporary neighbour and renamed at the end, so an interrupted run
leaves nothing that a later run would trust, and two runs at the same time do the work twice instead of
seeing each other's halves. Where Maven finds artifacts is the user's Maven settings' business; no address
stands here.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

GROUP: Final = "org.apache.rocketmq"

# What can be asked for: the artifacts whose jars, with all they need at run time, go into one folder.
ARTIFACTS: Final[Mapping[str, tuple[str, ...]]] = {
    "client": ("rocketmq-client",),
    "tools": ("rocketmq-tools",),
    "server": ("rocketmq-namesrv", "rocketmq-broker"),
}

# The 4.x tools and servers bring logback along; the 4.x clients log through the slf4j API of whoever embeds
# them and write to ~/logs otherwise, so nothing has to be added for any of them.

_POM: Final = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>pocketmq.interop</groupId>
  <artifactId>{name}</artifactId>
  <version>1</version>
  <dependencies>
{dependencies}
  </dependencies>
</project>
"""

_DEPENDENCY: Final = """    <dependency>
      <groupId>{group}</groupId>
      <artifactId>{artifact}</artifactId>
      <version>{version}</version>
    </dependency>"""


class Unavailable(Exception):
    """Something outside the project (java, mvn, pip, go, the network) is missing or refused; says what."""


def cache_root() -> Path:
    """The folder that holds everything fetched and compiled."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "pocketmq-interop"


def once(name: str, make: Callable[[Path], None]) -> Path:
    """The cached folder `name`.

    When it is not there, `make` fills an empty folder that then takes its place.
    """
    final = cache_root() / name
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        make(work)
        work.chmod(0o755)
        try:
            work.rename(final)
        except OSError:
            if not final.is_dir():  # anything but another run having been quicker
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def run_tool(command: list[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Runs a build tool.

    Returns its output, raises Unavailable with the end of it when it fails or is missing.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not installed") from None
    output = done.stdout + done.stderr
    if done.returncode:
        raise Unavailable(f"{' '.join(command[:4])} … failed:\n{output[-2000:]}")
    return output


def missing_tools() -> str | None:
    """Which of the tools needed for the official parts is missing, or None."""
    absent = [tool for tool in ("java", "javac", "mvn") if shutil.which(tool) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


def jars(what: str, version: str) -> Path:
    """The folder with the jars of `client`, `tools` or `server` in that version and all that they need at
    run time.
    """
    artifacts = ARTIFACTS[what]

    def fetch(folder: Path) -> None:
        dependencies = (_DEPENDENCY.format(group=GROUP, artifact=name, version=version) for name in artifacts)
        pom = folder / "pom.xml"
        pom.write_text(_POM.format(name=f"{what}-{version}", dependencies="\n".join(dependencies)), encoding="utf-8")
        run_tool(
            [
                "mvn",
                "-B",
                "-q",
                "-f",
                str(pom),
                "dependency:copy-dependencies",
                "-DincludeScope=runtime",
                f"-DoutputDirectory={folder}",
            ]
        )

    return once(f"{what}-{version}", fetch)


def classpath(what: str, version: str, *more: Path) -> str:
    """The -cp argument for the jars of `what`, with folders of compiled classes in front."""
    return os.pathsep.join([*(str(folder) for folder in more), f"{jars(what, version)}/*"])


def compiled(sources: Iterable[Path], what: str, version: str) -> Path:
    """The folder with the classes of these Java sources, compiled against the jars of `what` in that version.

    The name carries a hash of the sources' text, so an edited program is compiled anew and an untouched one
    never is.
    """
    files = sorted(sources)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")

    def compile_into(folder: Path) -> None:
        run_tool(
            [
                "javac",
                "-encoding",
                "UTF-8",
                "-nowarn",
                "-Xlint:none",
                "-d",
                str(folder),
                "-cp",
                classpath(what, version),
                *(str(file) for file in files),
            ]
        )

    return once(f"classes-{what}-{version}-{digest.hexdigest()[:16]}", compile_into)
