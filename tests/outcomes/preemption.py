"""Cases of a job whose nodes another takes, and of a scheduler that forgets early."""

from __future__ import annotations

from prefect_psik import JobHandle, ResourceSpec
from tests.outcomes.case import Seen, case
from tests.outcomes.site import Site
from tests.testbed.slurm_conf import CPUS_PER_NODE

WHOLE = ResourceSpec(duration=10, process_count=CPUS_PER_NODE, exclusive_node_use=False)
#: To run on one node, without the other options of the site.
OTHERS = {"n3": "n1,n2,n4", "n4": "n1,n2,n3"}
#: The first start waits to be stopped, the second one ends.
TWICE = "if mkdir first; then echo first; sleep 600; else echo second; fi"


def _preempt(site: Site, handle: JobHandle, node: str) -> None:
    site.active(handle)
    site.submit(
        "true",
        at=site.at(queue_name="high", options={"--exclude": OTHERS[node]}),
        resources=WHOLE,
        name="important",
    )


@case("preempted, with requeue", "completed", exit_code=0, says="^completed$")
def requeued(site: Site) -> Seen:
    options = {"--exclude": OTHERS["n3"], "--requeue": "--requeue"}
    handle = site.submit(TWICE, at=site.at(queue_name="low", options=options), resources=WHOLE)
    _preempt(site, handle, "n3")
    result = site.wait(handle)
    assert result.stdout == "second\n", result.stdout
    assert any("2 times" in warning for warning in result.warnings), result.warnings
    return site.seen(result)


@case("preempted, with cancel", "failed", "preempted", says="higher priority took its nodes n4")
def preempted(site: Site) -> Seen:
    handle = site.submit(
        "sleep 600", at=site.at(queue_name="lowc", options={"--exclude": OTHERS["n4"]}), resources=WHOLE
    )
    _preempt(site, handle, "n4")
    return site.end(handle)


@case("MinJobAge passed before the first poll", "canceled", "canceled_outside", says="user id 0")
def forgotten(site: Site) -> Seen:
    handle = site.submit("true", at=site.at(options={"--hold": "--hold"}))
    site.ask("scancel", str(handle.native_id))
    site.forgotten(handle)
    return site.end(handle)
