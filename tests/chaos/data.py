"""Moves and prunes of data while others do the same, each in a process of its own that a fault may kill.

`python -m tests.chaos.data prune SOURCE CHECK` and `… move SOURCE DESTINATION`, directories of this machine.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from prefect_psik import GlobusCollection, PrefectPsikError, prune, run_transfer

#: Below each directory: what is moved and pruned.
TREE = "scans"
FILES = 40
#: Between two looks at processes that work on data.
STEP_SECONDS = 0.2
#: They are killed if they have not ended by then.
PATIENCE_SECONDS = 60.0


def main(what: str, one: str, other: str) -> None:
    """Prune, or move, once; what is refused or not proven is no fault here."""
    here, there = GlobusCollection(base_path=one), GlobusCollection(base_path=other)
    try:
        if what == "prune":
            prune(here, TREE, check=there)
        else:
            run_transfer(here, there, [(TREE, TREE)], sync="checksum")
    except PrefectPsikError as err:
        print(f"{type(err).__name__}: {str(err)[:300]}", flush=True)


class Ring:
    """Directories with the same files, each pruned with the next one as its check, all at once.

    Args:
        top: A new directory for all of it.
        number: Of directories: two are crosswise.
    """

    def __init__(self, top: Path, number: int) -> None:
        self.places = [top / f"place-{n}" for n in range(number)]
        self.versions = {f"{n}.h5": {_content(f"{n} as it was")} for n in range(FILES)}
        for place in self.places:
            (place / TREE).mkdir(parents=True)
            for name in self.versions:
                (place / TREE / name).write_text(f"{name.removesuffix('.h5')} as it was")

    def start(self, what: Sequence[str], environment: Mapping[str, str]) -> list[subprocess.Popen[bytes]]:
        """Start a process for each of these at each place, with the next one."""
        pairs = zip(self.places, [*self.places[1:], self.places[0]], strict=True)
        commands = [[sys.executable, "-m", __name__, one, *map(str, pair)] for pair in pairs for one in what]
        return [
            subprocess.Popen(command, env=dict(environment), stdout=subprocess.DEVNULL) for command in commands
        ]

    def write(self, dice: Random, number: int) -> None:
        """Give a file of one place new contents, as a program does that writes under another name and renames."""
        place, name = dice.choice(self.places), f"{dice.randrange(FILES)}.h5"
        if not (place / TREE / name).exists():
            return  # it was pruned, and is elsewhere
        text = f"{name} in version {number}"
        new = place / f"new-{number}"
        new.write_text(text)
        self.versions[name].add(_content(text))
        os.replace(new, place / TREE / name)

    def losses(self) -> Iterator[str]:
        """Say which files are nowhere, and which have bytes that nobody wrote."""
        for name, versions in self.versions.items():
            found = [path for place in self.places if (path := place / TREE / name).exists()]
            if not found:
                yield f"{name} is in none of {len(self.places)} directories that pruned each other"
            for path in found:
                if _content(text := path.read_text()) not in versions:
                    yield f"{path.parent.parent.name}/{name} has bytes that nobody wrote: {text[:80]!r}"


def work(processes: Sequence[subprocess.Popen[bytes]], victim: int | None, after: float) -> Iterator[None]:
    """Wait until all have ended, kill one on the way if asked to; yields between two looks."""
    begin = time.monotonic()
    while any(process.poll() is None for process in processes):
        spent = time.monotonic() - begin
        if (victim is not None and spent > after) or spent > PATIENCE_SECONDS:
            for process in processes if victim is None else [processes[victim]]:
                process.kill()
            victim = None
        yield


def _content(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main(*sys.argv[1:])
