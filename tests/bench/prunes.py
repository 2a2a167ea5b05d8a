"""A prune of many files between directories of this machine, beside `sha256sum` of both sides in the same run."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.bench.measure import QUICK, compare

FILES = 1000 if QUICK else 10_000
FILE_BYTES = 20_000
REPEATS = 1 if QUICK else 3
LIMIT = 1.5
#: A prune waits for files to settle that were written so lately; that is not what is measured.
SETTLE_SECONDS = 4.0
_TREE = "rec"


def ours(top: Path) -> None:
    """Prove and delete by `prune`, without a flow around it."""
    from prefect_psik import GlobusCollection, prune

    home, away = (GlobusCollection(base_path=str(top / name)) for name in ("home", "away"))
    prune.fn(home, _TREE, check=away)
    if left := len(list((top / "home" / _TREE).iterdir())):
        raise SystemExit(f"{left} files were not deleted.")


def by_hand(top: Path) -> None:
    """Read both sides by `sha256sum`."""
    command = f"find home/{_TREE} away/{_TREE} -type f -print0 | xargs -0 sha256sum"
    subprocess.run(command, shell=True, cwd=top, check=True, stdout=subprocess.DEVNULL)


def bench(console: Console) -> None:
    """Check and prune by turns, from the page cache, and print the medians."""
    seconds: dict[str, list[float]] = {"sha256sum of both sides": [], "prune": []}
    with tempfile.TemporaryDirectory(prefix="prefect-psik-bench-") as name:
        top = Path(name)
        for repeat in range(REPEATS + 1):  # the first one imports and warms the cache
            _write(top)
            os.sync()
            time.sleep(SETTLE_SECONDS)
            for way, work in zip(seconds, (by_hand, ours), strict=True):
                begin = time.monotonic()
                work(top)
                if repeat or QUICK:
                    seconds[way].append(time.monotonic() - begin)
    compare(console, f"{FILES:,} files of {FILE_BYTES:,} bytes on this machine", seconds, LIMIT)


def _write(top: Path) -> None:
    for end in ("home", "away"):
        directory = top / end / _TREE
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(FILES):
            (directory / f"{number:05}.tiff").write_bytes(f"{number:010}".encode() * (FILE_BYTES // 10))
