"""What official brokers left in their store directories."""

from pathlib import Path

from protocol.message import HEAD, MAGIC_V1, StoredMessage, decode_record

VERSIONS = ("4.8.0", "4.9.4", "5.3.3")
_STORES = Path(__file__).parents[2] / "data" / "store"


def golden_records(version: str) -> list[StoredMessage]:
    """All messages of an official broker's commitlog, in their order."""
    found = []
    for file in sorted((_STORES / version / "commitlog").iterdir()):
        data, position = file.read_bytes(), 0
        while position < len(data) and HEAD.unpack_from(data, position)[1] == MAGIC_V1:
            found.append(decode_record(data, position))
            position += found[-1].total_size
    return found
