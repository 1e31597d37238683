"""One remoting command and its two header forms, JSON and ROCKETMQ (spec/remoting.md 1.2, 1.3).

`ROCKETMQ_HEADER` declares the binary header; `_decode_rocketmq` and `_encode_rocketmq` are its `struct` twins for
live traffic (a construct parse takes about 100 µs, the twin 4). JSON headers are read by msgspec.

A `Command` keeps its extFields as the wire's text; the routing layer asks for the typed header of the request with
`typed_header`. The most frequent request, SEND_MESSAGE_V2 under a JSON header, is recognised by its first bytes and
decoded straight into its typed header; its extFields are then only read if somebody asks for them.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from construct import Bytes, GreedyRange, Int8ub, Int16sb, Int32sb, Prefixed, this
from construct import Struct as Layout

from protocol.codes import (
    FLAG_ONEWAY,
    FLAG_RESPONSE,
    VERSION,
    LanguageCode,
    RequestCode,
    ResponseCode,
    SerializeType,
)
from protocol.errors import FrameError, LocalProtocolError
from protocol.header import H, Header, Int32, decode_fields, encode_fields
from protocol.requests.send import SendMessageV2

OWN_LANGUAGE = LanguageCode.PYTHON
MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Longest frame, its length field included (official: com.rocketmq.remoting.frameMaxLength)."""
MAX_HEADER_BYTES = 0xFFFFFF
MAX_REMARK = 4096

ROCKETMQ_EXT_ENTRY = Layout(
    "key_length" / Int16sb,
    "key" / Bytes(this.key_length),
    "value_length" / Int32sb,
    "value" / Bytes(this.value_length),
)
ROCKETMQ_HEADER = Layout(
    "code" / Int16sb,  # offset 0
    "language" / Int8ub,  # 2
    "version" / Int16sb,  # 3
    "opaque" / Int32sb,  # 5
    "flag" / Int32sb,  # 9
    "remark_length" / Int32sb,  # 13
    "remark" / Bytes(this.remark_length),  # 17
    "ext" / Prefixed(Int32sb, GreedyRange(ROCKETMQ_EXT_ENTRY)),  # 17 + remark_length
)

_FIXED = struct.Struct(">hBhiii")
_EXT_LENGTH = struct.Struct(">i")
_KEY_LENGTH = struct.Struct(">h")


class Command:
    """A request or an answer; `fields` is extFields as text, `header` its typed form once somebody decoded it."""

    __slots__ = (
        "_fields",
        "_raw_header",
        "body",
        "code",
        "flag",
        "header",
        "language",
        "opaque",
        "remark",
        "serialize_type",
        "version",
    )

    def __init__(
        self,
        code: int,
        opaque: int = 0,
        flag: int = 0,
        fields: dict[str, str] | None = None,
        header: Header | None = None,
        body: bytes = b"",
        remark: str | None = None,
        version: int = VERSION,
        language: int = OWN_LANGUAGE,
        serialize_type: SerializeType = SerializeType.JSON,
        raw_header: bytes = b"",
    ) -> None:
        self.code = code
        self.opaque = opaque
        self.flag = flag
        self.header = header
        self.body = body
        self.remark = remark
        self.version = version
        self.language = language
        self.serialize_type = serialize_type
        self._fields = fields
        self._raw_header = raw_header

    @property
    def is_response(self) -> bool:
        return bool(self.flag & FLAG_RESPONSE)

    @property
    def is_oneway(self) -> bool:
        return bool(self.flag & FLAG_ONEWAY)

    @property
    def fields(self) -> dict[str, str]:
        """extFields: wire name → text; encoded from the typed header if only that is known."""
        if self._fields is None:
            if self._raw_header:
                self._fields = _text_fields(_generic_header.decode(self._raw_header).ext_fields)
            else:
                self._fields = encode_fields(self.header) if self.header is not None else {}
        return self._fields

    def typed_header(self, cls: type[H]) -> H:
        """The request's typed header; raises RemoteProtocolError naming the field that is missing or wrong."""
        header = self.header
        if header is None or type(header) is not cls:
            header = self.header = decode_fields(cls, self.fields)
        return header

    def __repr__(self) -> str:
        kind = "response" if self.is_response else "one-way request" if self.is_oneway else "request"
        return f"<{kind} code={self.code} opaque={self.opaque} body={len(self.body)} bytes>"


