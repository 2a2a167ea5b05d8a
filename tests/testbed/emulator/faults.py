"""Faults, ordered one by one or at random: the one place where the emulator may be told to misbehave."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, fields
from fnmatch import fnmatch

from tests.testbed.emulator.messages import Json, Refusal

KINDS = {
    "error": "answer with `status` and `code` instead of acting",
    "delay": "wait `seconds` before acting",
    "drop_reply": "act, then close the connection without a reply",
    "away": "close all connections without acting, for `seconds`",
    "duplicate_task": "deliver a task twice; `match` is `task FUNCTION_ID`",
    "lose_result": "throw a result away; `match` is `result TASK_ID`",
    "path": "a path of a collection faults with `code` for `seconds` from its first use; `match` is `NAME/path`",
    "no_time": "tell no time of change of what a directory holds, for `seconds`; `match` is `NAME/path`",
    "fatal_path": "end the task with `code` at a path of a collection; `match` is `NAME/path`",
    "slow_path": "wait `seconds` before a file is copied; `match` is `NAME/path`",
}


@dataclass
class Fault:
    """One order: do `kind` to the next `times` things whose name fits the pattern `match`."""

    kind: str
    match: str = "*"
    """Pattern (`*` is anything) for `METHOD /path`, or as told in `KINDS`."""
    times: int = 1
    after: int = 0
    """How many pass before."""
    status: int = 503
    code: str = "SERVICE_UNAVAILABLE"
    seconds: float = 1.0
    since: float | None = None

    @property
    def title(self) -> str:
        """For tables: the kind, and the status of an error."""
        return f"error {self.status}" if self.kind == "error" else self.kind


_SUBMIT = "POST /v3/endpoints/*/submit"
#: What happens in bad weather, and how often at strength 1. What ends a call for good happens to submissions only:
#: a submission is one call's, but one look asks for the results of many.
WEATHER: tuple[tuple[Fault, float], ...] = (
    (Fault("drop_reply"), 0.03),
    (Fault("delay", seconds=1.5), 0.05),
    (Fault("away", seconds=3.0), 0.004),
    (Fault("duplicate_task"), 0.05),
    (Fault("lose_result"), 0.01),
    (Fault("error", status=401, code="AUTHENTICATION_REQUIRED"), 0.01),
    (Fault("error", status=429, code="TOO_MANY_REQUESTS"), 0.02),
    (Fault("error", status=500, code="INTERNAL_ERROR"), 0.02),
    (Fault("error", status=503), 0.02),
    (Fault("error", _SUBMIT, status=403, code="FUNCTION_NOT_PERMITTED"), 0.005),
    (Fault("error", _SUBMIT, status=413, code="TASK_PAYLOAD_TOO_LARGE"), 0.005),
    (Fault("error", _SUBMIT, status=422, code="SEMANTICALLY_INVALID"), 0.005),
)


class Faults:
    """The orders not yet used up, and the weather."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._orders: list[Fault] = []
        self._dice: random.Random | None = None
        self._strength = 0.0
        self._away_until = 0.0
        self._happened: Counter[str] = Counter()

    def order(self, text: Json) -> None:
        """Add an order.

        Raises:
            Refusal: 400, for an unknown kind or field.
        """
        known = {field.name for field in fields(Fault)} - {"since"}
        if text.get("kind") not in KINDS or set(text) - known:
            raise Refusal(
                400, "BAD_FAULT", f"A fault has the fields {sorted(known)} and a kind of {sorted(KINDS)}."
            )
        with self._mutex:
            self._orders.append(Fault(**text))

    def begin_weather(self, *, seed: int, strength: float) -> None:
        """Let faults happen at random until `clear`.

        A seed always gives the same dice; which request meets which of them depends on the order of arrival.
        """
        with self._mutex:
            self._dice, self._strength = random.Random(seed), strength
            self._happened.clear()

    def clear(self) -> None:
        """Drop all orders, and have fair weather."""
        with self._mutex:
            self._orders.clear()
            self._dice, self._away_until = None, 0.0

    def happened(self) -> dict[str, int]:
        """Return how often each fault happened since the weather began."""
        with self._mutex:
            return dict(self._happened)

    def is_away(self, name: str) -> bool:
        """Say whether the service is away, for this request and those to come."""
        if fault := self.take("away", name):
            with self._mutex:
                self._away_until = time.monotonic() + fault.seconds
        with self._mutex:
            return time.monotonic() < self._away_until

    def take(self, kind: str, name: str) -> Fault | None:
        """Return the first order of this kind that fits the name, used once more, or what the weather brings."""
        with self._mutex:
            fault = self._ordered(kind, name) or self._thrown(kind, name)
            if fault:
                self._happened[fault.title] += 1
            return fault

    def _ordered(self, kind: str, name: str) -> Fault | None:
        for fault in self._orders:
            if fault.kind == kind and fnmatch(name, fault.match):
                if fault.after > 0:
                    fault.after -= 1
                    continue
                fault.times -= 1
                if fault.times <= 0:
                    self._orders.remove(fault)
                return fault
        return None

    def _thrown(self, kind: str, name: str) -> Fault | None:
        if self._dice is None:
            return None
        throw = self._dice.random()
        for fault, rate in WEATHER:
            if fault.kind == kind and fnmatch(name, fault.match):
                throw -= rate * self._strength
                if throw < 0:
                    return fault
        return None

    def standing(self, kind: str, name: str) -> Fault | None:
        """Return the first order of this kind that fits the name and whose time is not up; or None."""
        with self._mutex:
            for fault in self._orders:
                if fault.kind == kind and fnmatch(name, fault.match):
                    fault.since = fault.since or time.monotonic()
                    if time.monotonic() < fault.since + fault.seconds:
                        return fault
        return None
