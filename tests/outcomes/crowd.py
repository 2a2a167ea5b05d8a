"""The case of many flow processes that wait at the same time, counted at Slurm's controller."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect_psik import JobHandle, ResourceSpec
from tests.outcomes.case import Seen, case
from tests.outcomes.site import Site
from tests.testbed.facility import Facility

PROCESSES = 20
WAIT_SECONDS = 300.0
SQUEUES = 20
#: What `squeue -u USER` asks of slurmctld; nothing else here asks it.
_REQUEST = re.compile(r"REQUEST_JOB_USER_INFO\s*\(\s*\d+\) count:(\d+)")
_START_SECONDS = 150.0


@case("20 flow processes wait for 5 minutes", "completed", exit_code=0, says="completed")
def crowd(site: Site) -> Seen:
    go = site.data / f"go-{time.time_ns()}"
    script = f"until [ -e {go} ]; do sleep 1; done; echo "
    long = ResourceSpec(duration=20, exclusive_node_use=False)
    handles = [site.submit(f"{script}{n}", resources=long) for n in range(PROCESSES)]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="prefect-psik-crowd-")))
        stack.callback(go.touch)
        environment = stack.enter_context(_prefect_server(directory))
        waiters = [_start(stack, handle, directory, n, environment) for n, handle in enumerate(handles)]
        _until(lambda: len(list(directory.glob("ready-*"))) == PROCESSES, "all flows wait")
        before = _squeues(site)
        time.sleep(WAIT_SECONDS)
        calls = _squeues(site) - before
        alive = sum(waiter.poll() is None for waiter in waiters)
        assert alive == PROCESSES, f"only {alive} of them waited for all this time"
        go.touch()
        codes = [waiter.wait(120) for waiter in waiters]
        answers = {_output(directory, n).rpartition("stdout: ")[2].strip() for n in range(PROCESSES)}
    assert codes == [0] * PROCESSES, codes
    assert answers == {str(n) for n in range(PROCESSES)}, answers
    assert calls <= SQUEUES, f"squeue was run {calls} times"
    seen = site.end(handles[0])
    seen.notes.append(f"{calls} squeue calls in {WAIT_SECONDS:.0f} s, by all that looked at this facility")
    return seen


def _squeues(site: Site) -> int:
    found = _REQUEST.search(site.ask("sdiag"))
    return int(found.group(1)) if found else 0


@contextmanager
def _prefect_server(directory: Path) -> Iterator[dict[str, str]]:
    """A Prefect server for all of them; yields the environment of a flow process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PREFECT_HOME": str(directory / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (directory / "server").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}/api"
        _until(lambda: _answers(f"{url}/health"), "the Prefect server answers")
        yield {**environment, **Facility.at().globus.crowd_env(), "PREFECT_API_URL": url}
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def _start(
    stack: ExitStack, handle: JobHandle, directory: Path, number: int, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process whose flow waits for a job; it is ended with the stack."""
    command = [
        sys.executable,
        "-m",
        "tests.outcomes.waiter",
        handle.model_dump_json(),
        str(directory / f"ready-{number}"),
    ]
    with (directory / f"out-{number}").open("wb") as log:
        waiter = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    stack.callback(waiter.wait)
    stack.callback(waiter.kill)
    return waiter


def _output(directory: Path, number: int) -> str:
    return (directory / f"out-{number}").read_text(errors="replace")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {_START_SECONDS:.0f} s"
        time.sleep(0.5)
