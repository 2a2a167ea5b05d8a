"""What the tests of transfers share: pairs of collections, emulated or on this machine, and files in them."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from prefect_psik import GlobusCollection
from tests.testbed.globus import Globus


@dataclass(frozen=True)
class Place:
    """A collection, and where the tests see its files."""

    block: GlobusCollection
    root: Path

    def write(self, path: str, content: bytes = b"content", *, age: float = 60.0) -> Path:
        """Make a file, changed so many seconds ago: a prune takes one of the last seconds for unfinished."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        moment = file.stat().st_mtime - age
        os.utime(file, (moment, moment))
        return file

    def files(self, path: str = "") -> dict[str, bytes]:
        """All files below a path, with their content; also while some are being removed."""
        top = self.root / path
        while True:
            with suppress(FileNotFoundError):
                return {
                    str(file.relative_to(top)): file.read_bytes()
                    for file in sorted(top.rglob("*"))
                    if file.is_file()
                }


def emulated(globus: Globus, name: str, base: str) -> Place:
    """A directory of a collection of the emulator."""
    collection = globus.collection(name)
    root = Path(collection.root) / base
    root.mkdir(parents=True, exist_ok=True)
    return Place(GlobusCollection(collection_id=UUID(collection.id), base_path=f"/{base}"), root)


def local(root: Path) -> Place:
    """A directory of this machine."""
    root.mkdir(parents=True)
    return Place(GlobusCollection(base_path=str(root)), root)
