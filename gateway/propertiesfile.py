"""Changes of single keys in a .properties file that a person also edits: everything else in it stays as it is.

UPDATE_NAMESRV_CONFIG and UPDATE_BROKER_CONFIG last over a restart this way. (The official servers write all their keys
over the file, comments and other people's keys included.)
"""

import re
from collections.abc import Mapping
from pathlib import Path

from store.jsonfile import save_json

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_KEY = re.compile(r"\s*((?:[^\s=:\\#!]|\\.)(?:[^\s=:\\]|\\.)*)\s*[=:\s]")


def save_properties(path: Path, changes: Mapping[str, str]) -> None:
    """Gives keys new values in the file, which need not exist; the file before stays as `.bak`. Raises OSError."""
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        text = ""
    save_json(path, changed_text(text, changes).encode("utf-8", "surrogateescape"))


def changed_text(text: str, changes: Mapping[str, str]) -> str:
    """The text of a .properties file with other values: the last line of a key is replaced, a new key is added."""
    lines = _logical_lines(text)
    places = {match[1]: index for index, line in enumerate(lines) if (match := _KEY.match(line + "\n"))}
    for key, value in changes.items():
        line = _line(key, value)
        if key in places:
            lines[places[key]] = line
        else:
            if lines and not lines[-1].endswith("\n"):
                lines[-1] += "\n"
            lines.append(line)
    return "".join(lines)


def _line(key: str, value: str) -> str:
    """`key=value` with as few backslashes as can be, because a person will read it: colons in addresses stay bare."""
    import javaproperties  # takes as long to import as all else that a start needs

    text = value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    blank = "\\" if text[:1].isspace() else ""
    return f"{javaproperties.escape(key, ensure_ascii=False)}={blank}{text}\n"


def _logical_lines(text: str) -> list[str]:
    """Lines with their continuation lines and their ends; a comment is never continued."""
    lines: list[str] = []
    continued = False
    for line in _LINE.findall(text):
        if continued:
            lines[-1] += line
        else:
            lines.append(line)
        is_comment = not continued and line.lstrip().startswith(("#", "!"))
        body = line.rstrip("\r\n")
        continued = not is_comment and (len(body) - len(body.rstrip("\\"))) % 2 == 1
    return lines
