"""Text from a facility on its way to Prefect, a terminal or Markdown, where no character of it may act.

Files, `outputs` and the logs of a result keep what was written; only what is shown goes through here.
"""

from __future__ import annotations

import re
from typing import Any

#: What acts instead of being seen: control characters but tab and newline (PostgreSQL stores no NUL, a terminal
#: obeys ESC and C1), marks that turn the direction of text, line separators, and halves of surrogate pairs.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: Punctuation that Markdown or HTML reads. A bracket makes a link only with what follows it, as in `[a](b)` and
#: not in `n[1-2]`; an underscore within a word is part of it.
_MARKUP = re.compile(r"[\\`*<>|~&]|\](?=[(\[:])|(?<!\w)_|_(?!\w)|^(?:[#=]|[+-](?=[\s+-]|$)|\d+(?=[.)](?:\s|$)))")


def plain(text: str) -> str:
    """Replace each acting character by a visible one: a NUL by ␀, ESC by ␛, all others by �."""
    if text.isprintable():  # most are, and there are many
        return text
    return _ACTING.sub(lambda found: _picture(found[0]), text.replace("\r\n", "\n"))


def _picture(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "�"


def printable(name: object) -> str:
    r"""Write a name or path on one line: what is not printable becomes an escape."""
    return "".join(char if char.isprintable() else _escape(char) for char in str(name))


def _escape(char: str) -> str:
    byte = ord(char) - 0xDC00  # Python reads such bytes of a file name as halves of surrogate pairs
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else char.encode("unicode_escape").decode("ascii")


def plain_values(found: Any) -> Any:
    """Apply `plain` to all texts in a document of JSON."""
    if isinstance(found, str):
        return plain(found)
    if isinstance(found, dict):
        return {plain_values(key): plain_values(value) for key, value in found.items()}
    return [plain_values(value) for value in found] if isinstance(found, list) else found


def markdown(text: object) -> str:
    """Write a text into a line of Markdown or a cell of its tables, where it is read as it is."""
    line = " ".join(plain(str(text)).split())
    return _MARKUP.sub(lambda found: _escaped(found[0]), line)


def _escaped(markup: str) -> str:
    entities = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    if markup.isdigit():
        return f"{markup[:-1]}&#{ord(markup[-1])};"
    return entities.get(markup, f"\\{markup}")


def code_block(text: str) -> str:
    """Write lines into Markdown as they are, in a fence that none of them can end."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}\n{plain(text)}\n{fence}"
