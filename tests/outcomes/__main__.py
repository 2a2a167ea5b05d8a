"""Provoke every way a job can end, and print what is told of it: `python -m tests.outcomes [CASE …]`.

Each site runs in a process of its own, all at the same time. The last line says how many cases passed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.outcomes import report, run
from tests.outcomes.case import CASES, Result, Seen
from tests.testbed import packages
from tests.testbed.facility import Facility

#: All of it takes less; whoever hangs is ended.
LIMIT_SECONDS = 600.0


def main() -> int:
    """Run the cases; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.outcomes")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names of cases, or parts of them; default: all")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page of the documentation")
    parser.add_argument("--list", action="store_true", help="only name the cases")
    given = parser.parse_args()
    names = [case.name for case in run.ordered_cases()]
    chosen = [name for name in names if not given.cases or any(part in name for part in given.cases)]
    if given.list or not chosen:
        print("\n".join(chosen or names))
        return 0 if chosen else 2
    begin = time.monotonic()
    facility = Facility.at()
    packages.install()
    was_down = not facility.daemons.alive()
    try:
        facility.start()
        results = _run_sites(chosen)
        over = facility.globus.over_the_limit()
        version = facility.slurm.ask("sinfo", "--version").split()[-1]
    finally:
        if was_down:
            facility.stop()
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    report.show(console, results)
    failed = sum(bool(result.problems) for result in results.values())
    if over:
        console.print(f"more than 20 requests in 10 s: {over}")
    if given.write and not failed and len(chosen) == len(CASES):
        psik = next(name.split("==")[1] for name in packages.ENDPOINT_PACKAGES if name.startswith("psik=="))
        report.write(given.write, report.markdown(results, version=version, psik=psik))
    elif given.write:
        console.print(f"{given.write} is not written: it takes all cases, and all of them passed.")
    console.print(f"{time.monotonic() - begin:.0f} s")
    console.print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed or over else 0


def _run_sites(chosen: list[str]) -> dict[str, Result]:
    """Run each site in a process of its own, and collect what they found."""
    with tempfile.TemporaryDirectory(prefix="prefect-psik-outcomes-") as name:
        top = Path(name)
        top.chmod(0o755)  # jobs of other users go through it
        started: dict[str, subprocess.Popen[bytes]] = {}
        for site in {CASES[name].site: None for name in chosen}:
            (top / site).mkdir(mode=0o755)
            (top / site).chmod(0o777)
            own = [name for name in chosen if CASES[name].site == site]
            command = [sys.executable, "-m", run.__name__, site, str(top / site), str(top / f"{site}.json"), *own]
            started[site] = subprocess.Popen(command)
        deadline = time.monotonic() + LIMIT_SECONDS
        for process in started.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                process.wait(60)
        found: dict[str, Result] = {}
        for site in started:
            path = top / f"{site}.json"
            for entry in json.loads(path.read_text()) if path.exists() else []:
                seen = entry.pop("seen")
                found[entry["name"]] = Result(seen=seen and Seen(**seen), **entry)
        shutil.rmtree(top, ignore_errors=True)
        top.mkdir()
    missing = Result("", 0.0, None, ["it did not come to an end, or its site did not start"])
    return {name: found.get(name, missing) for name in chosen}


if __name__ == "__main__":
    sys.exit(main())
