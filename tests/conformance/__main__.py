"""The matrix: starts the places, runs every column in its own process, prints the table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.conformance.suite import names
from tests.pythons import PYTHONS, base_python
from tests.testbed import packages
from tests.testbed.endpoint import ENGINE_VARIABLE
from tests.testbed.facility import Facility
from tests.testbed.state import STATE_VARIABLE

_REPOSITORY = Path(__file__).resolve().parents[2]
_COLUMN_SECONDS = 1200.0
ENGINES = ("ThreadPoolEngine", "ProcessPoolEngine", "GlobusComputeEngine")


#: Seconds and failure, by the name of the case.
Found = dict[str, tuple[float, str]]


@dataclass(frozen=True)
class Column:
    """One configuration: the client's Python, and the engine of the endpoint, if there is one."""

    python: str
    engine: str | None

    @property
    def title(self) -> str:
        """For the head of the table."""
        return f"{self.python} {(self.engine or 'local').removesuffix('Engine')}"


def columns() -> list[Column]:
    """Each Python on both transports, and the other engines once."""
    pythons = [Column(python, engine) for python in PYTHONS for engine in (None, ENGINES[0])]
    return pythons + [Column(PYTHONS[0], engine) for engine in ENGINES[1:]]


def interpreter(python: str, directory: Path) -> Path | str:
    """An environment of this Python with the package, or why there is none."""
    if sys.version.startswith(f"{python}."):
        return Path(sys.executable)
    base = base_python(python)
    if base is None:
        return f"no Python {python} here, so its columns are missing"
    environment = directory / f"venv-{python}"
    uv = [sys.executable, "-m", "uv"]
    install = ["pip", "install", "--quiet", "--python", str(environment / "bin" / "python")]
    commands = (
        [*uv, "venv", "--quiet", "--allow-existing", "--python", base, str(environment)],
        [*uv, *install, "-r", "requirements/pinned.txt", "-e", ".[dev]"],
    )
    for command in commands:
        done = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"no environment of Python {python}: {done.stderr.strip()[-300:]}"
    return environment / "bin" / "python"


def failed(column: Column, why: str) -> Found:
    """A column of which nothing was seen: a failure of all its cases."""
    return dict.fromkeys(names(globus=column.engine is not None), (0.0, why))


def run_column(column: Column, python: Path, state: Path | None) -> tuple[Found, str]:
    """Run one column; returns what was found, and the Python at the place as it says itself."""
    env = dict(os.environ) | {"PYTHONPATH": str(_REPOSITORY)}
    if state is not None:
        env[STATE_VARIABLE] = str(state)
    command = [str(python), "-m", "tests.conformance.client", "globus" if column.engine else "local"]
    try:
        done = subprocess.run(
            command, cwd=_REPOSITORY, env=env, capture_output=True, text=True, timeout=_COLUMN_SECONDS, check=False
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as err:
        return failed(column, f"the column did not end well: {err!r}"), "unknown"
    return failed(column, "it was not run") | answer["cases"], answer["python"]


def main() -> int:
    """Run the matrix, or the columns whose title holds the first argument."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    packages.install()
    results: dict[Column, Found] = {}
    pythons: set[str] = set()
    notes: list[str] = []
    floods: list[str] = []
    with tempfile.TemporaryDirectory(prefix="conformance-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        for engine in (None, *ENGINES):
            chosen = [column for column in columns() if column.engine == engine and wanted in column.title]
            facility = Facility.at(directory / engine) if engine and chosen else None
            try:
                if facility is not None:
                    os.environ[ENGINE_VARIABLE] = str(engine)
                    facility.start()
                for column in chosen:
                    python = interpreter(column.python, directory)
                    if isinstance(python, str):
                        results[column] = failed(column, python)
                        continue
                    state = facility.state.root if facility else None
                    results[column], said = run_column(column, python, state)
                    pythons |= {said} if facility else set()
                if facility is not None:
                    facility.globus.start()
                    over = facility.globus.over_the_limit()
                    text = f"{engine}: {over or 'nobody'} sent more than 20 requests in 10 s"
                    (floods if over else notes).append(text)
            finally:
                if facility is not None:
                    facility.stop()
                    shutil.rmtree(facility.state.root, ignore_errors=True)
    heading = f"the endpoint's Python: {', '.join(sorted(pythons)) or 'no endpoint'}"
    return show(heading, results, notes, floods)


def show(heading: str, results: dict[Column, Found], notes: list[str], failures: list[str]) -> int:
    """Print the table and its last line."""
    table = Table("case", *(column.title for column in results), title=heading)
    passed = 0
    for name in names():
        cells = []
        for column, found in results.items():
            if name not in found:
                cells.append("·")
                continue
            seconds, failure = found[name]
            if failure:
                failures.append(f"{name}, {column.title}: {failure}")
                cells.append("[red]failed[/]")
            else:
                passed += 1
                cells.append(f"[green]{seconds:.1f} s[/]")
        table.add_row(name, *cells)
    console = Console(width=160)
    console.print(table)
    for line in (*notes, *failures):
        console.print(line, markup=False, highlight=False)
    console.print("· this transport cannot show it", highlight=False)
    print(f"{passed} passed, {len(failures)} failed")
    return 1 if failures or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
