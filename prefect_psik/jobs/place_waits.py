"""What a waiter does while its submission has no place in the queue: it logs why, and checks its limits."""

from __future__ import annotations

import time
from collections.abc import Callable

from prefect_psik.flow_run.report import run_logger
from prefect_psik.jobs.limits import LimitWatch, WaitLimits
from prefect_psik.jobs.report import emit_job_event, in_words
from prefect_psik.session.admission import Leaving, Waiting
from prefect_psik.session.poller import Update


class PlaceWait:
    """The wait of one submission for a place in the queue.

    Args:
        limits: `queue` and `trouble` apply; `queue` keeps counting once the job is in the queue.
        clock: Monotonic seconds; tests pass their own.

    Attributes:
        seconds: How long the wait took; 0 if there was a place at once.
    """

    def __init__(self, limits: WaitLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = 0.0
        self._why: str | None = None
        self._limits = limits or WaitLimits()
        self._clock = clock
        self._began = 0.0
        self._trouble: str | None = None
        self._watch: LimitWatch | None = None
        self._is_over_limit = False

    @property
    def notes(self) -> list[str]:
        """What the submission waited for, and how long."""
        return [f"a place in the queue of {self._why}, for {in_words(self.seconds)}"] if self._why else []

    def tell(self, waiting: Waiting, job: str, place: str, stamp: str) -> None:
        """Log news: why the submission waits, and the error of the last try.

        Args:
            waiting: The news.
            job: The job, as a person would call it.
            place: The job's location, in words.
            stamp: The job's stamp, for the event.
        """
        why, logger = f"{waiting.line} ({waiting.limit})", run_logger()
        if self._watch is None:
            self._began = self._clock()
            queued = f"has been waiting for a place in the queue of {why}"
            self._watch = LimitWatch(self._limits, None, self._clock, subject=f"{job} on {place}", queued=queued)
        if waiting.trouble:
            logger.warning("%s: no answer, still trying: %s", job, waiting.trouble)
        elif why != self._why:
            logger.info("%s is %s", job, waiting)
            emit_job_event("waiting", stamp, job, {"account": waiting.line.account, "limit": waiting.limit})
        elif self._trouble:
            logger.info("%s: contact restored, still %s", job, waiting)
        self._why, self._trouble = why, waiting.trouble
        self._watch.note(Update(trouble=waiting.trouble))

    def left(self) -> float | None:
        """Seconds until the next limit is reached, not below 0; None: there is none."""
        return self._watch.left() if self._watch and not self._is_over_limit else None

    def reached(self) -> Leaving | None:
        """The errors for the limit that has been reached, once; None if there is none."""
        reached = self._watch.reached() if self._watch and not self._is_over_limit else None
        if reached is None:
            return None
        self._is_over_limit = True
        known = "Nothing was submitted. Submit the job again later, elsewhere, or with a longer limit."
        unknown = (
            "The last try got no answer, so the job may have been submitted. Submit it again with the same key, "
            "as a retry does, to find it or to wait again. Cancel it before you submit it elsewhere."
        )
        return Leaving(type(reached)(f"{reached} {known}"), type(reached)(f"{reached} {unknown}"))

    def end(self) -> None:
        """Note that the wait is over: the job is in the queue, or never will be."""
        if self._why is not None:
            self.seconds = self._clock() - self._began
