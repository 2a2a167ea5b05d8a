"""Cases of a queue that does not take a job now, or not in this form; the site has a Slurm of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import threading
import time
from pathlib import Path

from prefect_psik import JobState, ResourceSpec
from tests.outcomes.cancels import HELD
from tests.outcomes.case import Seen, case
from tests.outcomes.site import Site
from tests.testbed.slurm_conf import BRIEF_QOS, CLOSED_ACCOUNT, LIMITED_ACCOUNT, SUBMIT_LIMIT

#: Jobs of this name are submitted by an sbatch that names the cluster behind the id.
FOREIGN = "nautilus"
#: For so long nobody makes room in the queue.
FULL_SECONDS = 8.0
_SBATCH = """\
#!/bin/bash
said=$({sbatch} "$@") || exit
case "$*" in *{name}*) echo "$said on cluster {name}" ;; *) echo "$said" ;; esac
"""


def wrap_sbatch(directory: Path) -> None:
    """Put an sbatch as some sites have it first on the PATH of this process."""
    path = directory / "sbatch"
    path.write_text(_SBATCH.format(sbatch=shlex.quote(str(shutil.which("sbatch"))), name=FOREIGN))
    path.chmod(0o755)
    os.environ["PATH"] = f"{directory}:{os.environ['PATH']}"


@case("usage error", "new", "rejected", says="unrecognized option '--gpu-per-node=4'", site="queue")
def usage_error(site: Site) -> Seen:
    return site.refused("true", attributes={"--gpu-per-node": "4"})


@case("submit limit of the account", "completed", exit_code=0, says="^completed$", site="queue")
def submit_limit(site: Site) -> Seen:
    limited = site.at(project_name=LIMITED_ACCOUNT)
    held = [
        site.submit("true", at=site.at(project_name=LIMITED_ACCOUNT, options=HELD)) for _ in range(SUBMIT_LIMIT)
    ]
    begin = time.monotonic()
    threading.Timer(FULL_SECONDS, site.ask, ("scancel", str(held[0].native_id))).start()
    seen = site.run("true", at=limited)
    assert time.monotonic() - begin > FULL_SECONDS, "it did not wait for a place"
    for handle in held[1:]:
        site.cancel(handle)
    return seen


@case("submit limit of 0", "new", "rejected", says="AssocMaxSubmitJobLimit is 0, so waiting", site="queue")
def closed_account(site: Site) -> Seen:
    return site.refused("true", at=site.at(project_name=CLOSED_ACCOUNT))


@case("limit of one job's time", "new", "rejected", says="QOSMaxWallDurationPerJobLimit", site="queue")
def brief_qos(site: Site) -> Seen:
    resources = ResourceSpec(duration=10, exclusive_node_use=False)
    return site.refused("true", at=site.at(options={"--qos": BRIEF_QOS}), resources=resources)


@case("foreign cluster name", "canceled", "canceled_by_us", says="on request", site="queue")
def foreign_cluster(site: Site) -> Seen:
    handle = site.submit("true", name=FOREIGN, at=site.at(options=HELD))
    assert str(handle.native_id) in site.ask("squeue", "-h", "-n", FOREIGN, "-o", "%i").split(), handle
    return site.seen(site.cancel(handle))


@case(
    "maintenance",
    "queued",
    says=(
        r"before the maintenance that starts \d+ \w+ \d\d:\d\d .+; "
        r"with a duration of at most 2\d min it could start now"
    ),
    site="queue",
    phase=1,
)
def maintenance(site: Site) -> Seen:
    what = ("starttime=now+30minutes", "duration=60", "users=root", "flags=maint,ignore_jobs", "nodes=ALL")
    site.ask("scontrol", "create", "reservation", "reservationname=service", *what)
    long = ResourceSpec(duration=45, exclusive_node_use=False)
    handle = site.submit("true", resources=long)
    status = site.until(handle, lambda status: "maintenance that starts" in (status.reason or ""))
    assert not status.stuck, status
    seen = site.seen(status, now=True)
    shorter = ResourceSpec(duration=20, exclusive_node_use=False)
    assert site.wait(site.submit("true", resources=shorter)).state is JobState.completed, (
        "it said that it could start"
    )
    site.ask("scontrol", "delete", "reservationname=service")
    assert site.wait(handle).state is JobState.completed
    return seen
