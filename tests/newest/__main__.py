"""Install the wheel of `dist/` as users do, without any pins, and see what works: `python -m tests.newest --help`.

Each Python has a fresh environment. First it holds the wheel alone, which must import; then the tools of the tests
are added. The tests and flows are those of the sdist, without its package: what they import is the wheel's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from tests.newest.postgresql import postgresql
from tests.pythons import PYTHONS, base_python

DIST = Path(__file__).parents[2] / "dist"
DATABASES = ("sqlite", "postgresql")
#: Import every module, and name the versions that matter most.
ALONE = """
import importlib, importlib.metadata, pkgutil, prefect_psik
for module in pkgutil.walk_packages(prefect_psik.__path__, "prefect_psik."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
shown = ("prefect", "fastapi", "sqlalchemy", "pydantic", "globus-sdk", "globus-compute-sdk", "psik")
print(prefect_psik.__version__, *(f"{name} {importlib.metadata.version(name)}" for name in shown), sep=", ")
"""
UNIT_TESTS = ("tests/unit",)
QUICK_UNIT_TESTS = tuple(
    f"tests/unit/test_{name}.py"
    for name in ("models_exceptions", "jobspec", "credentials", "psik_json", "options")
)
LOCAL_TESTS = ("-m", "not facility", "tests/integration")
FIRST_CHECKS = "tests/newest/first_checks.py"
LONG_CHECKS = "tests/newest/long_checks.py"


@dataclass
class Newest:
    """One Python's environment below a directory; `failures` names the steps that failed."""

    python: str
    directory: Path
    failures: list[str] = field(default_factory=list)

    def run(self, step: str, *command: str | Path, **environment: str) -> bool:
        """Run a step, and say how long it took; a failure is kept."""
        # Of what the caller has, Prefect's settings are not the user's.
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "VIRTUAL_ENV"))
        }
        own = {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.directory),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        }
        begin = time.monotonic()
        print(f"--- Python {self.python}: {step}", flush=True)
        done = subprocess.run(command, cwd=self.source, env=kept | own | environment, check=False)
        print(f"--- {'ok' if done.returncode == 0 else 'FAILED'}, {time.monotonic() - begin:.1f} s", flush=True)
        if done.returncode:
            self.failures.append(step)
        return done.returncode == 0

    @property
    def bin(self) -> Path:
        """Where the environment's programs are."""
        return self.directory / "environment" / "bin"

    @property
    def source(self) -> Path:
        """The sdist without its package."""
        return self.directory / "source"

    def pip_install(self, *what: str) -> bool:
        """Install with the newest versions that are allowed."""
        # The caller's home has the cache.
        install: list[str | Path] = ["-m", "uv", "pip", "install", "--quiet", "--python", self.bin / "python"]
        return self.run(f"install {' '.join(what)}", sys.executable, *install, *what, HOME=str(Path.home()))

    def prepare(self, *, quick: bool) -> bool:
        """Make the environment, try the wheel alone, and add the tools of the tests."""
        base = base_python(self.python)
        if base is None:
            print(f"There is no Python {self.python} here.")
            self.failures.append("find the interpreter")
            return False
        self.source.mkdir(parents=True)
        wheel, sdist = _only("*.whl"), _only("*.tar.gz")
        unpack(sdist, self.source)
        extras = "test" if quick else "test,tomography,scicat"
        return (
            self.run(
                "make an environment",
                sys.executable,
                "-m",
                "uv",
                "venv",
                "--quiet",
                "--python",
                base,
                self.bin.parent,
            )
            and self.pip_install(str(wheel))
            and self.run("import all modules", self.bin / "python", "-I", "-c", ALONE)
            and self.run("ask the command for help", self.bin / "prefect-psik", "--help")
            and self.pip_install(f"{wheel}[{extras}]")
        )

    def pytest(self, step: str, *arguments: str, **environment: str) -> bool:
        """Run tests of the sdist on the wheel."""
        return self.run(step, self.bin / "python", "-m", "pytest", "-q", *arguments, **environment)


def _only(pattern: str) -> Path:
    found = sorted(DIST.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"There must be one {pattern} in {DIST}, not {len(found)}: run make package")
    return found[0]


def unpack(sdist: Path, directory: Path) -> None:
    """Unpack the files of an sdist into a directory, but for its package."""
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            path = Path(*Path(member.name).parts[1:])
            if path.parts[0] != "prefect_psik":
                archive.extract(member.replace(name=str(path)), directory, filter="data")


def check(python: str, databases: list[str], *, quick: bool, directory: Path) -> dict[str, str]:
    """Check one Python; returns a word or two for each database."""
    newest = Newest(python, directory)
    begin = time.monotonic()
    if not newest.prepare(quick=quick):
        return dict.fromkeys(databases, f"failed: {newest.failures[-1]}")
    if quick:
        newest.pytest("unit tests of what is public", *QUICK_UNIT_TESTS)
    else:
        newest.pytest("unit tests", *UNIT_TESTS)
        newest.pytest("local tests", *LOCAL_TESTS)
    print(f"--- Python {python}: {time.monotonic() - begin:.0f} s until here", flush=True)
    common = list(newest.failures)
    checks = [FIRST_CHECKS] if quick else [FIRST_CHECKS, LONG_CHECKS]
    results = {}
    for database in databases:
        begin = time.monotonic()
        with postgresql() if database == "postgresql" else nullcontext() as url:
            setting = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url} if url else {}
            step = f"server, flows and deployments on {database}"
            failures = common + ([] if newest.pytest(step, "--durations=10", *checks, **setting) else [step])
        results[database] = (
            f"failed: {', '.join(failures)}" if failures else f"ok, {time.monotonic() - begin:.0f} s"
        )
    return results


def main() -> int:
    """Check each Python with each database, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.newest", description=__doc__.splitlines()[0])
    this = "{}.{}".format(*sys.version_info)
    parser.add_argument(
        "--quick", action="store_true", help="the quick half: no local tests, demo, schedule, 200 jobs"
    )
    parser.add_argument("--python", nargs="+", default=[this], help=f"such as {' '.join(PYTHONS)}")
    parser.add_argument(
        "--database", nargs="+", default=["sqlite"], choices=DATABASES, help="Prefect's; default sqlite"
    )
    options = parser.parse_args()
    lines = []
    for python in options.python:
        with tempfile.TemporaryDirectory(prefix="newest-") as name:
            results = check(python, options.database, quick=options.quick, directory=Path(name))
        lines += [f"Python {python}, {database}: {result}" for database, result in results.items()]
    print(*lines, sep="\n")
    return 1 if any("failed" in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
