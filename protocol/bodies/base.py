"""What all JSON bodies have in common."""

import functools
from typing import Any, ClassVar, Self

import msgspec

from protocol import javajson, jsonwriter
from protocol.header import Int32

_readers: dict[type[Any], javajson.Reader[Any]] = {}


class _Codec:
    """How a bean is read and written; apart from the structs, which are frozen or not."""

    __slots__ = ()

    quoted_bytes_limit: ClassVar[int] = javajson.MAX_QUOTED_BYTES
    """Up to which size numeric keys need not be quoted; to be raised only where the writer is trusted."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The body in `data`; raises RemoteProtocolError naming the member that is missing or wrong."""
        reader = _readers.get(cls)
        if reader is None:
            reader = _readers[cls] = cls._reader()
        body: Self = reader.decode(data)
        return body

    @classmethod
    def _reader(cls) -> javajson.Reader[Self]:
        return javajson.Reader(cls, cls.__name__, cls.repair, cls.quoted_bytes_limit)

    @classmethod
    def repair(cls, value: Any) -> None:
        """Changes in place what some client writes in another way than Java; called if `value` did not fit."""

    def encode(self, standard: bool = False, *, pretty: bool = False) -> bytes:
        """The body as fastjson writes it; for `standard` and `pretty` see `jsonwriter.dumps`."""
        return jsonwriter.dumps(self, standard=standard, pretty=pretty)


class Body(_Codec, msgspec.Struct, rename="camel"):
    """A Java bean as JSON: unknown members are ignored, absent and null ones take the default, None is not written.

    Attribute `broker_name` is the member `brokerName`; exceptions are spelled with `field(name=...)`. Bodies are made
    with keyword arguments; the order of their attributes means nothing.
    """


class OpenBody(Body, kw_only=True):
    """A body that is kept for others: members that it does not declare are not ignored, but written as they were read.

    A newer program finds again what it wrote, and an older one gets what it has always got.
    """

    others: dict[str, Any] | None = msgspec.field(default=None, name=jsonwriter.OTHERS)
    """The members that are not declared, by wire name, with texts as keys at every level; never changed."""

    @classmethod
    def _reader(cls) -> javajson.Reader[Self]:
        return javajson.Reader(cls, cls.__name__, cls.repair, cls.quoted_bytes_limit, cls.gather)

    @classmethod
    def gather(cls, value: Any) -> None:
        """Moves undeclared members to where they are kept; whoever contains open bodies does it for them, too."""
        if not isinstance(value, dict):
            return
        undeclared = value.keys() - _declared(cls)
        if undeclared:
            others = javajson.standard({name: value.pop(name) for name in undeclared})
            if others:
                value[jsonwriter.OTHERS] = others


@functools.cache
def _declared(cls: type[OpenBody]) -> frozenset[str]:
    return frozenset(cls.__struct_encode_fields__) - {jsonwriter.OTHERS}


class Value(_Codec, msgspec.Struct, rename="camel", frozen=True):
    """A body that can stand as a key."""


class MessageQueue(Value, frozen=True):
    """One queue of one topic on one broker name; stands as a key in many tables."""

    broker_name: str
    queue_id: Int32
    topic: str
