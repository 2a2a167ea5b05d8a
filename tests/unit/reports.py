"""Reports of `remote.check`, as the unit tests need them."""

from __future__ import annotations

from typing import Any


def report(path: str, good: int, **more: Any) -> dict[str, Any]:
    """Return what the facility says of an entry with so many matches that count."""
    known: dict[str, Any] = {
        "count": None,
        "at_least": 1,
        "matches": good,
        "good": good,
        "wrong": [],
        "trouble": None,
    }
    return {"path": path, **known, **more}
