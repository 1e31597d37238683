"""How much memory there is for what was written lately: the machine's, or a container's share of it.

The page cache of a process counts against the memory limit of its control group, so under such a limit that many bytes
are the most that can be in memory, however much the machine has. Both generations of control groups are asked, every
level of the path, since the narrowest limit holds.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_UNLIMITED = 1 << 60  # generation 1 writes a number about this large for "no limit", generation 2 "max"


def physical_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process and its page cache can have. `root` is where /proc and /sys are."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([total, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """The memory limits of this process's control groups; none where there are no control groups."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.count(":") < 2:
                continue
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                yield from _walk(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
            elif not controllers:
                yield from _walk(root / "sys/fs/cgroup", path, "memory.max")


def _walk(mount: Path, path: str, file: str) -> Iterator[int]:
    # A container often sees its own group at the mount point while the path is still the host's.
    group = mount
    for part in ["", *path.strip("/").split("/")]:
        group = group / part if part != ".." else group
        with suppress(OSError, ValueError):
            limit = int((group / file).read_text(encoding="ascii"))
            if 0 < limit < _UNLIMITED:
                yield limit
