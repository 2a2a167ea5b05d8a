"""`python -m tests.coverage [--all] ARGS`: runs pytest with ARGS, all processes measured, and prints a table."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from coverage import Coverage, __version__

from tests.coverage.environments import PACKAGE, measured, write_config
from tests.testbed import packages


def main() -> int:
    """Run the tests and show what they executed; returns pytest's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage", epilog="All else goes to pytest.")
    parser.add_argument("--all", action="store_true", help="with those that need a facility (Debian, as root)")
    chosen, arguments = parser.parse_known_args()
    if not chosen.all:
        arguments = ["-m", "not facility", *arguments]
    # Not below this directory, which the facility's user may be unable to reach.
    data = Path(tempfile.mkdtemp(prefix="prefect-psik-coverage-"))
    try:
        config = write_config(data)
        with ExitStack() as stack:
            stack.enter_context(measured(Path(sys.executable), config))
            if chosen.all:
                stack.enter_context(measured(endpoint_python(), config))
            code = subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode
        show(config)
    finally:
        shutil.rmtree(data, ignore_errors=True)
    return code


def endpoint_python() -> Path:
    """Install an endpoint to be measured, beside the usual one; return its interpreter."""
    os.environ[packages.CACHE_VARIABLE] = f"{packages.cache()}-coverage"
    packages.install()
    python = packages.endpoint_bin() / "python"
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--link-mode", "copy"]
    subprocess.run([*install, "--python", str(python), f"coverage=={__version__}"], check=True, umask=0o022)
    return python


def show(config: Path) -> None:
    """Print a line for each file, and the total."""
    coverage = Coverage(config_file=str(config))
    coverage.combine()
    # What no process has imported counts, too.
    coverage.get_data().touch_files([str(path) for path in PACKAGE.rglob("*.py")])
    coverage.report(skip_empty=True)


if __name__ == "__main__":
    sys.exit(main())
