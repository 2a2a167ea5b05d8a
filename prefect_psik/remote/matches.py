"""Which paths a name or glob of `expect` or `outputs` matches; without recursion, and within limits."""

from __future__ import annotations

import fnmatch
import os
import re
import time
from typing import Iterator

#: The most directory entries that one call reads for one job, and for how long.
WALK_ENTRIES = 1_000_000
WALK_SECONDS = 20.0
#: A class of one character: of `*`, `?` and `[` it quotes them, any other is meant as it stands.
_QUOTED = re.compile(r"\[([*?[])\]")
_AS_IT_STANDS = re.compile(r"\[([^]*?[!])\]")


class TooMuch(Exception):
    """The search would exceed its limits."""


class _Walk:
    """The limits of one job's search, and which directories it could not read."""

    def __init__(self) -> None:
        self.entries = 0
        self.end = time.monotonic() + WALK_SECONDS
        self.unread: dict[str, str] = {}

    def listed(self, directory: str) -> list[os.DirEntry[str]]:
        """List a directory by name; one that cannot be read is noted, and counts as empty.

        Raises:
            TooMuch: The limits are reached.
        """
        found = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    self.pay()
                    found.append(entry)
        except OSError as err:
            self.unread.setdefault(directory, err.strerror or str(err))
        return sorted(found, key=lambda entry: entry.name)

    def pay(self) -> None:
        """Count one more file or directory that is looked at.

        Raises:
            TooMuch: The limits are reached.
        """
        self.entries += 1
        if self.entries > WALK_ENTRIES:
            raise TooMuch(f"there are more than {WALK_ENTRIES:,} files and directories")
        if self.entries % 64 == 0 and time.monotonic() > self.end:
            raise TooMuch(f"checking {self.entries:,} files and directories took more than {WALK_SECONDS:.0f} s")


def _expand(name: str) -> str:
    """A name with the facility's own `~` and `$VARS`."""
    return os.path.expanduser(os.path.expandvars(name))


def _matching(directory: str, name: str, walk: _Walk) -> Iterator[str]:
    """Yield the paths that a name matches: the path itself if it exists as written, else its matches as a glob.

    `*`, `?` and `[…]` match within one part of a path, but no dot at its beginning; `**` matches any number of
    directories, follows no links, and makes the others match leading dots, too. `[*]`, `[?]` and `[[]` quote. A
    name that ends in a slash matches only directories.
    """
    for written in (name, _expand(name)):
        path = os.path.join(directory, written)
        if os.path.lexists(path):
            yield path.rstrip("/") or "/"
            return
    parts = [part for part in _expand(name).split("/") if part not in ("", ".")]
    for path in _expanded("/" if os.path.isabs(_expand(name)) else directory, parts, walk):
        if not name.endswith("/") or os.path.isdir(path):
            yield path


def _expanded(top: str, parts: list[str], walk: _Walk) -> Iterator[str]:
    parts = [part for number, part in enumerate(parts) if part != "**" or parts[number - 1 : number] != ["**"]]
    dots, seen = "**" in parts, set()
    left = [(top, 0)]
    while left:
        path, number = left.pop()
        if (path, number) in seen:  # several ** reach the same path in several ways
            continue
        if parts.count("**") > 1:
            seen.add((path, number))
        if number == len(parts):
            yield path
            continue
        part = parts[number]
        if part == "**":
            below, last = [], number + 1 == len(parts)
            for entry in walk.listed(path):
                if entry.is_dir(follow_symlinks=False):
                    below.append((entry.path, number))
                elif last:
                    yield entry.path
            left += reversed(below)
            if not last:
                left.append((path, number + 1))
        elif _is_plain(part):
            plain = os.path.join(path, _QUOTED.sub(r"\1", part))
            if os.path.lexists(plain):
                left.append((plain, number + 1))
        else:
            fits = re.compile(fnmatch.translate(_AS_IT_STANDS.sub(r"[[]\1]", part))).match
            shown = [
                entry.path
                for entry in walk.listed(path)
                if fits(entry.name) and (dots or part.startswith(".") or not entry.name.startswith("."))
            ]
            left += [(found, number + 1) for found in reversed(shown)]


def _is_plain(part: str) -> bool:
    """Whether a part of a path has no wildcards."""
    return not re.search(r"[*?[]", _AS_IT_STANDS.sub("", _QUOTED.sub("", part)))


def _below(directory: str, walk: _Walk) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a directory, at any depth, except directories."""
    left = [directory]
    while left:
        found = walk.listed(left.pop())
        left += reversed([entry.path for entry in found if entry.is_dir(follow_symlinks=False)])
        yield from (entry for entry in found if not entry.is_dir(follow_symlinks=False))
