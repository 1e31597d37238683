"""The properties of a message on their way from a send request into the log."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from protocol.message import format_properties, parse_properties, tags_code

_UNIQUE_KEY: Final = "UNIQ_KEY\x01"
_KEYS: Final = "KEYS\x01"
_USUAL: Final = frozenset({"", "WAIT\x01", "TAGS\x01"})  # how pairs beside the unique key begin
_USUAL_LENGTH: Final = 5
_MAX_SHAPES: Final = 1024
_MAX_SHAPE_LENGTH: Final = 128


def properties_to_store(text: str, cluster: str) -> tuple[dict[str, str], bool]:
    """What is stored of the properties in a request, and whether the sender waits for flush and slave.

    The latter is not stored, and the name of the cluster is added.
    """
    properties = parse_properties(text)
    waits = properties.pop("WAIT", "true").lower() == "true"
    properties["CLUSTER"] = cluster
    return properties, waits


def index_keys(properties: Mapping[str, str]) -> tuple[str, ...]:
    """What the key index lists a message under: its unique key and each of its keys, which blanks separate."""
    unique = properties.get("UNIQ_KEY")
    keys = properties.get("KEYS")
    if keys is None:
        return (unique,) if unique else ()
    found = [key for key in keys.split(" ") if key]
    return tuple([unique, *found] if unique else found)


class _Shape(NamedTuple):
    """What is stored around the unique key, and what else the other properties mean."""

    head: str
    tail: str
    tags_code: int
    waits: bool


class UsualProperties:
    """Remembers how usual properties are stored, which saves taking them apart for each message.

    Usual are a unique key, WAIT and TAGS and nothing else: then the messages of a producer differ in the unique key
    alone, and all the rest of the text is known from the message before.
    """

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._shapes: dict[tuple[str, str], _Shape] = {}

    def stored(self, text: str) -> tuple[bytes, int, tuple[str], bool] | None:
        """HOT. The stored form, the tags code, the index keys and whether the sender waits; None: not usual."""
        if _KEYS in text:  # they differ from message to message
            return None
        before, _, behind = text.partition(_UNIQUE_KEY)
        key, _, behind = behind.partition("\x02")
        shape = self._shapes.get((before, behind)) or self._learn(before, behind)
        if shape is None or not key:
            return None
        head, tail, code, waits = shape
        return f"{head}{key}{tail}".encode(), code, (key,), waits

    def _learn(self, before: str, behind: str) -> _Shape | None:
        if len(before) + len(behind) > _MAX_SHAPE_LENGTH or (before and before[-1] != "\x02"):
            return None
        for pair in (before + behind).split("\x02"):
            if pair[:_USUAL_LENGTH] not in _USUAL:
                return None
        properties, waits = properties_to_store(f"{before}{_UNIQUE_KEY}?\x02{behind}", self._cluster)
        head, name, tail = format_properties(properties).partition(f"{_UNIQUE_KEY}?")
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        shape = _Shape(head + name[:-1], tail, tags_code(properties.get("TAGS")), waits)
        self._shapes[before, behind] = shape
        return shape
