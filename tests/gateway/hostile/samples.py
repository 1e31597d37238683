"""A correct request for every code that a server handles, made from the declared headers, so that none is forgotten."""

from collections.abc import Iterator
from typing import NamedTuple

from msgspec import inspect

from protocol.codes import RequestCode
from protocol.header import REQUESTS, Header
from tests.gateway.hostile.rig import Server

SAMPLE_TOPIC = "sample"
SAMPLE_GROUP = "sample-group"
TOPIC_FIELDS = frozenset({"topic", "defaultTopic", "originTopic", "b", "c"})
GROUP_FIELDS = frozenset(
    {"group", "consumerGroup", "producerGroup", "groupName", "srcGroup", "destGroup", "compareGroup", "a"}
)
TEXTS: dict[str, str] = {
    "topicFilterType": "SINGLE_TAG",
    "msgId": "7F00000100002A9F0000000000000000",
    "isForce": "true",
    "brokerAddr": "127.0.0.1:9",
    "sysFlag": "4",
    "expressionType": "TAG",
    "subscription": "*",
}


class Field(NamedTuple):
    """One header field on the wire."""

    name: str
    kind: type
    required: bool


class Sample(NamedTuple):
    """One code with fields that pass."""

    code: int
    header: type[Header]
    declared: tuple[Field, ...]
    fields: dict[str, str]

    def __str__(self) -> str:
        return RequestCode(self.code).name


def _kind(type_: inspect.Type) -> type:
    if isinstance(type_, inspect.UnionType):
        (type_,) = (each for each in type_.types if not isinstance(each, inspect.NoneType))
    kinds: dict[type, type] = {inspect.IntType: int, inspect.StrType: str, inspect.BoolType: bool}
    return kinds[type(type_)]


def _value(field: Field) -> str:
    if field.name in TEXTS:
        return TEXTS[field.name]
    if field.name in TOPIC_FIELDS:
        return SAMPLE_TOPIC
    if field.name in GROUP_FIELDS:
        return SAMPLE_GROUP
    return {int: "0", bool: "false", str: "text"}[field.kind]


def sample(code: int) -> Sample:
    """The code with all its required fields."""
    header = REQUESTS[code]
    info = inspect.type_info(header)
    assert isinstance(info, inspect.StructType)
    declared = tuple(Field(each.encode_name, _kind(each.type), each.required) for each in info.fields)
    return Sample(code, header, declared, {each.name: _value(each) for each in declared if each.required})


def samples(server: Server) -> Iterator[Sample]:
    """One for each code that the server handles."""
    for routes in server.routes:
        for code in (*routes.handlers, *routes.batch_handlers):
            yield sample(code)
