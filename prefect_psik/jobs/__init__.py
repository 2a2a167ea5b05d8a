"""TASKS on jobs: submit, wait, cancel, look after them.

The tasks themselves may be imported from here until the next release, as before; their place is `prefect_psik`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name.endswith(("_job", "_preflight", "_for_start")):
        return getattr(import_module(f"{__name__}.tasks"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
