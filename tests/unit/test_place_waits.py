"""The wait for a place in the queue, with a clock of our own."""

from __future__ import annotations

from datetime import timedelta

from prefect_psik.jobs.limits import WaitLimits
from prefect_psik.jobs.place_waits import PlaceWait
from prefect_psik.session.admission import Line, Waiting
from tests.unit.test_limits_retry import Clock

WAITING = Waiting(Line("proj", None, "debug"), "AssocMaxSubmitJobLimit")
ABOUT = ("job 'recon'", "on this machine", "123")


def test_news_after_a_limit_do_not_begin_the_wait_again() -> None:
    clock = Clock()
    wait = PlaceWait(WaitLimits(queue=timedelta(seconds=100)), clock)
    wait.tell(WAITING, *ABOUT)
    clock.now += 101
    assert wait.reached() is not None
    wait.tell(WAITING, *ABOUT)
    assert wait.left() is None
    assert wait.reached() is None, "once"
    clock.now += 9
    wait.end()
    assert wait.seconds == 110
