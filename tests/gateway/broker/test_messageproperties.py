"""What is stored of a message's properties: the quick way gives what taking them apart gives."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.broker.messageproperties import UsualProperties, index_keys
from protocol.message import format_properties, java_hash, parse_properties, tags_code

NAMES = st.sampled_from(["UNIQ_KEY", "UNIQ_KEY", "WAIT", "TAGS", "KEYS", "DELAY", "CLUSTER", "XUNIQ_KEY", "a", ""])
VALUES = st.sampled_from(["K1", "K2", "true", "FALSE", "TagA", "?", "ключ", "x\x01y", "UNIQ_KEY\x01?", " a b", ""])
TEXTS = st.lists(st.tuples(NAMES, st.sampled_from(["\x01", "\x01", "\x01", ""]), VALUES), max_size=4).map(
    lambda parts: "\x02".join(["".join(part) for part in parts])
)


def taken_apart(text: str) -> tuple[bytes, int, tuple[str, ...], bool]:
    """The same by way of a dictionary."""
    properties = parse_properties(text)
    wait = properties.pop("WAIT", "true").lower() == "true"
    properties["CLUSTER"] = "c"
    stored = format_properties(properties).encode()
    return stored, tags_code(properties.get("TAGS")), index_keys(properties), wait


@given(st.lists(st.tuples(TEXTS, st.sampled_from(["", "", "\x02", "\x02\x02"])), max_size=6))
def test_usual_properties_are_stored_as_all_others(texts: list[tuple[str, str]]) -> None:
    """Whatever was learned from the texts before."""
    usual = UsualProperties("c")
    for text, end in texts:
        found = usual.stored(text + end)
        assert found is None or found == taken_apart(text + end)


def test_what_producers_send_is_usual() -> None:
    usual = UsualProperties("c")
    assert usual.stored("UNIQ_KEY\x01u1") == (b"UNIQ_KEY\x01u1\x02CLUSTER\x01c", 0, ("u1",), True)
    for key in ("u1", "u2"):
        found = usual.stored(f"UNIQ_KEY\x01{key}\x02WAIT\x01false\x02TAGS\x01a")
        stored = f"UNIQ_KEY\x01{key}\x02TAGS\x01a\x02CLUSTER\x01c".encode()
        assert found == (stored, java_hash("a"), (key,), False)
    assert usual.stored("WAIT\x01true\x02UNIQ_KEY\x01u") == (b"UNIQ_KEY\x01u\x02CLUSTER\x01c", 0, ("u",), True)


def test_what_has_consequences_is_not_usual() -> None:
    usual = UsualProperties("c")
    for more in ("DELAY\x011", "TRAN_MSG\x01true", "KEYS\x01k", "CLUSTER\x01x", "UNIQ_KEY\x01v", "own\x01v"):
        assert usual.stored(f"UNIQ_KEY\x01u\x02{more}") is None
        assert usual.stored(f"{more}\x02UNIQ_KEY\x01u") is None
    assert usual.stored("") is usual.stored("UNIQ_KEY\x01") is usual.stored("TAGS\x01a") is None


def test_many_shapes_are_forgotten() -> None:
    """A tag for each message must not take memory for ever; nor is a long text kept."""
    usual = UsualProperties("c")
    for number in range(3000):
        assert usual.stored(f"UNIQ_KEY\x01u\x02TAGS\x01{number}") is not None
    assert len(usual._shapes) <= 1024
    assert usual.stored("UNIQ_KEY\x01u\x02TAGS\x01" + "t" * 200) is None


def test_index_keys() -> None:
    assert index_keys({}) == ()
    assert index_keys({"UNIQ_KEY": "u"}) == ("u",)
    assert index_keys({"UNIQ_KEY": "u", "KEYS": " a  b "}) == ("u", "a", "b")
    assert index_keys({"KEYS": "a\tb"}) == ("a\tb",)
