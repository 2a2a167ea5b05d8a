"""Cases of a job that somebody ends, we or others."""

from __future__ import annotations

from prefect_psik import JobState
from tests.outcomes.case import Seen, case
from tests.outcomes.site import Site

HELD = {"--hold": "--hold"}


@case("scancel from outside while pending", "canceled", "canceled_outside", says=r"user id 0, outside of Prefect")
def outside_pending(site: Site) -> Seen:
    handle = site.submit("true", at=site.at(options=HELD))
    site.ask("scancel", str(handle.native_id))
    return site.end(handle)


@case("scancel from outside while running", "canceled", "canceled_outside", says=r"user id 0, outside of Prefect")
def outside_running(site: Site) -> Seen:
    handle = site.active(site.submit("sleep 600"))
    site.ask("scancel", str(handle.native_id))
    return site.end(handle)


@case("our cancel while pending", "canceled", "canceled_by_us", says="on request")
def ours_pending(site: Site) -> Seen:
    return site.seen(site.cancel(site.submit("true", at=site.at(options=HELD))))


@case("our cancel while running", "canceled", "canceled_by_us", says="on request")
def ours_running(site: Site) -> Seen:
    handle = site.active(site.submit("trap '' TERM; sleep 600 & wait"))
    told = site.cancel(handle)
    assert handle.native_id not in site.ask("squeue", "-h", "-t", "R,CG", "-o", "%i").split()
    return site.seen(told)


@case("our cancel after the end", "completed", exit_code=0, says="^completed$")
def ours_late(site: Site) -> Seen:
    handle = site.submit("true")
    assert site.wait(handle).state is JobState.completed
    return site.seen(site.cancel(handle))


@case("our cancel, twice", "canceled", "canceled_by_us", says="on request")
def ours_twice(site: Site) -> Seen:
    handle = site.active(site.submit("sleep 600"))
    assert site.cancel(handle).state is JobState.canceled
    return site.seen(site.cancel(handle))
