"""A large file between directories of this machine, beside `cp` and then `sha256sum` of both in the same run."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from tests.bench.measure import QUICK, compare

MEGABYTES = 200 if QUICK else 2000
REPEATS = 1 if QUICK else 3
LIMIT = 1.3
_MEGABYTE = 1_000_000


def ours(top: Path) -> None:
    """Copy and verify by `run_transfer`, without a flow around it."""
    from prefect_psik import GlobusCollection, run_transfer

    home, away = (GlobusCollection(base_path=str(top / name)) for name in ("home", "away"))
    if run_transfer.fn(home, away, "scan.h5").bytes_transferred != MEGABYTES * _MEGABYTE:
        raise SystemExit("Not all was copied.")


def by_hand(top: Path) -> None:
    """Copy by `cp`, then read both by `sha256sum`."""
    source, target = top / "home" / "scan.h5", top / "away" / "scan.h5"
    subprocess.run(["cp", source, target], check=True)
    done = subprocess.run(["sha256sum", source, target], check=True, capture_output=True, text=True)
    if len({line.split()[0] for line in done.stdout.splitlines()}) != 1:
        raise SystemExit("The checksums differ.")


WAYS: dict[str, Callable[[Path], None]] = {"cp, sha256sum of both": by_hand, "run_transfer": ours}


def bench(console: Console) -> None:
    """Copy by turns, from the page cache, and print the medians."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory(prefix="prefect-psik-bench-") as name:
        top = Path(name)
        for end in ("home", "away"):
            (top / end).mkdir()
        with (top / "home" / "scan.h5").open("wb") as file:
            for _ in range(MEGABYTES // 10):
                file.write(os.urandom(10 * _MEGABYTE))
        for repeat in range(REPEATS + 1):  # the first ones import and warm the cache
            for way, work in WAYS.items():
                took = _timed(work, top)
                if repeat or QUICK:
                    seconds[way].append(took)
    compare(console, f"A file of {MEGABYTES} MB on this machine, verified", seconds, LIMIT)


def _timed(work: Callable[[Path], None], top: Path) -> float:
    (top / "away" / "scan.h5").unlink(missing_ok=True)
    os.sync()  # nobody pays for what another one has not written yet
    begin = time.monotonic()
    work(top)
    return time.monotonic() - begin
