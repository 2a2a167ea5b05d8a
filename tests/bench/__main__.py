"""Run the benches named on the command line, or all: `python -m tests.bench [NAME…]`.

With `BENCH_QUICK=1` they take fewer jobs and repeats: a look whether they work, no figures to quote. A bench is a
module with `bench(console)`, entered in the table below.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from rich.console import Console

from tests.bench import copies, facility, imports, local, prunes, results

BENCHES: dict[str, Callable[[Console], None]] = {
    "imports": imports.bench,
    "local": local.bench,
    "results": results.bench,
    "copies": copies.bench,
    "prunes": prunes.bench,
    "facility": facility.bench,
}


def main(names: list[str]) -> None:
    if unknown := [name for name in names if name not in BENCHES]:
        sys.exit(f"No bench is called {unknown[0]!r}. There are: {', '.join(BENCHES)}.")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} processors, load {load}, Python {sys.version.split()[0]}\n")
    for name in names or BENCHES:
        BENCHES[name](console)
        console.print()


if __name__ == "__main__":
    main(sys.argv[1:])