def response(
    request: Command,
    code: int = ResponseCode.SUCCESS,
    *,
    header: Header | None = None,
    body: bytes = b"",
    remark: str | None = None,
) -> Command:
    """The answer to `request`, in the serialization that it came in.

    A remark may repeat what the request said, however long that was, so it is cut to MAX_REMARK characters.
    """
    return Command(
        code,
        request.opaque,
        flag=FLAG_RESPONSE,
        header=header,
        body=body,
        remark=remark if remark is None else remark[:MAX_REMARK],
        serialize_type=request.serialize_type,
    )


def encode(command: Command) -> bytes:
    """The whole frame of `command`; raises LocalProtocolError where the wire has no room for it."""
    header = _encode_rocketmq(command) if command.serialize_type is SerializeType.ROCKETMQ else _encode_json(command)
    size = len(header)
    if size > MAX_HEADER_BYTES:
        raise LocalProtocolError(f"header of {size} bytes; a frame has room for {MAX_HEADER_BYTES}")
    if 8 + size + len(command.body) > MAX_FRAME_BYTES:
        raise LocalProtocolError(f"frame of {8 + size + len(command.body)} bytes; the limit is {MAX_FRAME_BYTES}")
    prefix = struct.pack(">ii", 4 + size + len(command.body), command.serialize_type << 24 | size)
    return prefix + header + command.body


def decode(serialize_type: int, header: bytes, body: bytes) -> Command:
    """The command in one frame; raises FrameError if its header cannot be read."""
    decoder = HEADER_DECODERS.get(serialize_type)
    if decoder is None:
        raise FrameError(f"unknown header serialization {serialize_type}; 0 is JSON, 1 is ROCKETMQ")
    return decoder(header, body)


# ---- JSON


class _JsonHeader(msgspec.Struct, rename="camel", gc=False):
    code: Int32
    opaque: Int32 = 0
    flag: Int32 = 0
    version: Int32 = 0
    language: str | int | None = None
    remark: str | None = None
    ext_fields: dict[str, Any] | None = None


class _JsonSendHeader(msgspec.Struct, rename="camel", gc=False):
    ext_fields: SendMessageV2
    code: Int32
    opaque: Int32 = 0
    flag: Int32 = 0
    version: Int32 = 0
    language: str | int | None = None


_generic_header = msgspec.json.Decoder(_JsonHeader, strict=False)
_send_header = msgspec.json.Decoder(_JsonSendHeader, strict=False)
_SEND_PREFIX = f'{{"code":{RequestCode.SEND_MESSAGE_V2.value},'.encode()
_LANGUAGES: dict[str | int | None, int] = {language.name: language.value for language in LanguageCode}
_LANGUAGES |= {language.value: language.value for language in LanguageCode}
_OTHER = LanguageCode.OTHER.value
_JSON = SerializeType.JSON
_json_encoder = msgspec.json.Encoder()


def _decode_json(data: bytes, body: bytes) -> Command:
    if data.startswith(_SEND_PREFIX):
        try:
            send = _send_header.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # the general path finds the words for what is wrong
        else:
            language = _LANGUAGES.get(send.language, _OTHER)
            return Command(
                send.code,
                send.opaque,
                send.flag,
                None,
                send.ext_fields,
                body,
                None,
                send.version,
                language,
                _JSON,
                data,
            )
    try:
        header = _generic_header.decode(data)
        fields = _text_fields(header.ext_fields)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"JSON header: {error}") from None
    return Command(
        header.code,
        header.opaque,
        flag=header.flag,
        fields=fields,
        body=body,
        remark=header.remark,
        version=header.version,
        language=_LANGUAGES.get(header.language, _OTHER),
    )


def _text_fields(ext_fields: dict[str, Any] | None) -> dict[str, str]:
    """extFields as text. The C++ client sends JSON numbers where Java sends text; null means absent."""
    if not ext_fields:
        return {}
    for name in [name for name, value in ext_fields.items() if type(value) is not str]:
        value = ext_fields[name]
        if value is None:
            del ext_fields[name]
        elif isinstance(value, bool):
            ext_fields[name] = "true" if value else "false"
        elif isinstance(value, int | float):
            ext_fields[name] = str(value)
        else:
            raise FrameError(f"JSON header: extFields.{name} is not a single value")
    return ext_fields


def _encode_json(command: Command) -> bytes:
    header: dict[str, Any] = {"code": command.code}
    fields = command.fields
    if fields:
        header["extFields"] = fields
    header["flag"] = command.flag
    header["language"] = _LANGUAGE_NAMES.get(command.language, "OTHER")
    header["opaque"] = command.opaque
    if command.remark is not None:
        header["remark"] = command.remark
    header["serializeTypeCurrentRPC"] = "JSON"
    header["version"] = command.version
    return _json_encoder.encode(header)


_LANGUAGE_NAMES = {language.value: language.name for language in LanguageCode}


# ---- ROCKETMQ


