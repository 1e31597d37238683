"""How much memory counts as the machine's."""

import os
from pathlib import Path

import pytest

from store.files import FileSystem
from store.memory import physical_memory

TOTAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "sys/fs/cgroup/memory"
V2 = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, TOTAL, id="no control groups"),
        pytest.param({"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "max\n"}, TOTAL, id="no limit"),
        pytest.param({"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "4096000\n"}, 4096000, id="container"),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/memory.max": "8192000\n", f"{V2}/a/b/memory.max": "max\n"},
            8192000,
            id="limit of a group above",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/x\n0::/\n",
                f"{V1}/memory.limit_in_bytes": "9223372036854771712\n",
                f"{V1}/x/memory.limit_in_bytes": "16384000\n",
            },
            16384000,
            id="generation 1",
        ),
        pytest.param(
            {"proc/self/cgroup": "4:memory:/docker/0123\n", f"{V1}/memory.limit_in_bytes": "5000000\n"},
            5000000,
            id="the host's path in a container",
        ),
        pytest.param({"proc/self/cgroup": "0::/../y\n", f"{V2}/y/memory.max": "70000\n"}, 70000, id="path upwards"),
        pytest.param({"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": str(1 << 55)}, TOTAL, id="more than there is"),
        pytest.param({"proc/self/cgroup": "nonsense\n", f"{V2}/memory.max": "zero"}, TOTAL, id="nonsense"),
    ],
)
def test_the_narrowest_limit_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert physical_memory(write(tmp_path, files)) == expected


def test_the_store_asks_for_it() -> None:
    assert FileSystem().physical_memory() == physical_memory() <= TOTAL
