"""Reports of `remote.check`, as the unit tests need them."""

from __future__ import annotations

from typing import Any


def report(path: str, good: int, **more: Any) -> dict[str, Any]:
    """Return what the facility says of an entry with so many matches that count."""
    known: dict[str, Any] = {"expanded": path, "count": None, "at_least": 1, "matches": good, "good": good}
    return {"path": path, **known, "wrong": [], "unread": 0, "trouble": None, **more}
