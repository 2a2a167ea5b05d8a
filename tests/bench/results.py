"""Looking whether 10,000 expected files are there, complete and fresh: one call at the facility."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from types import ModuleType

from rich.console import Console

from prefect_psik.remote import letter
from tests.bench.measure import QUICK, spread, verdict

FILES = 1000 if QUICK else 10_000
REPEATS = 3 if QUICK else 9
LIMIT_SECONDS = 0.5
_STAMP = "12345"


def bench(console: Console) -> None:
    """Look again and again at the results of one job, as each wait does at its end."""
    facility = ModuleType("facility")
    exec(compile(letter(), "<letter>", "exec"), facility.__dict__)
    seconds = []
    with tempfile.TemporaryDirectory(prefix="prefect-psik-bench-") as name:
        base = Path(name) / _STAMP
        for directory in ("prefect", "work/rec"):
            (base / directory).mkdir(parents=True)
        entry = {"path": "rec/*.tiff", "count": FILES}
        (base / "prefect" / "job.json").write_text(json.dumps({"expect": [entry], "outputs": []}))
        (base / "prefect" / "intent.1").write_text("{}")
        for number in range(FILES):
            (base / "work" / "rec" / f"{number:05}.tiff").write_text("x")
        for _ in range(REPEATS):
            begin = time.perf_counter()
            answer = facility.call("check", {"prefix": name, "jobs": [{"stamp": _STAMP, "jobndx": 1}]})
            seconds.append(time.perf_counter() - begin)
            [found] = answer["jobs"][_STAMP]["found"]
            if found["good"] != FILES:
                raise SystemExit(f"Not all files were found: {found}.")
            (base / "prefect" / "found.1").unlink()  # else the next look is at that
    median = statistics.median(seconds)
    console.print(
        f"{FILES:,} expected files: {median:.3f} s in one call ({spread(seconds)}; "
        f"limit {LIMIT_SECONDS} s: {verdict(median, LIMIT_SECONDS)})"
    )
