"""Cases of a job that is refused, that does not start, or whose script cannot begin."""

from __future__ import annotations

import shutil
from pathlib import Path

from prefect_psik import JobState, ResourceSpec
from tests.outcomes.cancels import HELD
from tests.outcomes.case import Seen, case
from tests.outcomes.site import Site
from tests.testbed.slurm_conf import FOREIGN_ACCOUNT, NODES


@case("bad partition", "new", "rejected", says="Invalid partition name")
def bad_partition(site: Site) -> Seen:
    return site.refused("true", at=site.at(queue_name="nope"))


@case("bad account", "new", "rejected", says="Invalid account")
def bad_account(site: Site) -> Seen:
    return site.refused("true", at=site.at(project_name="nosuch"))


@case("account without association", "new", "rejected", says="Invalid account")
def foreign_account(site: Site) -> Seen:
    return site.refused("true", at=site.at(project_name=FOREIGN_ACCOUNT))


@case("impossible node count", "queued", says="PartitionNodeLimit.*ask for fewer")
def too_many_nodes(site: Site) -> Seen:
    resources = ResourceSpec(duration=5, node_count=len(NODES) + 1, exclusive_node_use=False)
    status = site.waiting(site.submit("true", resources=resources))
    assert status.stuck, status
    return site.seen(status, now=True)


@case("partition down", "queued", says="PartitionDown.*queue is down")
def partition_down(site: Site) -> Seen:
    status = site.waiting(site.submit("true", at=site.at(queue_name="off")))
    assert status.stuck, status
    return site.seen(status, now=True)


@case("over the partition's limit", "queued", says="PartitionTimeLimit.*shorter duration")
def over_limit(site: Site) -> Seen:
    status = site.waiting(site.submit("true", resources=ResourceSpec(duration=61, exclusive_node_use=False)))
    assert status.stuck, status
    return site.seen(status, now=True)


@case("exactly at the partition's limit", "completed", exit_code=0, says="^completed$")
def at_limit(site: Site) -> Seen:
    return site.run("true", resources=ResourceSpec(duration=60, exclusive_node_use=False))


@case("held", "queued", says="JobHeldUser.*release it")
def held(site: Site) -> Seen:
    handle = site.submit("true", at=site.at(options=HELD))
    status = site.waiting(handle)
    assert status.stuck, status
    seen = site.seen(status, now=True)
    site.ask("scontrol", "release", str(handle.native_id))
    assert site.wait(handle).state is JobState.completed
    return seen


@case("begin time in the future", "queued", says="BeginTime")
def begins_later(site: Site) -> Seen:
    handle = site.submit("true", at=site.at(options={"--begin": "now+45"}))
    status = site.waiting(handle)
    assert not status.stuck, status
    seen = site.seen(status, now=True)
    assert site.wait(handle).state is JobState.completed
    return seen


@case("deadline", "failed", "deadline", says="deadline")
def deadline(site: Site) -> Seen:
    return site.run(
        "true",
        at=site.at(options={"--begin": "now+60", "--deadline": "now+90"}),
        resources=ResourceSpec(duration=1, exclusive_node_use=False),
    )


@case("Python missing at the node", "failed", "launch", says="no/such/python")
def python_missing(site: Site) -> Seen:
    return site.run("true", at=site.at(psik_python="/no/such/python"))


@case("psik missing at the node", "failed", "launch", says="No module named 'psik'")
def psik_missing(site: Site) -> Seen:
    return site.run("true", at=site.at(psik_python="/usr/bin/python3"))


@case("interpreter of the script missing", "failed", "script", 127, says="interpreter, was not found")
def interpreter_missing(site: Site) -> Seen:
    return site.run("#!/no/such/interpreter\ntrue\n")


@case("job directory deleted while pending", "failed", "lost", says="directory .* no longer exists")
def job_directory_deleted(site: Site) -> Seen:
    handle = site.submit("true", at=site.at(options=HELD))
    shutil.rmtree(handle.path)
    status = site.poll(handle)
    assert not status.state.is_final, f"it is still queued, and not {status.message}"
    site.ask("scontrol", "release", str(handle.native_id))
    return site.end(handle)


@case("work directory deleted while pending", "failed", "launch", says="could not start its script.*/work")
def work_directory_deleted(site: Site) -> Seen:
    handle = site.submit("true", at=site.at(options=HELD))
    (Path(handle.path) / "work").rmdir()
    site.ask("scontrol", "release", str(handle.native_id))
    return site.end(handle)
