"""`python -m tests.soak --seeds 1 2 --calls 1000`: soaks, each on a facility of its own, and what came of them."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.soak.calls import AT_ONCE, MORE_BLOCKS, MORE_BYTES, Soak
from tests.testbed import packages
from tests.testbed.facility import Facility
from tests.testbed.globus import SOAK_LOGINS


def main() -> int:
    """Run one soak for each seed; returns 1 if anything was wrong, hung or left in any of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--calls", type=int, default=1000)
    given = parser.parse_args()
    packages.install()
    if len(given.seeds) > 1:
        # Each in a process of its own: what the first one left would be there when the next one begins.
        command = [sys.executable, "-m", "tests.soak", "--calls", str(given.calls), "--seeds"]
        codes = [subprocess.run([*command, str(seed)], check=False).returncode for seed in given.seeds]
        return int(any(codes))
    root = Path(tempfile.mkdtemp(prefix=f"prefect-psik-soak-{os.getpid()}-"))
    root.chmod(0o755)
    facility = Facility.at(root)
    try:
        facility.start()
        with facility.client():
            soak = Soak(facility, given.seeds[0], given.calls)
            soak.run()
            problems = soak.problems()
    finally:
        facility.stop()
        shutil.rmtree(root, ignore_errors=True)
    show(soak, problems)
    return 1 if problems else 0


def show(soak: Soak, problems: list[str]) -> None:
    """Print what happened and what came of it; the last line has the counts."""
    tally, begin, warm, cool, end = soak.tally, soak.begin, soak.warm, soak.cool, soak.end
    console = Console(width=100, highlight=False)
    at_once = AT_ONCE * len(SOAK_LOGINS)
    happened = Table("trouble", "times", title=f"seed {soak.seed}, {soak.count} calls, {at_once} at once")
    for name, times in sorted(soak.trouble.happened.items()):
        happened.add_row(name, str(times))
    ends = Table("end of a call", "times")
    ends.add_row("its own result", str(tally.ok))
    for name, times in tally.errors.most_common():
        ends.add_row(f"a clear error: {name}", str(times))
    left = Table("this process", "at the beginning", "at the end", "limit")
    for name, before, after in (
        ("threads", begin.threads, end.threads),
        ("file descriptors", begin.descriptors, end.descriptors),
        ("of them sockets", begin.sockets, end.sockets),
    ):
        left.add_row(name, str(before), str(after), "as at the beginning")
    left.add_row(
        *("memory, MB", f"{warm.memory / 1e6:.1f} (warmed up)", f"{cool.memory / 1e6:.1f} (before closing)"),
        f"{MORE_BYTES / 1e6:.0f} more in 1,000 calls",
    )
    left.add_row(
        *("blocks of memory", f"{warm.blocks:,} (warmed up)", f"{cool.blocks:,} (before closing)"),
        f"{MORE_BLOCKS:,} more in 1,000 calls",
    )
    for table in (happened, ends, left):
        console.print(table)
    console.print(f"{tally.seconds:.0f} s; the slowest call took {tally.slowest:.1f} s")
    for problem in problems:
        console.print(problem, markup=False)
    print(tally.last_line())


if __name__ == "__main__":
    sys.exit(main())
