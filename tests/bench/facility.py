"""The facility's benchmark: one call's way there and back, and 200 submits, beside their peers in the same run.

Each figure is taken in a process of its own, which prints JSON: `python -m tests.bench.facility NAME N`.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.table import Table

from tests.testbed import packages
from tests.testbed.endpoint import PICKLE_VARIABLE
from tests.testbed.facility import Facility

ROUND_TRIPS = 10
#: psik's own client takes some five minutes; BENCH_QUICK leaves it out.
OTHERS = () if os.environ.get("BENCH_QUICK") else ("psik_globus",)

SUBMITS = 200
_SECONDS = 1800
#: Jobs that begin would take the processors of this one machine from those who submit; at a facility they do not.
HELD = {"--hold": "--hold"}

_PSIK_SUBMITS = """
import asyncio, json, os, sys, time
import psik
from psik.config import Config
from psik.models import BackendConfig, JobSpec, ResourceSpec
prefix, number = sys.argv[1], int(sys.argv[2])
os.makedirs(prefix)
backend = BackendConfig(type="slurm", queue_name="debug", project_name="proj1")
manager = psik.JobManager(Config(prefix=prefix, backends={"default": backend}))
async def one(n):
    resources = ResourceSpec(duration=5, exclusive_node_use=False)
    spec = JobSpec(name=f"job {n}", script="true", resources=resources, attributes={"--hold": "--hold"})
    job = await manager.create(spec)
    await job.submit()
async def main():
    begin = time.monotonic()
    await asyncio.gather(*(one(n) for n in range(number)))
    print(json.dumps({"seconds": time.monotonic() - begin}))
asyncio.run(main())
"""
_SBATCH_LOOP = """
for n in $(seq $1); do
  printf '#!/bin/sh\\ntrue\\n' | sbatch -Q --hold -p debug -A proj1 -t 5 -n 1 -o /dev/null || exit 1
done
"""


def _backend(facility: Facility) -> Any:
    from prefect_psik import BackendAttributes, PsikBackend

    return PsikBackend(
        endpoint_id=UUID(facility.endpoint_id),
        prefix=str(facility.prefix / f"bench-{time.time_ns()}"),
        attributes=BackendAttributes(type="slurm", queue_name="debug", project_name="proj1"),
    )


def ours_round_trip(facility: Facility, number: int) -> list[float]:
    """Warm calls of our transport."""
    from prefect_psik.transport.globus.transport import GlobusTransport

    async def measure() -> list[float]:
        transport = GlobusTransport(UUID(facility.endpoint_id))
        await transport.call("hello", {})
        seconds = []
        for _ in range(number):
            await asyncio.sleep(3)  # the pace of a poll cycle: the request budget is not what is measured
            begin = time.monotonic()
            await transport.call("hello", {})
            seconds.append(time.monotonic() - begin)
        return seconds

    return asyncio.run(measure())


def sdk_round_trip(facility: Facility, number: int) -> list[float]:
    """Warm calls of the SDK's Executor, with the largest budget it takes."""
    from globus_compute_sdk import Client, Executor
    from globus_compute_sdk.serialize import ComputeSerializer, JSONData, PureSourceTextInspect

    client = Client(do_version_check=False)
    serializer = ComputeSerializer(strategy_code=PureSourceTextInspect(), strategy_data=JSONData())  # type: ignore[no-untyped-call]
    function_id = client.register_source_code("def echo(x):\n    return x\n", "echo")
    with Executor(
        facility.endpoint_id,
        client=client,
        serializer=serializer,
        result_serializers=[JSONData],
        api_burst_limit=8,
        api_burst_window_s=4,
    ) as executor:
        executor.submit_to_registered_function(function_id, args=(0,)).result(60)
        seconds = []
        for n in range(number):
            time.sleep(3)
            begin = time.monotonic()
            executor.submit_to_registered_function(function_id, args=(n,)).result(60)
            seconds.append(time.monotonic() - begin)
    return seconds


def ours(facility: Facility, number: int) -> float:
    """Submit jobs from one flow."""
    from prefect import flow

    from prefect_psik import JobSpec, ResourceSpec, asubmit_job

    backend = _backend(facility)
    resources = ResourceSpec(duration=5, exclusive_node_use=False)

    @flow
    async def submit_all() -> int:
        specs = [
            JobSpec(name=f"job {n}", script="true", resources=resources, attributes=HELD) for n in range(number)
        ]
        return len(
            {handle.native_id for handle in await asyncio.gather(*(asubmit_job(backend, s) for s in specs))}
        )

    return _timed(submit_all, number)


def prefect_tasks(facility: Facility, number: int) -> float:
    """Run empty Prefect tasks in one flow."""
    from prefect import flow, task

    @task
    async def empty(n: int) -> int:
        return n

    @flow
    async def run_all() -> int:
        return len(set(await asyncio.gather(*(empty(n) for n in range(number)))))

    return _timed(run_all, number)


def _timed(work: Callable[[], Any], number: int) -> float:
    begin = time.monotonic()
    done = asyncio.run(work())
    seconds = time.monotonic() - begin
    if done != number:
        raise SystemExit(f"{done} of {number} were done.")
    return seconds


def psik_on_the_login_node(facility: Facility, number: int) -> float:
    """Submit through psik's API where Slurm is, all at once."""
    prefix = facility.prefix / f"psik-{time.time_ns()}"
    python = str(packages.endpoint_bin() / "python")
    done = facility.as_user(python, "-c", _PSIK_SUBMITS, str(prefix), str(number))
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def sbatch_loop(facility: Facility, number: int) -> float:
    """Submit with sbatch in a shell loop: the floor."""
    begin = time.monotonic()
    done = facility.as_user("bash", "-c", _SBATCH_LOOP, "loop", str(number))
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.monotonic() - begin


