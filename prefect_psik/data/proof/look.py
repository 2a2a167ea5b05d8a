"""What a prune finds below a path: files, and the marks of prunes."""

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
    """Everything except directories, and without what is inside the directories of prunes."""
    marks: dict[str, Mark] = field(default_factory=dict)


async def look(collection: GlobusCollection, path: str) -> Look:
    """List a directory with everything below it, or a file and the marks beside it; either may be missing."""
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
    """The entries below a path; none if it does not exist."""
    carrier, full = carrier_of(collection), collection.path(path)
    try:
        return await repeated(lambda: list_below(carrier, collection, full, recursive=recursive))
    except TransferError as err:
        if err.cause is not TransferCause.not_found:
            raise
        return []


async def exists(collection: GlobusCollection, path: str) -> bool:
    """Ask for this one path, since a listing from a few seconds ago would not show it."""
    return bool(await entries_of(collection, path, recursive=False))
