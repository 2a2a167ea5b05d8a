"""Which Pythons this machine has, for the commands that try several."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

PYTHONS = ("3.11", "3.12", "3.13")


def base_python(python: str) -> str | None:
    """Return an interpreter of a version such as 3.12: this one, pyenv's or one of the PATH, else None."""
    if sys.version.startswith(f"{python}."):
        return sys.executable
    known = sorted(Path.home().glob(f".pyenv/versions/{python}.*/bin/python3"))
    return next((str(path) for path in known), shutil.which(f"python{python}"))
