"""One case of the table: what is done, what must be told of it, and what was."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefect_psik import FailureCause, JobState

if TYPE_CHECKING:
    from tests.outcomes.site import Site


@dataclass(frozen=True)
class Expected:
    """What must be told: state, cause, exit code, and words of the message (a regular expression)."""

    state: JobState
    cause: FailureCause | None
    exit_code: int | None
    says: str


@dataclass
class Seen:
    """What was told, by us, by psik alone (the last line of status.csv) and by Slurm alone (sacct)."""

    state: str
    cause: str | None = None
    exit_code: int | None = None
    message: str = ""
    psik: str = "–"
    slurm: str = "–"
    notes: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """State and cause in two words."""
        return f"{self.state} ({self.cause})" if self.cause else self.state


@dataclass(frozen=True)
class Case:
    """A way for a job to end.

    `phase`: cases of one site run side by side, and the phases one after the other.
    """

    name: str
    site: str
    expected: Expected
    act: Callable[[Site], Seen]
    phase: int


@dataclass
class Result:
    """A case that was run; it passed if there are no problems."""

    name: str
    seconds: float
    seen: Seen | None
    problems: list[str]


CASES: dict[str, Case] = {}


def case(
    name: str,
    state: str,
    cause: str | None = None,
    exit_code: int | None = None,
    *,
    says: str,
    site: str = "facility",
    phase: int = 0,
) -> Callable[[Callable[[Site], Seen]], Callable[[Site], Seen]]:
    """Enter a function into the table; it provokes the end and returns what was told of it."""
    expected = Expected(JobState(state), FailureCause(cause) if cause else None, exit_code, says)

    def enter(act: Callable[[Site], Seen]) -> Callable[[Site], Seen]:
        assert name not in CASES, f"two cases are called {name!r}"
        CASES[name] = Case(name, site, expected, act, phase)
        return act

    return enter


def differences(expected: Expected, seen: Seen) -> list[str]:
    """Say what was told otherwise than it must be."""
    wrong = [
        f"{what} is {told!r}, not {wanted!r}"
        for what, told, wanted in (
            ("state", seen.state, expected.state.value),
            ("cause", seen.cause, expected.cause.value if expected.cause else None),
            ("exit code", seen.exit_code, expected.exit_code),
        )
        if told != wanted
    ]
    if not re.search(expected.says, seen.message):
        wrong.append(f"the message {seen.message!r} does not say {expected.says!r}")
    return wrong
