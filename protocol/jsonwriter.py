"""Writing JSON as fastjson does: the other side of `protocol.javajson`.

The text is fastjson's byte for byte, but for numbers with an exponent: members that are null left out, those of a bean
in alphabetical order, no spaces, numbers and objects as keys unquoted.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from protocol.errors import LocalProtocolError
from protocol.javajson import ObjectKey

OTHERS: Final = "*"
"""The wire name of the attribute that holds a bean's other members, which are written among those that it declares."""

_quote: Final = json.JSONEncoder(ensure_ascii=False).encode
_quote_ascii: Final = json.JSONEncoder(ensure_ascii=True).encode


def dumps(value: object, *, standard: bool = False, pretty: bool = False) -> bytes:
    """`value` as fastjson writes it: structs are beans, keys may be texts, ints, structs and ObjectKeys.

    `standard` quotes numeric keys, sorts the keys of maps and escapes what is not ASCII, which is how 4.9.4 answers
    clients that ask for standard JSON. `pretty` is RocketMQ's form of JSON files.
    Raises LocalProtocolError for an object as key in standard JSON, which has no room for it.
    """
    parts: list[str] = []
    _Writer(parts.append, standard, pretty).write(value, "\n" if pretty else "")
    return "".join(parts).encode()


@functools.cache
def _bean(cls: type[msgspec.Struct]) -> tuple[tuple[str, str, object], ...]:
    """The members of a bean in alphabetical order of their wire names: (wire name, attribute, value to leave out)."""
    defaults = cls.__struct_defaults__ if cls.__struct_config__.omit_defaults else ()
    required = len(cls.__struct_fields__) - len(defaults)
    left_out = (*(None for _ in range(required)), *defaults)
    return tuple(sorted(zip(cls.__struct_encode_fields__, cls.__struct_fields__, left_out, strict=True)))


class _Writer:
    """Writes one value. `line` is what starts a new line at the present indentation; empty if not `pretty`."""

    def __init__(self, put: Callable[[str], None], standard: bool, pretty: bool) -> None:
        self._put = put
        self._standard = standard
        self._quote = _quote_ascii if standard else _quote
        self._tab = "\t" if pretty else ""

    def write(self, value: object, line: str) -> None:
        if isinstance(value, str):
            self._put(self._quote(value))
        elif isinstance(value, int | float):
            self._put(self._number(value))
        elif isinstance(value, msgspec.Struct):
            self._write_bean(value, line)
        elif isinstance(value, Mapping):
            self._write_map(value, line)
        elif value is None:
            self._put("null")
        else:
            self._write_list(value, line)

    @staticmethod
    def _number(value: int | float) -> str:
        if type(value) is int:
            return str(value)
        if isinstance(value, bool):
            return "true" if value else "false"
        return repr(value) if isinstance(value, float) else str(int(value))

    def _write_bean(self, value: msgspec.Struct, line: str) -> None:
        members = _bean(type(value))
        if members and members[0][0] == OTHERS and (others := getattr(value, members[0][1])):  # it sorts before letters
            declared = {name: getattr(value, attribute) for name, attribute, _ in members[1:]}
            self._write_map(dict(sorted({**others, **declared}.items())), line)
            return
        inner = line and line + self._tab
        separator = "{"
        for name, attribute, left_out in members:
            member = getattr(value, attribute)
            if member is None or (left_out is not None and member == left_out):
                continue
            start = f'{separator}{inner}"{name}":'
            if type(member) is int:
                self._put(f"{start}{member}")
            else:
                self._put(start)
                self.write(member, inner)
            separator = ","
        self._put("{}" if separator == "{" else line + "}")

    def _write_map(self, value: Mapping[Any, Any], line: str) -> None:
        members = [(key, member) for key, member in value.items() if member is not None]
        if not members:
            self._put("{}")
            return
        types = {type(key) for key, _ in members}
        if self._standard and not types <= {int, str}:
            raise LocalProtocolError("standard JSON has no room for objects as keys")
        if types == {int} and not self._standard and all(type(member) is int for _, member in members):
            self._put("{" + ",".join([f"{key}:{member}" for key, member in sorted(members)]) + line + "}")
            return
        # Java's hash maps give small numbers in order; texts are sorted where 4.9.4 asks fastjson for it.
        if self._standard or isinstance(value, ObjectKey) or types == {int}:
            members.sort(key=lambda member: (type(member[0]) is str, member[0]))
        inner = line and line + self._tab
        separator = "{"
        for key, member in members:
            self._put(separator)
            self._write_key(key, inner)
            if type(member) is int:
                self._put(f":{member}")
            else:
                self._put(":")
                self.write(member, inner)
            separator = ","
        self._put(line + "}")

    def _write_key(self, key: object, inner: str) -> None:
        if isinstance(key, str):
            self._put(inner + self._quote(key))  # fastjson breaks lines before texts only
        elif self._standard:
            self._put(f'{inner}"{key}"')
        else:
            self.write(key, inner)

    def _write_list(self, value: Any, line: str) -> None:
        inner = line and line + self._tab
        separator = "["
        for item in value:
            self._put(separator + inner)
            self.write(item, inner)
            separator = ","
        self._put("[]" if separator == "[" else line + "]")
