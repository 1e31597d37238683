"""Reading JSON as fastjson writes it: standard JSON, and the ways in which RocketMQ's bodies and files leave it.

    unquoted numbers as keys    {"brokerAddrs":{0:"10.0.0.1:10911"}}
    objects as keys             {"offsetTable":{{"brokerName":"b","queueId":0,"topic":"T"}:5}}
    a map as a list of pairs    {"offsetTable":[[{"brokerName":"b",..},5]]}, the gson form; see `pairs_to_object`

`Reader` decodes bytes into a typed value. It tries the cheap way first: msgspec on the text as it is, then on the
text with its numeric keys quoted. Only what fails both is parsed in Python by `loads`, which knows all forms and
takes a null member as absent. As that parser is slow, the text it accepts is bounded; so is the nesting. Whatever
is wrong with a text becomes a `RemoteProtocolError` that names the place.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec

from protocol.errors import RemoteProtocolError

MAX_DEPTH: Final = 64  # the deepest body of RocketMQ has 7 levels
MAX_QUOTED_BYTES: Final = 512 << 10  # the worst text takes 0.15 s to have its keys quoted
MAX_TOLERANT_BYTES: Final = 512 << 10  # the worst text takes `loads` 0.3 s


class ObjectKey(Mapping[str, "Scalar"]):
    """An object that stands as a key: a mapping that cannot change and has a hash."""

    __slots__ = ("_hash", "_members")

    def __init__(self, members: Mapping[str, "Scalar"]) -> None:
        self._members = dict(members)
        self._hash = hash(frozenset(self._members.items()))

    def __getitem__(self, name: str) -> "Scalar":
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectKey) and self._members == other._members

    def __repr__(self) -> str:
        return f"ObjectKey({self._members!r})"


Scalar: TypeAlias = bool | int | float | str | None
Key: TypeAlias = str | int | ObjectKey
Value: TypeAlias = "Scalar | list[Value] | dict[Key, Value]"

T = TypeVar("T")


class Reader(Generic[T]):
    """Decodes texts into values of one msgspec type.

    `repair` changes the parsed value in place before the last attempt, for writers whose members have other types
    than Java's; `gather` does so before each attempt. Both must accept any value, and may raise RemoteProtocolError.
    Numbers and booleans may always be written as text.
    """

    def __init__(
        self,
        type_: type[T],
        name: str,
        repair: Callable[[Any], None] | None = None,
        quoted_bytes_limit: int = MAX_QUOTED_BYTES,
        gather: Callable[[Any], None] | None = None,
    ) -> None:
        self._type = type_
        self._name = name
        self._repair = repair
        self._quoted_bytes_limit = quoted_bytes_limit
        self._gather = gather
        decode: Callable[[bytes], T] = msgspec.json.Decoder(type_, strict=False).decode
        self._decode_quickly = decode if gather is None else self._decode_and_gather

    def decode(self, data: bytes) -> T:
        """The value in `data`; raises RemoteProtocolError naming what is wrong and where."""
        try:
            try:
                return self._decode_quickly(data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                pass
            if len(data) <= self._quoted_bytes_limit:
                try:
                    return self._decode_quickly(_NUMERIC_KEY.sub(_quote_key, data))
                except (msgspec.DecodeError, UnicodeDecodeError):
                    pass
            return self._decode_tolerantly(data)
        except RecursionError:
            raise RemoteProtocolError(f"{self._name}: nested too deeply") from None
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{self._name}: {error.remark}") from None
        except msgspec.ValidationError as error:
            raise RemoteProtocolError(f"{self._name}: {error}") from None

    def _decode_and_gather(self, data: bytes) -> T:
        return self._convert(_decode_any(data))

    def _decode_tolerantly(self, data: bytes) -> T:
        value = loads(data)
        if self._repair is not None:
            self._repair(value)
        return self._convert(value)

    def _convert(self, value: Any) -> T:
        if self._gather is not None:
            self._gather(value)
        return msgspec.convert(value, self._type, strict=False)


_decode_any: Final[Callable[[bytes], Any]] = msgspec.json.Decoder().decode

# A text is skipped as a whole, so that what looks like a key inside it stays as it is.
# The closing quote is optional: a text that does not end must not be searched again from each quote inside it.
_NUMERIC_KEY: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|([{,]\s*+)(-?[0-9]++)(?=\s*:)', re.DOTALL)


def _quote_key(match: re.Match[bytes]) -> bytes:
    before, number = match.groups()
    return match.group() if number is None else b'%b"%b"' % (before, number)


def pairs_to_object(value: object) -> object:
    """The gson form of a map whose keys are objects, in the form that `loads` gives to fastjson's; else `value`."""
    if not isinstance(value, list):
        return value
    members: dict[ObjectKey, object] = {}
    for pair in value:
        match pair:
            case [dict(key), item] if _all_scalar(key):
                members[ObjectKey(key)] = item
            case _:
                return value
    return members


