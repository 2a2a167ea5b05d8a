"""Makes text from a facility safe to show in Prefect, a terminal or Markdown: no character of it takes effect.

Files, `outputs` and the logs of a result keep what was written; only text that is shown passes through here.
"""

from __future__ import annotations

import re
from typing import Any

#: Characters that take effect instead of being shown: control characters except tab and newline (PostgreSQL stores
#: no NUL, a terminal obeys ESC and C1), marks that change the direction of text, line separators, and halves of
#: surrogate pairs.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: Punctuation with a meaning in Markdown or HTML. What follows a bracket decides whether it makes a link: it does
#: in `[a](b)`, not in `n[1-2]`. An underscore within a word is part of the word.
_MARKUP = re.compile(r"[\\`*<>|~&]|\](?=[(\[:])|(?<!\w)_|_(?!\w)|^(?:[#=]|[+-](?=[\s+-]|$)|\d+(?=[.)](?:\s|$)))")


def plain(text: str) -> str:
    """Replace each such character with a visible one: NUL with ␀, ESC with ␛ and so on, the others with �."""
    if text.isprintable():  # most are, and there are many
        return text
    return _ACTING.sub(lambda found: _picture(found[0]), text.replace("\r\n", "\n"))


def _picture(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "�"


def printable(name: object) -> str:
    r"""Write a name or path on one line: unprintable characters become escapes."""
    return "".join(char if char.isprintable() else _escape(char) for char in str(name))


def _escape(char: str) -> str:
    byte = ord(char) - 0xDC00  # Python reads such bytes of a file name as halves of surrogate pairs
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else char.encode("unicode_escape").decode("ascii")


def plain_values(found: Any) -> Any:
    """Apply `plain` to every string in a JSON document."""
    if isinstance(found, str):
        return plain(found)
    if isinstance(found, dict):
        return {plain_values(key): plain_values(value) for key, value in found.items()}
    return [plain_values(value) for value in found] if isinstance(found, list) else found


def markdown(text: object) -> str:
    """Escape text for a line of Markdown or a table cell, so that it is shown as it is."""
    line = " ".join(plain(str(text)).split())
    return _MARKUP.sub(lambda found: _escaped(found[0]), line)


def _escaped(markup: str) -> str:
    entities = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    if markup.isdigit():
        return f"{markup[:-1]}&#{ord(markup[-1])};"
    return entities.get(markup, f"\\{markup}")


def code_block(text: str) -> str:
    """Put lines into a Markdown code block as they are, with a fence that none of them can end."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}\n{plain(text)}\n{fence}"
