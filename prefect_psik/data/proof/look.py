"""What prunes see below a path: files, and the marks of prunes."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field

from prefect_psik.blocks import GlobusCollection
from prefect_psik.data.marks import PREFIX, Mark, is_marked
from prefect_psik.data.once import repeated
from prefect_psik.data.submit import carrier_of, list_below
from prefect_psik.exceptions import TransferError
from prefect_psik.models.causes import TransferCause
from prefect_psik.models.transfers import FileEntry


@dataclass(frozen=True)
class Look:
    """What is below a path of a collection, by paths below its base path."""

    files: dict[str, FileEntry] = field(default_factory=dict)
    """All but directories, without what prunes keep in their own."""
    marks: dict[str, Mark] = field(default_factory=dict)


async def look(collection: GlobusCollection, path: str) -> Look:
    """Look at a directory with all below it, or at a file and the marks beside it; both may be missing."""
    entries = await entries_of(collection, path, recursive=True)
    if {entry.path for entry in entries} == {path}:
        beside = await entries_of(collection, posixpath.dirname(path), recursive=False)
        entries += [entry for entry in beside if posixpath.basename(entry.path).startswith(PREFIX)]
    found = Look()
    for entry in entries:
        above, _, name = entry.path.rpartition("/")
        if is_marked(above):
            continue
        if mark := Mark.read(name, entry.modified):
            found.marks[entry.path] = mark
        elif entry.kind != "directory":
            found.files[entry.path] = entry
    return found


async def entries_of(collection: GlobusCollection, path: str, *, recursive: bool) -> list[FileEntry]:
    """What is below a path; nothing where it does not exist."""
    carrier, full = carrier_of(collection), collection.path(path)
    try:
        return await repeated(lambda: list_below(carrier, collection, full, recursive=recursive))
    except TransferError as err:
        if err.cause is not TransferCause.not_found:
            raise
        return []


async def exists(collection: GlobusCollection, path: str) -> bool:
    """Ask for one name, which a listing that is a few seconds old would not show."""
    return bool(await entries_of(collection, path, recursive=False))
