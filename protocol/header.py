"""Typed headers: the bridge between Python attributes and the wire's extFields.

Every request and every reply with header fields is a `Header`. Its annotations are the only definition: attribute
`consumer_group` travels as `consumerGroup`; exceptions are spelled with `field(name=...)`. On the wire every value is
text (spec/remoting.md 1.2); `msgspec` turns it into numbers and booleans in one C pass, and checks Java's ranges.

`REQUESTS` maps each request code to its header class; `@request` fills it, so that no list has to be edited.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec

from protocol.codes import RequestCode
from protocol.errors import RemoteProtocolError

Int16 = Annotated[int, msgspec.Meta(ge=-(2**15), le=2**15 - 1)]
Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


WHOLE_FRAME_BYTES = 16 << 20
PROPERTIES_BYTES = 64 << 10  # three times a whole configuration; a text of escapes takes 0.1 s to read


class Header(msgspec.Struct, rename="camel", kw_only=True, gc=False):
    """Base of all typed headers; `code` and `reply` are set by `@request`.

    `max_body_bytes` is what the body of such a request may have; what needs more, or takes longer to read, says so.
    """

    code: ClassVar[RequestCode]
    reply: ClassVar[type["Header"] | None]
    max_body_bytes: ClassVar[int] = 1 << 20


H = TypeVar("H", bound=Header)

REQUESTS: dict[int, type[Header]] = {}


def request(*codes: RequestCode, reply: type[Header] | None = None) -> Callable[[type[H]], type[H]]:
    """Declares that the decorated `Header` is what requests with these codes carry, and what their answers carry."""

    def declare(cls: type[H]) -> type[H]:
        cls.code = codes[0]
        cls.reply = reply
        for code in codes:
            if code in REQUESTS:
                raise TypeError(f"{code!r} is declared by both {REQUESTS[code].__name__} and {cls.__name__}")
            REQUESTS[code] = cls
        return cls

    return declare


def decode_fields(cls: type[H], fields: Mapping[str, Any]) -> H:
    """The typed header of `cls` in `fields` (wire name → text).

    Raises RemoteProtocolError, whose remark names the field that is missing or wrong.
    """
    try:
        return msgspec.convert(fields, cls, strict=False)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"{cls.__name__}: {describe(error)}") from None


def describe(error: msgspec.ValidationError) -> str:
    """A validation error in the words of the wire: which header field, and what was expected."""
    what, _, where = str(error).partition(" - at `$")
    field = where.rstrip("`").removeprefix(".extFields").lstrip(".")
    return f"header field {field}: {what}" if field else what


def encode_fields(header: Header) -> dict[str, str]:
    """The wire's form of a typed header: wire name → text; absent where the attribute is None."""
    fields: dict[str, str] = {}
    for name, wire_name in zip(header.__struct_fields__, header.__struct_encode_fields__, strict=True):
        value = getattr(header, name)
        if value is None:
            continue
        if value is True:
            fields[wire_name] = "true"
        elif value is False:
            fields[wire_name] = "false"
        else:
            fields[wire_name] = str(value)
    return fields
