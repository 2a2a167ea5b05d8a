"""One figure: a piece of work in a fresh interpreter, with what it cost by the kernel's own accounts."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

QUICK = os.environ.get("BENCH_QUICK") == "1"
_PR_SET_CHILD_SUBREAPER = 36
_SECONDS = 900.0

Figure = dict[str, float]


def verdict(value: float, limit: float) -> str:
    """Return `ok` or `over`."""
    return "ok" if value <= limit else "over"


def medians(figures: Sequence[Figure]) -> Figure:
    """Return the median of each number over repeats."""
    return {name: statistics.median(figure[name] for figure in figures) for name in figures[0]}


def spread(values: Iterable[float]) -> str:
    """Return the least and the greatest value, for a table."""
    ordered = sorted(values)
    return f"{ordered[0]:.2f} to {ordered[-1]:.2f}"


def compare(console: Console, title: str, seconds: Mapping[str, Sequence[float]], limit: float) -> None:
    """Print the medians of two ways to do the same, and the ratio of the second to the first.

    Args:
        console: Where.
        title: Of the table.
        seconds: Of each way, in all repeats.
        limit: Of the ratio.
    """
    table = Table("", "median s", "least to most", title=title)
    for way, values in seconds.items():
        table.add_row(way, f"{statistics.median(values):.2f}", spread(values))
    console.print(table)
    first, second = (statistics.median(values) for values in seconds.values())
    one, other = seconds
    console.print(f"{other} / {one}: {second / first:.2f} (limit {limit}: {verdict(second / first, limit)})")


def adopt_orphans() -> None:
    """Make this process the parent of jobs whose own parent has ended, so that their CPU time comes here."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def compiled(directory: Path) -> dict[str, str]:
    """Return the environment of interpreters that keep compiled modules in a directory.

    An installed package is compiled, a checkout may not be, and some environments forbid to do it.
    """
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(directory)}


def interpreter(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run a fresh interpreter to its end and return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments], env=dict(environment), capture_output=True, text=True, timeout=_SECONDS
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)[:200]} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def figure_of(arguments: Sequence[str], environment: Mapping[str, str], keep: set[int]) -> Figure:
    """Run `python ARGUMENTS RESULT`, which ends by `hand_in(RESULT)`, and add what its jobs cost.

    Args:
        arguments: Of the interpreter.
        environment: All of it; a Prefect home and a HOME of its own are added.
        keep: Processes that are children of ours for another reason.
    """
    with tempfile.TemporaryDirectory(prefix="prefect-psik-bench-") as name:
        home = Path(name)
        result, output = home / "result.json", home / "output"
        with output.open("wb") as stream:
            # Jobs inherit the descriptors, so no pipe: it would not end before they do.
            process = subprocess.Popen(
                [sys.executable, *arguments, str(result)],
                env={**environment, "PREFECT_HOME": str(home / "prefect"), "HOME": str(home)},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
            code = process.wait(_SECONDS)
        jobs = _reap_orphans(keep)
        if code or not result.exists():
            raise SystemExit(f"{arguments} failed:\n{output.read_text(errors='replace')[-3000:]}")
        figure: Figure = json.loads(result.read_text())
    return {**figure, "cpu_jobs": jobs}


def _reap_orphans(keep: set[int]) -> float:
    """Wait for all jobs that were left to us; return their CPU seconds, those of their children included."""
    spent = 0.0
    deadline = time.monotonic() + _SECONDS
    while orphans := [child for child in psutil.Process().children() if child.pid not in keep]:
        for orphan in orphans:
            pid, _, usage = os.wait4(orphan.pid, os.WNOHANG)
            spent += usage.ru_utime + usage.ru_stime if pid else 0.0
        if time.monotonic() > deadline:
            raise SystemExit(f"Jobs do not end: {orphans}.")
        time.sleep(0.05)
    return spent


def timed(work: Callable[[], Mapping[str, float]]) -> Figure:
    """Do the work; return what it took, and the numbers that it returns itself.

    CPU time is of this process and, apart, of the children that it has waited for.
    """
    before, children = _cpu(resource.RUSAGE_SELF), _cpu(resource.RUSAGE_CHILDREN)
    resident = psutil.Process().memory_info().rss
    begin = time.monotonic()
    own = work()
    return {
        "seconds": time.monotonic() - begin,
        "cpu_own": _cpu(resource.RUSAGE_SELF) - before,
        "cpu_calls": _cpu(resource.RUSAGE_CHILDREN) - children,
        "peak": _peak(),
        "resident_before": resident,
        **own,
    }


def hand_in(figure: Figure, path: str) -> None:
    """Leave a figure for the process that asked for it."""
    Path(path).write_text(json.dumps(figure))


def _peak() -> float:
    # Not ru_maxrss: it begins with what the parent had when it forked.
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime
