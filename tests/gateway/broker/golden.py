"""What official brokers left in their store directories, and what they said."""

from pathlib import Path

from protocol.command import Command
from protocol.frame import FrameDecoder
from protocol.message import HEAD, MAGIC_V1, StoredMessage, decode_record

VERSIONS = ("4.8.0", "4.9.4", "5.3.3")
_DATA = Path(__file__).parents[2] / "data"


def golden_records(version: str) -> list[StoredMessage]:
    """All messages of an official broker's commitlog, in their order."""
    found = []
    for file in sorted((_DATA / "store" / version / "commitlog").iterdir()):
        data, position = file.read_bytes(), 0
        while position < len(data) and HEAD.unpack_from(data, position)[1] == MAGIC_V1:
            found.append(decode_record(data, position))
            position += found[-1].total_size
    return found


def golden_request(folder: str, name: str) -> Command:
    """A request as an official part sent it; `folder` is one of tests/data/wire."""
    (command,) = FrameDecoder().receive((_DATA / "wire" / folder / f"{name}.request.bin").read_bytes())
    return command
