"""Frames that official programs sent, as commands; see tests/data/README.md."""

from pathlib import Path

from protocol.command import Command
from protocol.frame import FrameDecoder

WIRE = Path(__file__).parent.parent / "data" / "wire"


def frame(path: Path) -> Command:
    """The one frame in a file."""
    decoder = FrameDecoder()
    [command] = decoder.receive(path.read_bytes())
    assert decoder.error is None
    return command


def frames(pattern: str) -> list[Path]:
    """The files that match, such as `4.9.4-json/*.request.bin`; never none."""
    paths = sorted(WIRE.glob(pattern))
    assert paths, f"no golden bytes match {pattern}"
    return paths


def name_of(path: Path) -> str:
    """How a test case is called: folder and file."""
    return f"{path.parent.name}/{path.name.removesuffix('.bin')}"
