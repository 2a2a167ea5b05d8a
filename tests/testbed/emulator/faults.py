"""Faults to order: the one place where the emulator may be told to misbehave."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields
from fnmatch import fnmatch

from tests.testbed.emulator.messages import Json, Refusal

KINDS = {
    "error": "answer with `status` and `code` instead of acting",
    "delay": "wait `seconds` before acting",
    "drop_reply": "act, then close the connection without a reply",
    "duplicate_task": "deliver a task twice; `match` is `task FUNCTION_ID`",
    "lose_result": "throw a result away; `match` is `result TASK_ID`",
}


@dataclass
class Fault:
    """One order: do `kind` to the next `times` things whose name fits the pattern `match`."""

    kind: str
    match: str = "*"
    """Pattern (`*` is anything) for `METHOD /path`, or as told in `KINDS`."""
    times: int = 1
    status: int = 503
    code: str = "SERVICE_UNAVAILABLE"
    seconds: float = 1.0


class Faults:
    """The orders not yet used up."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._orders: list[Fault] = []

    def order(self, text: Json) -> None:
        """Add an order.

        Raises:
            Refusal: 400, for an unknown kind or field.
        """
        known = {field.name for field in fields(Fault)}
        if text.get("kind") not in KINDS or set(text) - known:
            raise Refusal(
                400, "BAD_FAULT", f"A fault has the fields {sorted(known)} and a kind of {sorted(KINDS)}."
            )
        with self._mutex:
            self._orders.append(Fault(**text))

    def clear(self) -> None:
        """Drop all orders."""
        with self._mutex:
            self._orders.clear()

    def take(self, kind: str, name: str) -> Fault | None:
        """Return the first order of this kind that fits the name, used once more; or None."""
        with self._mutex:
            for fault in self._orders:
                if fault.kind == kind and fnmatch(name, fault.match):
                    fault.times -= 1
                    if fault.times <= 0:
                        self._orders.remove(fault)
                    return fault
        return None
