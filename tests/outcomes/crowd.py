"""The case of many flow processes that wait at the same time, counted at Slurm's controller."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from prefect_psik import ResourceSpec
from tests.outcomes.case import Seen, case
from tests.outcomes.site import Site
from tests.testbed.facility import Facility
from tests.testbed.state import free_port

PROCESSES = 20
WAIT_SECONDS = 300.0
SQUEUES = 20
#: What `squeue -u USER` asks of slurmctld; nothing else here asks it.
_REQUEST = re.compile(r"REQUEST_JOB_USER_INFO\s*\(\s*\d+\) count:(\d+)")
_START_SECONDS = 150.0
_END_SECONDS = 150.0


@case("20 flow processes wait for 5 minutes", "completed", exit_code=0, says="completed")
def crowd(site: Site) -> Seen:
    go = site.data / f"go-{time.time_ns()}"
    script = f"until [ -e {go} ]; do sleep 1; done; echo "
    long = ResourceSpec(duration=20, exclusive_node_use=False)
    handles = [site.submit(f"{script}{n}", resources=long) for n in range(PROCESSES)]
    with TemporaryDirectory(prefix="prefect-psik-crowd-") as name:
        directory = Path(name)
        (directory / "handles").write_text("".join(f"{handle.model_dump_json()}\n" for handle in handles))
        try:
            calls = _wait_and_count(site, directory, go)
        finally:
            go.touch()
            site.end_children()
    seen = site.end(handles[0])
    seen.notes.append(f"{calls} squeue calls in {WAIT_SECONDS:.0f} s, by all that looked at this facility")
    return seen


def _wait_and_count(site: Site, directory: Path, go: Path) -> int:
    """Have all of them wait, and count squeue; then the jobs end."""
    server, environment = _prefect_server(site, directory)
    _until(lambda: _answers(f"{environment['PREFECT_API_URL']}/health"), "the Prefect server answers")
    crowd = _start(site, directory, "crowd", environment, "-m", "tests.outcomes.waiter", str(directory))
    _until(lambda: len(list(directory.glob("ready-*"))) == PROCESSES, "all flows wait")
    before = _squeues(site)
    time.sleep(WAIT_SECONDS)
    calls = _squeues(site) - before
    assert not list(directory.glob("answer-*")), "not all of them waited for all this time"
    assert server.poll() is None
    go.touch()
    failed = crowd.wait(_END_SECONDS)
    assert failed == 0, "".join((directory / f"out-{n}").read_text()[-500:] for n in range(PROCESSES))[-3000:]
    answers = {(directory / f"answer-{n}").read_text().strip() for n in range(PROCESSES)}
    assert answers == {str(n) for n in range(PROCESSES)}, answers
    return calls


def _squeues(site: Site) -> int:
    found = _REQUEST.search(site.ask("sdiag"))
    return int(found.group(1)) if found else 0


def _prefect_server(site: Site, directory: Path) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """Start a Prefect server for all of them; returns it and the environment of a flow process."""
    port = str(free_port())
    own = {"PREFECT_HOME": str(directory / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment = {**os.environ, **own}
    command = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port)
    server = _start(site, directory, "server", environment, *command)
    url = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    return server, {**environment, **Facility.at().globus.env("crowd"), **url}


def _start(
    site: Site, directory: Path, name: str, environment: dict[str, str], *arguments: str
) -> subprocess.Popen[bytes]:
    """Start a Python that ends with the site."""
    with (directory / name).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    site.children.append(process)
    return process


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {_START_SECONDS:.0f} s"
        time.sleep(0.5)
