"""Configuration keys, each declared once: name, type, default, meaning and bounds in one line of a dataclass.

    @dataclass(kw_only=True)
    class BrokerOptions(Options):
        broker_permission: int = option(6, "Broker-wide permission bits.", ge=0, le=7)

From that line come the .properties key (`brokerPermission`), what `-p` and GET_BROKER_CONFIG print, which
values a file or UPDATE_BROKER_CONFIG may bring, and the sentence that says why another one was refused.

Invariants: a value that was read from text has passed its bounds; a change of several keys happens wholly or
not at all; a `fixed` key (a path, a port, an identity, a promise about disks) never changes after construction, so
that nobody can move files or listeners over the wire, and nothing is said to hold that was settled at the start. All
other keys are looked at whenever they matter. Values given in Python code are trusted.

An option class must not use `from __future__ import annotations`: the annotation itself is the parser's type.
"""

import dataclasses
import enum
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

T = TypeVar("T")

INT_MAX = 2**31 - 1
LONG_MAX = 2**63 - 1
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)


class OptionError(ValueError):
    """A value that its key does not take, or a key that may not change; `str()` is one line for people."""

    def __init__(self, key: str, value: str, allowed: str) -> None:
        super().__init__(f"{key}={_shorten(value)}: {allowed}")
        self.key = key
        self.value = value
        self.allowed = allowed


class Form(NamedTuple):
    """The shape of a text value: what a refusal says is allowed, and the test itself."""

    allowed: str
    accepts: Callable[[str], bool]


# A line break inside a value would read as another key in the `key=value` lines that tools get.
ONE_LINE = Form(
    "one line of text, at most 4096 characters", lambda text: len(text) <= 4096 and text.isprintable()
)


@dataclass(frozen=True, slots=True)
class Option:
    """One declared key. `kind` is the annotation: bool, int, str or an Enum whose values are the texts."""

    attribute: str
    key: str
    kind: type
    doc: str
    ge: int
    le: int
    form: Form
    important: bool
    fixed: bool

    def parse(self, text: str) -> Any:
        """Text of a file or of the wire to a value; blanks around it do not count. Raises OptionError."""
        text = text.strip()
        if issubclass(self.kind, enum.Enum):
            for member in self.kind:
                if member.value == text:
                    return member
        elif self.kind is bool:
            # Java takes every word but "true" as false: a typing error would switch something off in silence.
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        elif self.kind is int:
            if _INTEGER.fullmatch(text) and self.ge <= int(text) <= self.le:
                return int(text)
        elif self.form.accepts(text):
            return text
        raise OptionError(self.key, text, f"allowed is {self.allowed}")

    @property
    def allowed(self) -> str:
        """What this key takes, as a phrase."""
        if issubclass(self.kind, enum.Enum):
            return " or ".join(str(member.value) for member in self.kind)
        if self.kind is bool:
            return "true or false"
        if self.kind is int:
            return f"a whole number from {self.ge} to {self.le}"
        return self.form.allowed


