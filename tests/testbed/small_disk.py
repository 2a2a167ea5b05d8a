"""A small file system of its own, to be filled: a full disk for the facility and not for the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.testbed.state import TestbedError

_FILL_BYTES = 1024 * 1024


@contextmanager
def small_disk(place: Path, user: str, *, megabytes: int = 16) -> Iterator[Path]:
    """Mount one for a user at a new directory, and remove both at the end, also while somebody is in it.

    Raises:
        TestbedError: this machine does not let us mount.
    """
    place.mkdir()
    options = f"size={megabytes}m,mode=0755,uid={user},gid={user}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "psik-small-disk", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    try:
        if done.returncode:
            raise TestbedError(f"No small disk can be mounted at {place}: {done.stderr.strip()}")
        yield place
    finally:
        if place.is_mount():
            subprocess.run(["umount", "--lazy", str(place)], check=True)
        shutil.rmtree(place)


@contextmanager
def filled(place: Path) -> Iterator[None]:
    """Leave no room on the file system of a directory while the block runs."""
    filler = place / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while os.fstatvfs(file.fileno()).f_bavail:
                try:
                    file.write(bytes(_FILL_BYTES))
                except OSError:
                    continue  # others take of it, too: look how much is left
        yield
    finally:
        filler.unlink(missing_ok=True)