def psik_globus(facility: Facility, number: int) -> float:
    """Submit through psik's own globus backend, as `psik run` does: one after the other."""
    from psik.config import Config
    from psik.manager import JobManager
    from psik.models import BackendConfig, JobSpec, ResourceSpec

    attributes = {"type": "slurm", "queue_name": "debug", "project_name": "proj1"}
    with tempfile.TemporaryDirectory() as prefix:
        backend = BackendConfig(
            type="globus",
            queue_name=facility.endpoint_id,
            project_name=str(facility.prefix / f"psik-globus-{time.time_ns()}"),
            attributes=attributes,
        )
        manager = JobManager(Config(prefix=Path(prefix), backends={"default": backend}))

        async def submit_all() -> float:
            begin = time.monotonic()
            for n in range(number):
                resources = ResourceSpec(duration=5, exclusive_node_use=False)
                held = {"attributes": json.dumps(HELD)}
                spec = JobSpec(name=f"job {n}", script="true", resources=resources, attributes=held)
                job = await manager.create(spec)
                await job.submit()
            return time.monotonic() - begin

        return asyncio.run(submit_all())


FIGURES: dict[str, Callable[[Facility, int], Any]] = {
    function.__name__: function
    for function in (
        ours_round_trip,
        sdk_round_trip,
        ours,
        prefect_tasks,
        psik_on_the_login_node,
        sbatch_loop,
        psik_globus,
    )
}


def _figure(facility: Facility, name: str, number: int, env: dict[str, str]) -> dict[str, Any]:
    """Take one figure in a fresh process, with what it cost at the service."""
    facility.globus.reset_meter()
    facility.globus.forget_peaks()
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.facility", name, str(number)],
        env={**os.environ, **facility.env, **env},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr[-3000:]}")
    if name.startswith("ours") and (over := facility.globus.over_the_limit()):
        raise SystemExit(f"{name} sent more than 20 requests in 10 s: {over}")
    figure: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    _drain(facility)
    return {**figure, "meter": facility.meter()}


def _drain(facility: Facility) -> None:
    """Remove the held jobs, and let the request window pass."""
    facility.slurm.ask("scancel", "-u", facility.user)
    time.sleep(11)


def bench(console: Console) -> None:
    """Take all figures on a testbed of their own and print them with their limits."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    if reason := packages.why_not():
        console.print(f"No figures of the facility: {reason}")
        return
    os.environ[PICKLE_VARIABLE] = "1"
    root = Path(tempfile.gettempdir()) / f"prefect-psik-bench-{os.getuid()}"
    facility = Facility.at(root)
    facility.start()
    try:
        with prefect_test_harness(server_startup_timeout=180):
            env = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_LOGGING_LEVEL": "ERROR"}
            _figure(facility, "ours_round_trip", 1, env)  # starts the user endpoint
            trips = {
                name: _figure(facility, name, ROUND_TRIPS, env) for name in ("sdk_round_trip", "ours_round_trip")
            }
            names = ("sbatch_loop", "psik_on_the_login_node", "prefect_tasks", "ours", *OTHERS)
            submits = {name: _figure(facility, name, SUBMITS, env) for name in names}
    finally:
        facility.stop()
    _print_trips(console, trips)
    _print_submits(console, submits)


def _print_trips(console: Console, trips: dict[str, dict[str, Any]]) -> None:
    table = Table("what", "median s", "requests a call", "threads", title=f"{ROUND_TRIPS} warm round trips")
    for name, figure in trips.items():
        requests = figure["meter"]["requests"] / (ROUND_TRIPS + 1)
        table.add_row(name, f"{figure['value']:.3f}", f"{requests:.1f}", str(figure["threads"]))
    console.print(table)
    ratio = trips["ours_round_trip"]["value"] / trips["sdk_round_trip"]["value"]
    console.print(f"ours / SDK: {ratio:.2f} (limit 1.2: {'ok' if ratio <= 1.2 else 'over'})")


def _print_submits(console: Console, submits: dict[str, dict[str, Any]]) -> None:
    title = f"{SUBMITS} submits"
    table = Table("what", "s", "CPU s", "requests", "bytes in", "bytes out", "threads", title=title)
    for name, figure in submits.items():
        meter = figure["meter"]
        cells = (f"{figure['value']:.2f}", f"{figure['cpu']:.2f}", meter["requests"], meter["bytes_in"])
        table.add_row(name, *(str(cell) for cell in (*cells, meter["bytes_out"], figure["threads"])))
    console.print(table)
    value = {name: figure["value"] for name, figure in submits.items()}
    both = value["ours"] / (value["prefect_tasks"] + value["psik_on_the_login_node"])
    console.print(f"ours / (Prefect tasks + psik on the login node): {both:.2f} (limit 1.5: {_word(both <= 1.5)})")
    if "psik_globus" in value:
        other = value["ours"] / value["psik_globus"]
        console.print(f"ours / psik's globus backend: {other:.3f} (limit 0.1: {_word(other <= 0.1)})")


def _word(good: bool) -> str:
    return "ok" if good else "over"


def _main(name: str, number: int) -> None:
    most = 0

    def watch() -> None:
        nonlocal most
        while True:
            most = max(most, threading.active_count() - 1)
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    root = Path(tempfile.gettempdir()) / f"prefect-psik-bench-{os.getuid()}"
    value = FIGURES[name](Facility.at(root), number)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = statistics.median(value) if isinstance(value, list) else value
    print(json.dumps({"value": seconds, "cpu": usage.ru_utime + usage.ru_stime, "threads": most}))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _main(sys.argv[1], int(sys.argv[2]))
    else:
        bench(Console())