def option(
    default: T,
    doc: str,
    *,
    factory: Callable[[], T] | None = None,
    key: str | None = None,
    ge: int = 0,
    le: int = INT_MAX,
    form: Form = ONE_LINE,
    important: bool = False,
    fixed: bool = False,
) -> T:
    """Declare a key as the default of a dataclass field.

    `factory` computes a default that depends on the machine, instead of `default`. `key` is the .properties
    key where camelCase of the attribute is not it. `ge` and `le` bound an int, `form` a text. `important`
    keys are those of `-m`; `fixed` keys are read once, at start.
    """
    metadata = {
        "option": {
            "key": key,
            "doc": doc,
            "ge": ge,
            "le": le,
            "form": form,
            "important": important,
            "fixed": fixed,
        }
    }
    # dataclass() finds the field object it wants here; a type checker sees the type of the value.
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class Options:
    """Base of option classes: knows which keys were given and where, and prints all of them."""

    explicit: set[str] = dataclasses.field(default_factory=set, init=False, repr=False, compare=False)
    """Official names of the keys that a file, a command line or the wire has set."""
    source: str = dataclasses.field(default="", init=False, repr=False, compare=False)
    """The .properties file that was read, or empty."""

    @classmethod
    def declared(cls) -> Mapping[str, Option]:
        """All keys of this class by their official name, in the order of declaration."""
        if cls not in _DECLARED:
            _DECLARED[cls] = _options_of(cls)
        return _DECLARED[cls]

    @classmethod
    def from_properties(cls, properties: Mapping[str, str], source: str = "") -> Self:
        """Build from the entries whose key belongs to this class and ignore the rest. Raises OptionError."""
        values = cls._parse(properties)
        options = cls(**{cls.declared()[key].attribute: value for key, value in values.items()})
        options.explicit.update(values)
        options.source = source
        return options

    @classmethod
    def _parse(cls, properties: Mapping[str, str]) -> dict[str, Any]:
        declared = cls.declared()
        return {key: declared[key].parse(text) for key, text in properties.items() if key in declared}

    def change(self, properties: Mapping[str, str]) -> list[str]:
        """Take over new values while running; return the keys whose value is now another one.

        Keys of other classes are ignored. Raises OptionError, with nothing changed, for a bad value or for a
        fixed key with another value than it has. (Its own is no change: a tool may send back all it read.)
        """
        changed: dict[str, Any] = {}
        for key, value in self._parse(properties).items():
            spec = self.declared()[key]
            if value == getattr(self, spec.attribute):
                continue
            if spec.fixed or not self.may_become(spec.attribute, value):
                raise OptionError(
                    key, properties[key], "cannot change while running; set it in the file and restart"
                )
            changed[key] = value
        for key, value in changed.items():
            setattr(self, self.declared()[key].attribute, value)
        self.explicit.update(changed)
        return list(changed)

    def may_become(self, attribute: str, value: Any) -> bool:
        """Whether an option that is not fixed may take this value while running, its present one being another."""
        return True

    def to_properties(self, *, important: bool = False) -> dict[str, str]:
        """All keys, or the important ones, with the text of their current value."""
        return {
            key: _text(getattr(self, spec.attribute))
            for key, spec in self.declared().items()
            if spec.important or not important
        }


_DECLARED: dict[type[Options], Mapping[str, Option]] = {}
_FACTS = ("doc", "ge", "le", "form", "important", "fixed")


def _options_of(cls: type[Options]) -> Mapping[str, Option]:
    declared: dict[str, Option] = {}
    for field in dataclasses.fields(cls):
        facts = field.metadata.get("option")
        if facts is None:
            continue
        if not isinstance(field.type, type) or not issubclass(field.type, (bool, int, str, enum.Enum)):
            raise TypeError(
                f"{cls.__name__}.{field.name}: an option is bool, int, str or an Enum, not {field.type!r}"
            )
        key = facts["key"] or camel_case(field.name)
        declared[key] = Option(field.name, key, field.type, *(facts[name] for name in _FACTS))
    return declared


def camel_case(attribute: str) -> str:
    """`flush_disk_type` to `flushDiskType`."""
    head, *rest = attribute.split("_")
    return head + "".join(map(str.capitalize, rest))


def properties_text(properties: Mapping[str, str] | Iterable[tuple[str, str]]) -> str:
    """The unescaped `key=value` lines of `-p` and of the answers to GET_BROKER_CONFIG, GET_NAMESRV_CONFIG."""
    items = properties.items() if isinstance(properties, Mapping) else properties
    return "".join(f"{key}={value}\n" for key, value in items)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value.value) if isinstance(value, enum.Enum) else str(value)


def _shorten(value: str, limit: int = 80) -> str:
    shown = value if value.isprintable() else ascii(value)
    return shown if len(shown) <= limit else f"{shown[:limit]}…"
