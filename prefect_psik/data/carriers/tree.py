"""What a copy on this machine finds: items refused before anything is written, and the entries of directories."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple

from prefect_psik.data.carriers.file import is_part, kind_of
from prefect_psik.data.marks import PREFIX as PRUNE_MARK
from prefect_psik.exceptions import SpecError
from prefect_psik.models.transfers import FileEntry, Order
from prefect_psik.plain_text import printable

#: Why entries of a directory are left out, apart from those that are not files at all.
LINK = "link"
LINK_OUT = "link that leads out of the base path"
UNFINISHED = "unfinished copy"


class Entry(NamedTuple):
    """An entry of a directory to copy, and where it goes."""

    source: Path
    target: Path
    is_directory: bool = False
    left_out: str | None = None


def resolved(path: str | Path, base: str) -> Path | None:
    """A path with all links resolved; None: it leads out of the base path."""
    found = Path(os.path.realpath(path))
    return found if found.is_relative_to(os.path.realpath(base)) else None


def walk(source: Path, target: Path, base: str) -> Iterator[Entry]:
    """Yield the entries of a directory, each with where it goes; only one directory at a time is in memory.

    Marks of prunes are not copied.

    Args:
        source: A directory.
        target: Where it goes.
        base: The base path of the source, to recognize links that lead out of it.
    """
    waiting = [(source, target)]
    while waiting:
        here, there = waiting.pop()
        yield Entry(here, there, is_directory=True)
        with os.scandir(here) as entries:
            found = sorted(
                (entry for entry in entries if not entry.name.startswith(PRUNE_MARK)), key=lambda entry: entry.name
            )
        directories = []
        for entry in found:
            origin, goal = here / entry.name, there / entry.name
            if entry.is_dir(follow_symlinks=False):
                directories.append((origin, goal))
            else:
                yield Entry(origin, goal, left_out=_why_left_out(entry, base))
        waiting += reversed(directories)


def _why_left_out(entry: os.DirEntry[str], base: str) -> str | None:
    if entry.is_symlink():
        return LINK if resolved(entry.path, base) else LINK_OUT
    if not entry.is_file(follow_symlinks=False):
        return kind_of(entry.stat(follow_symlinks=False).st_mode)
    return UNFINISHED if is_part(entry.name) else None


def refuse(order: Order) -> None:
    """Refuse an order that cannot be carried out as asked; reads the file system, and writes nothing.

    Raises:
        SpecError: An item leads out of its base path, is not a file or directory, would be copied into itself, or
            has the same destination as another.
    """
    if order.destination is None:
        # If an item is a link, the link is deleted, not its target.
        for directory in {str(Path(path).parent) for path, _ in order.items}:
            _inside(directory, order.source_base, "deleted")
        return
    sources: dict[Path, Path] = {}
    for source, destination in order.items:
        origin = _inside(source, order.source_base, "copied")
        target = _inside(destination, order.destination_base, "written")
        _refuse_source(origin, target)
        if target in sources:
            raise _meeting(sources[target], origin, target)
        sources[target] = origin
    for target, origin in sources.items():
        for above in target.parents:
            if above in sources:
                twin = sources[above] / target.relative_to(above)
                if os.path.lexists(twin) and not _is_same(twin, origin):
                    raise _meeting(twin, origin, target)


def _meeting(one: Path, other: Path, target: Path) -> SpecError:
    return SpecError(
        f"{printable(one)} and {printable(other)} would both go to {printable(target)}. "
        "Nothing was copied. Give each item a destination of its own."
    )


def _inside(path: str, base: str, done: str) -> Path:
    found = resolved(path, base)
    if found is None:
        end = printable(os.path.realpath(path))
        raise SpecError(
            f"{printable(path)} leads through a link to {end}, out of the base path {printable(base)}, so it was "
            f"not {done}. Nothing was changed. Choose a path below the base path, or use a collection whose base "
            "path contains it."
        )
    return found


def _refuse_source(source: Path, target: Path) -> None:
    try:
        mode = source.stat().st_mode
    except OSError:
        return  # the copy itself says what is wrong
    if stat.S_ISDIR(mode):
        if any(_is_same(source, above) for above in (target, *target.parents)):
            raise SpecError(
                f"{printable(source)} would be copied into itself, to {printable(target)}. Nothing was copied. "
                "Choose a destination outside of it."
            )
    elif kind := kind_of(mode):
        raise SpecError(
            f"{printable(source)} is a {kind}, and only files and directories are copied. Nothing was copied. "
            "Leave it out of the items."
        )


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same file or directory, also through different mounts."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def entries_in(directory: str, *, missing_ok: bool) -> list[tuple[str, FileEntry]]:
    """List a directory by name, each entry with its real path; entries that disappear meanwhile are left out."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    found.append((entry.path, _entry(entry.path, entry.stat(follow_symlinks=False))))
    except FileNotFoundError:
        if not missing_ok:
            raise
        return []
    return sorted(found, key=itemgetter(0))


_KINDS: dict[int, Literal["file", "directory", "link"]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
}


def listed_name(path: Path | str) -> str:
    """A path as listings show it: bytes that are not UTF-8 are shown as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def entry_of(path: str) -> FileEntry:
    """The entry at a path; links are not followed."""
    return _entry(path, Path(path).lstat())


def _entry(path: str, found: os.stat_result) -> FileEntry:
    listed = listed_name(path)
    return FileEntry(
        path=listed,
        kind=_KINDS.get(stat.S_IFMT(found.st_mode), "other"),
        size=found.st_size,
        modified=found.st_mtime,
        is_exact=listed == path,
    )
