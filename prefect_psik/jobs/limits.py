"""How long to wait for a job: in the queue, while it runs, and while nothing is heard of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prefect_psik.exceptions import ContactLost, QueueLimitReached, RunLimitReached, WaitLimitReached
from prefect_psik.models.jobs import JobHandle, JobState
from prefect_psik.models.single import Single
from prefect_psik.session.poller import Update


def _positive(limit: timedelta) -> timedelta:
    if limit <= timedelta(0):
        raise ValueError("a limit must be longer than nothing")
    return limit


Limit = Annotated[timedelta, AfterValidator(_positive)]


class WaitLimits(Single, BaseModel):
    """Limits of a wait, each with its own error; none by default.

    They are no walltime: `ResourceSpec.duration` is what the scheduler enforces.

    Example:
        ```python
        from datetime import timedelta

        from prefect_psik import WaitLimits

        limits = WaitLimits(queue=timedelta(hours=2), trouble=timedelta(minutes=30), on_limit="cancel")
        ```
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    queue: Limit | None = Field(
        default=None,
        description="Longest time in the queue, by the facility's clock, and before that for a place in it: "
        "QueueLimitReached.",
    )
    run: Limit | None = Field(
        default=None, description="Longest time since its start, by the facility's clock: RunLimitReached."
    )
    trouble: Limit | None = Field(
        default=None, description="Longest time without an answer of endpoint or scheduler: ContactLost."
    )
    on_limit: Literal["leave", "cancel"] = Field(
        default="leave", description="What becomes of the job when a limit is reached."
    )


WaitLimits.__module__ = "prefect_psik"  # as all public classes; this module is not loaded with the package


class LimitWatch:
    """Compares one wait with its limits.

    Args:
        limits: Those that hold.
        handle: Of the job, for the error; None: it was not submitted yet.
        clock: Monotonic seconds; a test gives its own.
        subject: The job and where it is, where there is no handle.
        queued: What it does in the queue.
        ahead: Seconds that it waited for a place in the queue before.
    """

    def __init__(
        self,
        limits: WaitLimits,
        handle: JobHandle | None,
        clock: Callable[[], float] = time.monotonic,
        *,
        subject: str = "",
        queued: str = "has been in the queue",
        ahead: float = 0.0,
    ) -> None:
        self._limits = limits
        self._handle = handle
        self._clock = clock
        self._subject = f"{handle} on {handle.place}" if handle else subject
        self._queued = queued
        self._ahead = ahead
        self._trouble: tuple[float, str] | None = None
        self._phase: tuple[str, float] = ("queue", clock() - ahead)

    def note(self, update: Update) -> None:
        """Take an update into account."""
        now = self._clock()
        if update.trouble is None:
            self._trouble = None
        else:
            self._trouble = (self._trouble[0] if self._trouble else now, update.trouble)
        if update.status is None:
            return
        active = update.status.state is JobState.active
        phase, since = ("run", update.status.started) if active else ("queue", update.status.submitted)
        if since is not None and update.now is not None:
            before = 0.0 if active else self._ahead
            self._phase = (phase, now - max(0.0, update.now - since) - before)
        elif self._phase[0] != phase:
            self._phase = (phase, now)

    def left(self) -> float | None:
        """Seconds until the next limit is reached, not below 0; None: there is none."""
        ends = [since + limit.total_seconds() for _, since, limit in self._running()]
        return max(0.0, min(ends) - self._clock()) if ends else None

    def reached(self) -> WaitLimitReached | None:
        """The error of the limit that is reached, or None."""
        for kind, since, limit in self._running():
            if self._clock() >= since + limit.total_seconds():
                return self._error(kind, limit)
        return None

    def _running(self) -> list[tuple[str, float, timedelta]]:
        """The limits that count at present: kind, since when, how long."""
        phase, since = self._phase
        limit = self._limits.queue if phase == "queue" else self._limits.run
        found = [(phase, since, limit)] if limit is not None else []
        if self._trouble and self._limits.trouble is not None:
            found.append(("trouble", self._trouble[0], self._limits.trouble))
        return found

    def _error(self, kind: str, limit: timedelta) -> WaitLimitReached:
        job = f"{self._subject[:1].upper()}{self._subject[1:]}"
        if kind == "queue":
            return QueueLimitReached(f"{job} {self._queued} for more than {limit}.", handle=self._handle)
        if kind == "run":
            return RunLimitReached(f"{job} has been running for more than {limit}.", handle=self._handle)
        why = self._trouble[1] if self._trouble else ""
        return ContactLost(f"Nothing has been heard of {self._subject} for {limit}. {why}", handle=self._handle)
