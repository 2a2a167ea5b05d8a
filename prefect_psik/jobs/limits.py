"""How long to wait for a job: in the queue, while it runs, and while the facility gives no answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prefect_psik.exceptions import ContactLost, QueueLimitReached, RunLimitReached, WaitLimitReached
from prefect_psik.models.jobs import JobHandle, JobState
from prefect_psik.models.single import Single
from prefect_psik.outcome.reservations import in_hours
from prefect_psik.session.poller import Update


def _positive(limit: timedelta) -> timedelta:
    if limit <= timedelta(0):
        raise ValueError("a limit must be longer than 0 s")
    return limit


Limit = Annotated[timedelta, AfterValidator(_positive)]


class WaitLimits(Single, BaseModel):
    """Limits of a wait, each with its own error; none by default.

    These are not the walltime: `ResourceSpec.duration` is what the scheduler enforces.

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
        description="Longest time in the queue, by the facility's clock. The wait for a place in a full queue "
        "counts, too. Beyond it: QueueLimitReached.",
    )
    run: Limit | None = Field(
        default=None,
        description="Longest time since the job started, by the facility's clock. Beyond it: RunLimitReached.",
    )
    trouble: Limit | None = Field(
        default=None,
        description="Longest time without an answer from the endpoint or the scheduler. Beyond it: ContactLost.",
    )
    on_limit: Literal["leave", "cancel"] = Field(
        default="leave",
        description="What happens to the job when a limit is reached: it is left alone, or canceled.",
    )


WaitLimits.__module__ = "prefect_psik"  # as for all public classes; the package does not import this module


class LimitWatch:
    """Compares one wait with its limits.

    Args:
        limits: The limits that apply.
        handle: The job's handle, for the error; None: it is not submitted yet.
        clock: Monotonic seconds; tests pass their own.
        subject: The job and its location, if there is no handle.
        queued: How the error describes the wait in the queue.
        ahead: Seconds that the job has already waited for a place in the queue.
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
        """The error for the limit that has been reached, or None."""
        for kind, since, limit in self._running():
            if self._clock() >= since + limit.total_seconds():
                return self._error(kind, limit)
        return None

    def _running(self) -> list[tuple[str, float, timedelta]]:
        """The limits that apply now: kind, since when, how long."""
        phase, since = self._phase
        limit = self._limits.queue if phase == "queue" else self._limits.run
        found = [(phase, since, limit)] if limit is not None else []
        if self._trouble and self._limits.trouble is not None:
            found.append(("trouble", self._trouble[0], self._limits.trouble))
        return found

    def _error(self, kind: str, limit: timedelta) -> WaitLimitReached:
        job = f"{self._subject[:1].upper()}{self._subject[1:]}"
        if kind == "queue":
            return QueueLimitReached(
                f"{job} {self._queued} for more than {_in_words(limit)}.", handle=self._handle
            )
        if kind == "run":
            text = f"{job} has been running for more than {_in_words(limit)}."
            return RunLimitReached(text, handle=self._handle)
        why = f" Last error: {self._trouble[1]}" if self._trouble else ""
        text = f"Nothing has been heard of {self._subject} for more than {_in_words(limit)}.{why}"
        return ContactLost(text, handle=self._handle)


def _in_words(limit: timedelta) -> str:
    """A limit as a person reads it: 30 min, 2 days, 1 min 30 s."""
    minutes, seconds = divmod(limit.total_seconds(), 60)
    words = [in_hours(int(minutes)) if minutes else "", f"{seconds:g} s" if seconds else ""]
    return " ".join(filter(None, words))
