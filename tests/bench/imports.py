"""What `import prefect_psik` takes on top of Prefect, and whether it loads what only some flows need."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.measure import QUICK, Figure, compiled, interpreter, medians, spread, verdict

REPEATS = 3 if QUICK else 9
LIMIT_SECONDS = 0.3
#: These load when they are used, not before.
LATE = ("globus_compute_sdk", "globus_sdk", "psik", "prefect_psik.cli")
#: What is imported before ours: `import prefect` is lazy, and a flow needs more of it than that.
BEFORE = {
    "import prefect": "import prefect",
    "from prefect import flow, task": "from prefect import flow, task",
}
_PROGRAM = """
import json, sys, time
begin = time.perf_counter()
exec(sys.argv[1])
middle, cpu = time.perf_counter(), time.process_time()
import prefect_psik
end = time.perf_counter()
figure = {"before": middle - begin, "ours": end - middle, "cpu": time.process_time() - cpu}
print(json.dumps({"figure": figure, "loaded": [name for name in sys.argv[2:] if name in sys.modules]}))
"""


def bench(console: Console) -> None:
    """Import in fresh interpreters, by turns, and print the medians."""
    figures: dict[str, list[Figure]] = {name: [] for name in BEFORE}
    loaded: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="prefect-psik-bench-") as directory:
        environment = compiled(Path(directory) / "bytecode") | {"PREFECT_HOME": directory}
        for repeat in range(REPEATS + 1):
            for name, statement in BEFORE.items():
                answer = json.loads(interpreter(["-c", _PROGRAM, statement, *LATE], environment))
                loaded.update(answer["loaded"])
                if repeat:  # the first one compiles
                    figures[name].append(answer["figure"])

    title = f"import prefect_psik in a fresh interpreter, medians of {REPEATS}, seconds"
    table = Table("after", "that alone", "prefect_psik on top", "of these", "CPU", "ratio", "limit", title=title)
    for name, repeats in figures.items():
        middle = medians(repeats)
        limited = name == "import prefect"
        table.add_row(
            *(name, f"{middle['before']:.2f}", f"{middle['ours']:.3f}"),
            *(spread(figure["ours"] for figure in repeats), f"{middle['cpu']:.3f}"),
            f"{middle['ours'] / middle['before']:.2f}",
            f"{LIMIT_SECONDS} {verdict(middle['ours'], LIMIT_SECONDS)}" if limited else "",
        )
    console.print(table)
    absent = [name for name in LATE if name not in loaded]
    console.print(f"not loaded by the import: {', '.join(absent) or 'none of ' + ', '.join(LATE)}")
    if loaded:
        console.print(f"loaded, and should not be: {', '.join(sorted(loaded))}: over")