def standard(value: object, depth: int = 0) -> Any:
    """A copy of what was read that any reader of JSON understands: with texts as keys, without null members.

    Raises RemoteProtocolError for objects as keys, and for what is nested too deeply to be written again.
    """
    if not isinstance(value, list | dict):
        return value
    if depth >= MAX_DEPTH:
        raise RemoteProtocolError(f"more than {MAX_DEPTH} levels")
    if isinstance(value, list):
        return [standard(item, depth + 1) for item in value]
    if any(isinstance(key, ObjectKey) for key in value):
        raise RemoteProtocolError("an object as key in a member that is not known")
    return {
        str(key): standard(member, depth + 1) if isinstance(member, list | dict) else member
        for key, member in value.items()
        if member is not None
    }


def loads(data: bytes) -> Value:
    """The value in `data`: an int for an unquoted numeric key, an ObjectKey for an object as key.

    Members that are null are left out, as fastjson leaves the field of a bean as it was. Raises RemoteProtocolError.
    """
    if len(data) > MAX_TOLERANT_BYTES:
        raise RemoteProtocolError(f"{len(data)} bytes of JSON that is not standard; {MAX_TOLERANT_BYTES} are read")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"not UTF-8 at byte {error.start}") from None
    return _Parser(text).document()


_TOKEN: Final = re.compile(
    r'[ \t\r\n]*+(?:([{}\[\]:,])|("[^"\\]*+(?:\\.[^"\\]*+)*+")|(-?[0-9][0-9.eE+-]*+)|(true|false|null)|\Z)', re.DOTALL
)
_WORDS: Final[dict[str, Scalar]] = {"true": True, "false": False, "null": None}
_decode_scalar: Final[Callable[[str], str | int | float]] = msgspec.json.Decoder(str | int | float).decode


class _Parser:
    """One pass over a text; `_kind` is the last token's punctuation character, `s` for a scalar, empty at the end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._start = 0
        self._kind = ""
        self._scalar: Scalar = None

    def document(self) -> Value:
        self._advance()
        value = self._value(0)
        if self._kind:
            raise self._error("the end")
        return value

    def _error(self, expected: str) -> RemoteProtocolError:
        found = self._text[self._start : self._start + 20]
        return RemoteProtocolError(f"expected {expected} at character {self._start}, found {found!r}")

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._position)
        if match is None:
            self._start = self._position
            raise self._error("a JSON value")
        self._position = match.end()
        group = match.lastindex
        if group is None:
            self._start, self._kind = self._position, ""
            return
        self._start = match.start(group)
        token = match.group(group)
        if group == 1:
            self._kind = token
            return
        self._kind = "s"
        self._scalar = _WORDS[token] if group == 4 else self._decoded(token)

    def _decoded(self, token: str) -> Scalar:
        try:
            return _decode_scalar(token)
        except (msgspec.DecodeError, UnicodeError):
            raise self._error("a text or a number") from None

    def _value(self, depth: int) -> Value:
        if self._kind == "s":
            scalar = self._scalar
            self._advance()
            return scalar
        if self._kind == "{":
            return self._object(depth)
        if self._kind == "[":
            return self._list(depth)
        raise self._error("a JSON value")

    def _enter(self, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise RemoteProtocolError(f"more than {MAX_DEPTH} levels at character {self._start}")
        self._advance()

    def _object(self, depth: int) -> dict[Key, Value]:
        members: dict[Key, Value] = {}
        self._enter(depth)
        if self._kind != "}":
            self._member(members, depth)
            while self._kind == ",":
                self._advance()
                self._member(members, depth)
        if self._kind != "}":
            raise self._error("',' or '}'")
        self._advance()
        return members

    def _member(self, members: dict[Key, Value], depth: int) -> None:
        key = self._key(depth)
        if self._kind != ":":
            raise self._error("':'")
        self._advance()
        value = self._value(depth + 1)
        if value is None:
            members.pop(key, None)
        else:
            members[key] = value

    def _key(self, depth: int) -> Key:
        if self._kind == "{":
            start = self._start
            members = self._object(depth + 1)
            scalars = {str(name): value for name, value in members.items() if not isinstance(value, list | dict)}
            if len(scalars) == len(members):
                return ObjectKey(scalars)
            self._start = start
            raise self._error("a key without inner objects")
        key = self._scalar
        if self._kind == "s" and (isinstance(key, str) or type(key) is int):
            self._advance()
            return key
        raise self._error("a key")

    def _list(self, depth: int) -> list[Value]:
        items: list[Value] = []
        self._enter(depth)
        if self._kind != "]":
            items.append(self._value(depth + 1))
            while self._kind == ",":
                self._advance()
                items.append(self._value(depth + 1))
        if self._kind != "]":
            raise self._error("',' or ']'")
        self._advance()
        return items


def _all_scalar(members: Mapping[Any, Any]) -> bool:
    return not any(isinstance(value, list | dict) for value in members.values())
