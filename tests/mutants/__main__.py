"""Change the source in one small place at a time, and count what the fast tests notice: `make mutants`.

`python -m tests.mutants [MODULE…] [--all] [--seed N]` takes SAMPLE mutants, drawn from the seed, or all; of the
modules below, or of those named, as in `outcome/judge remote/slurm`. It works on a copy of the project, so that no
mutant is ever in the tree. It fails if fewer than LEAST of the mutants are noticed. Survivors are printed, with a
word from `accepted.txt` on why they may.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.mutants.changes import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
PACKAGE = "prefect_psik"
SAMPLE = 500
LEAST = 0.85
#: Modules, and the tests in tests/unit that know them: without facility and server, in little time.
REMOTE = (
    *(path.stem.removeprefix("test_") for path in sorted((ROOT / "tests/unit").glob("test_remote*.py"))),
    "site",
)
PRUNES = ("prune_plan", "prune_directories", "prune_interleavings")
TESTS: dict[str, tuple[str, ...]] = {
    "outcome/judge": ("outcome", "slurm_outcome"),
    "outcome/results": ("lifecycle", "outcome", "remote_results"),
    "spec/expected": ("expected", "jobspec"),
    "outcome/slurm": ("outcome", "slurm_outcome"),
    "flow_run/identity": ("identity",),
    "spec/identity": ("identity",),
    "data/once": ("transfer", "transfer_once"),
    "data/proof/plan": ("prune_plan", "prune_directories", "transfer"),
    "jobs/submit": ("submissions",),
    "jobs/lifecycle": ("lifecycle", "models_exceptions"),
    "spec/directives": ("directives", "prepared"),
    "spec/spelling": ("spelling", "jobspec"),
    "spec/prepared": ("prepared", "directives"),
    "spec/resources": ("resources", "prepared"),
    "spec/sbatch": ("sbatch", "directives"),
    "plain_text": ("plain_text",),
    "data/proof/claim": PRUNES,
    "data/proof/look": PRUNES,
    "flow_run/labels": ("marks",),
    **{f"remote/{path.stem}": REMOTE for path in sorted((ROOT / PACKAGE / "remote").glob("*.py"))},
}
#: They take longer than all the others, and notice little more.
SLOW = (
    "test_no_character",
    "test_each_character",
    "test_nothing_outside",
    "test_whatever_is",
    "test_log_that_grows",
)
LEFT_OUT = (".*", "__pycache__", "demo-output", "dist", "build")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="such as outcome/judge or remote/slurm")
    parser.add_argument("--all", action="store_true", help=f"all mutants instead of {SAMPLE}")
    parser.add_argument("--seed", type=int, default=1, help="which mutants are drawn")
    options = parser.parse_args()
    if unknown := [name for name in options.modules if name not in TESTS]:
        sys.exit(f"No module here is called {unknown[0]!r}. There are: {', '.join(TESTS)}.")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the copy is removed all the same
    modules = options.modules or list(TESTS)
    mutants = [mutant for name in modules for mutant in _mutants(name)]
    if not options.all and len(mutants) > SAMPLE:
        drawn = sorted(random.Random(options.seed).sample(range(len(mutants)), SAMPLE))
        mutants = [mutants[n] for n in drawn]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    begin = time.monotonic()
    survivors: list[Mutant] = []
    reasons = dict(_accepted())
    for mutant, noticed in _tried(mutants, _tests(modules), console):
        if not noticed:  # shown at once: a run may be ended early
            survivors.append(mutant)
            console.print(_survivor(mutant, reasons), markup=False, soft_wrap=True)
    console.print(_table(mutants, survivors))
    console.print(f"{len(mutants)} mutants in {(time.monotonic() - begin) / 60:.1f} min")
    if len(survivors) > (1 - LEAST) * len(mutants):
        sys.exit(f"Fewer than {LEAST:.0%} are noticed.")


def _mutants(name: str) -> list[Mutant]:
    path = f"{PACKAGE}/{name}.py"
    return mutants_of(path, (ROOT / path).read_text(encoding="utf-8"))


def _tests(modules: list[str]) -> list[str]:
    return list(dict.fromkeys(f"tests/unit/test_{name}.py" for module in modules for name in TESTS[module]))


def _tried(mutants: list[Mutant], tests: list[str], console: Console) -> Iterator[tuple[Mutant, bool]]:
    """Each mutant, and whether a test noticed it."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        copy = Path(place, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        for name in ("home", "tmp"):
            Path(place, name).mkdir()
        given, log = Path(place, "mutants.json"), Path(place, "log")
        given.write_text(json.dumps(mutants), encoding="utf-8")
        environment = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "PREFECT_HOME": f"{place}/home"}
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "tests.mutants.warm", str(given), str(writer)]
        command += ["-k", f"not ({' or '.join(SLOW)})", *tests]
        with log.open("wb") as output, os.fdopen(reader) as answers:
            tried = subprocess.Popen(
                command,
                cwd=copy,
                env={**os.environ, **environment, "TMPDIR": f"{place}/tmp"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[writer],
            )
            os.close(writer)
            try:
                with console.status("The tests run with nothing changed first…") as status:
                    for n, line in enumerate(answers):
                        answer = json.loads(line)
                        status.update(f"{n + 1} of {len(mutants)}")
                        if not console.is_terminal and (n + 1) % 100 == 0:
                            console.print(
                                f"{n + 1} of {len(mutants)} after {(time.monotonic() - begin) / 60:.1f} min"
                            )
                        yield mutants[answer["mutant"]], answer["noticed"]
            except BaseException:
                tried.terminate()
                tried.wait()
                raise
            if tried.wait():
                text = log.read_text(encoding="utf-8", errors="replace")
                sys.exit(f"The tests could not be run:\n{text}")


def _survivor(mutant: Mutant, reasons: dict[str, str]) -> str:
    """A line on a survivor, with why it may, if somebody said so."""
    reason = reasons.get(mutant.name, f"no test; in {mutant.function or 'module'}")
    return f"{mutant.path}:{mutant.line} {mutant.before} -> {mutant.after}: {reason}"


def _accepted() -> Iterator[tuple[str, str]]:
    """Lines of a reason in brackets, and under it the mutants that it excuses."""
    reason = ""
    for line in Path(__file__).with_name("accepted.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            reason = line.strip("[]")
        elif line:
            yield line, reason


def _table(mutants: list[Mutant], survivors: list[Mutant]) -> Table:
    table = Table("module", "mutants", "noticed", "survived", "%")
    total, survived = Counter(mutant.path for mutant in mutants), Counter(mutant.path for mutant in survivors)
    rows = [*((path, total[path], survived[path]) for path in total), ("all", len(mutants), len(survivors))]
    for path, number, left in rows:
        share = f"{100 * (number - left) / number:.0f}" if number else ""
        table.add_row(path.removeprefix(f"{PACKAGE}/"), str(number), str(number - left), str(left), share)
    return table


if __name__ == "__main__":
    main()
