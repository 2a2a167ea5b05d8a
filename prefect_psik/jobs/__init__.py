"""TASKS on jobs: submit, wait, cancel, list and clean up.

Import the tasks from `prefect_psik`. Importing them from here still works until the next release.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name.endswith(("_job", "_preflight", "_for_start")):
        return getattr(import_module(f"{__name__}.tasks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
