"""Changes by wire in a file that people edit."""

from pathlib import Path

import javaproperties
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.propertiesfile import changed_text, save_properties

FILE = """\
# broker a
brokerName = broker-a
listenPort:10911
  flushDiskType   ASYNC_FLUSH

! namesrvAddr=nobody
namesrvAddr=h1:9876;\\
    h2:9876
listenPort=10912
"""


def test_the_last_line_of_a_key_is_replaced_and_the_rest_stays() -> None:
    """Whatever the line looked like: `=`, `:` or a blank, continued or not."""
    assert (
        changed_text(FILE, {"listenPort": "1", "namesrvAddr": "x:1", "flushDiskType": "SYNC_FLUSH"})
        == """\
# broker a
brokerName = broker-a
listenPort:10911
flushDiskType=SYNC_FLUSH

! namesrvAddr=nobody
namesrvAddr=x:1
listenPort=1
"""
    )


def test_a_new_key_is_added_at_the_end() -> None:
    """Also behind a last line that has no end."""
    assert changed_text("a=1", {"b": "2"}) == "a=1\nb=2\n"
    assert changed_text("", {"b": "2"}) == "b=2\n"


def test_a_comment_is_not_continued_by_its_backslash() -> None:
    """The line after it is a key."""
    assert changed_text("# x\\\na=1\n", {"a": "2"}) == "# x\\\na=2\n"


def test_saving_keeps_the_file_before(tmp_path: Path) -> None:
    """As for all state: a new file takes the place of the old one, which stays as .bak."""
    path = tmp_path / "conf" / "broker.properties"
    save_properties(path, {"a": "1"})
    save_properties(path, {"a": "2"})
    assert path.read_text() == "a=2\n"
    assert path.with_name("broker.properties.bak").read_text() == "a=1\n"


def test_bytes_that_are_not_utf8_stay(tmp_path: Path) -> None:
    """Java writes Latin-1; a person's comment in it must not be lost."""
    path = tmp_path / "x.properties"
    path.write_bytes(b"# Gr\xfc\xdfe\na=1\n")
    save_properties(path, {"a": "2"})
    assert path.read_bytes() == b"# Gr\xfc\xdfe\na=2\n"


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """The caller is told."""
    with pytest.raises(OSError, match="directory"):
        save_properties(tmp_path, {"a": "1"})


KEYS = st.text("ab.-_", min_size=1, max_size=3)
VALUES = st.text(st.characters(categories=["L", "N", "P", "S"], include_characters=" \t\n\r"), max_size=8)
LINES = st.sampled_from(
    ["# c\n", "!c\\\n", "\n", "  a = 1\n", "b:2\n", "ab 3\n", "a.b=4\\\n  5\n", "c\\=d=6\n", "ba\n"]
)


@given(st.lists(LINES), st.dictionaries(KEYS, VALUES, max_size=4))
def test_reading_gives_what_was_changed(lines: list[str], changes: dict[str, str]) -> None:
    """Any file, any change: the changed keys have the new values, all others the old ones."""
    text = "".join(lines)
    before, after = (javaproperties.loads(each) for each in (text, changed_text(text, changes)))
    assert after == before | changes