def _decode_rocketmq(data: bytes, body: bytes) -> Command:
    try:
        code, language, version, opaque, flag, remark_length = _FIXED.unpack_from(data)
        position = _FIXED.size + remark_length
        if remark_length < 0 or position > len(data):
            raise FrameError(f"ROCKETMQ header: remark of {remark_length} bytes in a header of {len(data)}")
        remark = data[_FIXED.size : position].decode() if remark_length else None
        (ext_length,) = _EXT_LENGTH.unpack_from(data, position)
        position += 4
        if ext_length < 0 or position + ext_length > len(data):
            raise FrameError(f"ROCKETMQ header: extFields of {ext_length} bytes in a header of {len(data)}")
        fields = _decode_ext(data, position, position + ext_length)
    except (struct.error, UnicodeDecodeError) as error:
        raise FrameError(f"ROCKETMQ header: {error}") from None
    return Command(
        code,
        opaque,
        flag=flag,
        fields=fields,
        body=body,
        remark=remark,
        version=version,
        language=language,
        serialize_type=SerializeType.ROCKETMQ,
    )


class _ExtShape(NamedTuple):
    """The lengths of all names and values in one block of extFields, so that one unpack reads the whole block.

    A client sends the same header again and again; only the digits in it change. `framing` are the bytes between the
    values (lengths and names), which must be equal for the shape to fit. Only shapes as small as those of real
    requests are kept, so that all of them together take a few MB at most.
    """

    unpack: Callable[[bytes, int], tuple[bytes, ...]]
    framing: tuple[bytes, ...]
    names: tuple[str, ...]


MAX_SHAPES = 512
MAX_SHAPE_FIELDS = 64
MAX_SHAPE_BYTES = 2048  # of names and lengths
_shapes: dict[int, _ExtShape] = {}  # by the block's length; a cache, so what it holds never changes a result


def _decode_ext(data: bytes, position: int, end: int) -> dict[str, str]:
    shape = _shapes.get(end - position)
    if shape is not None:
        parts = shape.unpack(data, position)
        if parts[::2] == shape.framing:
            return dict(zip(shape.names, [value.decode() for value in parts[1::2]], strict=True))
    return _walk_ext(data, position, end)


def _walk_ext(data: bytes, position: int, end: int) -> dict[str, str]:
    """Reads the block entry by entry, and remembers its shape."""
    key_length_at = _KEY_LENGTH.unpack_from
    value_length_at = _EXT_LENGTH.unpack_from
    fields: dict[str, str] = {}
    layout, framing = [], []
    start = position
    while position < end:
        entry = position
        (length,) = key_length_at(data, position)
        position += 2
        key = data[position : position + length]
        position += length
        if length < 0 or position > end:
            raise FrameError(f"ROCKETMQ header: field name of {length} bytes reaches beyond the header")
        (length,) = value_length_at(data, position)
        position += 4
        framing.append(data[entry:position])
        layout.append(f"{position - entry}s{length}s")
        value = data[position : position + length]
        position += length
        if length < 0 or position > end:
            raise FrameError(f"ROCKETMQ header: field {key!r} of {length} bytes reaches beyond the header")
        if key and value:  # official reads an empty name or value as null
            fields[key.decode()] = value.decode()
    if 0 < len(fields) == len(layout) <= MAX_SHAPE_FIELDS and sum(map(len, framing)) <= MAX_SHAPE_BYTES:
        if len(_shapes) >= MAX_SHAPES:
            _shapes.clear()
        _shapes[end - start] = _ExtShape(struct.Struct("".join(layout)).unpack_from, tuple(framing), tuple(fields))
    return fields


def _encode_rocketmq(command: Command) -> bytes:
    ext = b"".join(_ext_entry(name, value) for name, value in command.fields.items())
    remark = (command.remark or "").encode()
    try:
        fixed = _FIXED.pack(command.code, command.language, command.version, command.opaque, command.flag, len(remark))
    except struct.error as error:
        raise LocalProtocolError(f"{command!r} does not fit a ROCKETMQ header: {error}") from None
    return b"".join((fixed, remark, _EXT_LENGTH.pack(len(ext)), ext))


def _ext_entry(name: str, value: str) -> bytes:
    key, text = name.encode(), value.encode()
    return b"".join((_KEY_LENGTH.pack(len(key)), key, _EXT_LENGTH.pack(len(text)), text))


HEADER_DECODERS: Mapping[int, Callable[[bytes, bytes], Command]] = {
    SerializeType.JSON.value: _decode_json,
    SerializeType.ROCKETMQ.value: _decode_rocketmq,
}
"""What reads a header, by the number in front of it."""
