"""Cases of the script's own end, and of what it leaves."""

from __future__ import annotations

import time

from prefect_psik import ResourceSpec
from tests.outcomes.case import Seen, case
from tests.outcomes.site import Site

#: What a result carries of a log.
TAIL_BYTES = 4096


#: Two seconds of a processor, and 200 MB.
BUSY = """#!/usr/bin/python3
import time
held = bytearray(200_000_000)
while time.process_time() < 2:
    pass
"""


@case("success", "completed", exit_code=0, says="^completed$")
def success(site: Site) -> Seen:
    result = site.wait(site.submit(BUSY))
    assert result.nodes == 1, result
    assert result.node_list in ("n1", "n2"), result
    assert result.node_hours is not None
    assert 1.5 / 3600 < result.node_hours < 120 / 3600, result
    if site.accounting and result.cpu_efficiency is not None:  # accounting was in time
        assert 0.1 < result.cpu_efficiency <= 1, result
        assert result.peak_memory is None or result.peak_memory > 150_000_000, result
    return site.seen(result)


@case("exit 3", "failed", "script", 3, says="exit code 3")
def exit_3(site: Site) -> Seen:
    return site.run("exit 3")


@case("killed by a signal", "failed", "script", -9, says="killed by SIGKILL")
def killed(site: Site) -> Seen:
    return site.run("kill -KILL $$")


@case("srun in the middle, exit 5 at the end", "failed", "script", 5, says="exit code 5")
def after_srun(site: Site) -> Seen:
    result = site.wait(site.submit("srun -n1 echo step\necho after\nexit 5"))
    assert result.stdout == "step\nafter\n", result.stdout
    return site.seen(result)


@case("20 MB of stdout", "completed", exit_code=0, says="^completed$")
def much_text(site: Site) -> Seen:
    result = site.wait(site.submit("yes 0123456789 | head -c 20000000\necho; echo end"))
    assert result.stdout.endswith("\nend\n")
    assert len(result.stdout.encode()) <= TAIL_BYTES, len(result.stdout)
    return site.seen(result)


@case("expect missing", "failed", "missing_output", 0, says=r"nothing matches \*\.h5")
def missing_output(site: Site) -> Seen:
    return site.run("echo fine > a.txt", expect=["a.txt", "*.h5"])


@case("clean exit, a child still running", "completed", exit_code=0, says="^completed$")
def child_left(site: Site) -> Seen:
    begin = time.monotonic()
    seen = site.run("sleep 300 &\necho left it")
    assert time.monotonic() - begin < 200, "the job waited for the child"
    return seen


@case("psik's timer (local backend: no Slurm)", "failed", "walltime", says="time limit of 1 min")
def psiks_timer(site: Site) -> Seen:
    local = site.at(type="local", queue_name=None, project_name=None, options=None)
    return site.run("sleep 600", at=local, resources=ResourceSpec(duration=1))


@case("Slurm's time limit", "failed", "walltime", says="Slurm stopped it at its time limit of 1 min")
def time_limit(site: Site) -> Seen:
    return site.run("sleep 600", resources=ResourceSpec(duration=1, exclusive_node_use=False))


@case(
    "stopped at its warning, to be continued", "failed", "walltime", 85, says="SIGUSR1, 30 s before.* be continued"
)
def warned(site: Site) -> Seen:
    return site.run(
        "trap 'echo 1 > checkpoint; exit 85' USR1\nsleep 600 & wait",
        resources=ResourceSpec(duration=2, exclusive_node_use=False),
        warn_before=30,
    )


@case("a signal for the batch shell, no trap", "failed", "script", -10, says="killed by SIGUSR1.* from outside")
def signaled(site: Site) -> Seen:
    handle = site.active(site.submit("sleep 600"))
    site.ask("scancel", "--batch", "--signal=USR1", str(handle.native_id))
    return site.end(handle)


@case("prefix with blanks and unicode", "completed", exit_code=0, says="^completed$")
def odd_prefix(site: Site) -> Seen:
    place = f"{site.backend.prefix}/jobs of größe"
    result = site.wait(site.submit('echo "$PWD"', at=site.at(prefix=place)))
    assert result.stdout == f"{result.handle.path}/work\n", result.stdout
    assert result.handle.path.startswith(place)
    return site.seen(result)
