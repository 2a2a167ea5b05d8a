"""Many jobs of `true` on this machine, beside bare psik and empty Prefect tasks in the same run.

Each figure is taken in a process of its own: `python -m tests.bench.local NAME NUMBER RESULT`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from tests.bench.measure import QUICK, Figure, adopt_orphans, compiled, figure_of, hand_in, medians, timed

NUMBER = 20 if QUICK else 200
REPEATS = 1 if QUICK else 3
_MEGABYTE = 1_000_000
#: A server that takes less of one processor has nothing left to do.
_IDLE = 0.1
_SETTLE_SECONDS = 60.0


def run_jobs(number: int) -> Figure:
    """Run jobs to their end from one flow."""
    from prefect_psik import arun_job

    return _flow_of_jobs(arun_job, number)


def submit_jobs(number: int) -> Figure:
    """Submit jobs from one flow, and wait for none."""
    from prefect_psik import asubmit_job

    return _flow_of_jobs(asubmit_job, number)


def _flow_of_jobs(work: Callable[..., Any], number: int) -> Figure:
    from prefect import flow

    from prefect_psik import JobHandle, JobResult, JobSpec, PsikBackend

    backend = PsikBackend(prefix="$HOME/psik")
    specs = [JobSpec(name=f"true {n}", script="true") for n in range(number)]

    @flow
    async def all_jobs() -> int:
        answers = await asyncio.gather(*(work(backend, spec) for spec in specs))
        handles: list[JobHandle] = [one.handle if isinstance(one, JobResult) else one for one in answers]
        return len({handle.stamp for handle in handles})

    def measured() -> dict[str, float]:
        with counted_calls() as calls:
            _check(asyncio.run(all_jobs()), number)
        return {"calls": calls.total(), **{f"calls of {name}": calls[name] for name in ("submit", "status")}}

    return timed(measured)


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Count the calls that go through the local transport, by operation."""
    from prefect_psik.transport.local import LocalTransport

    calls: Counter[str] = Counter()
    original = LocalTransport.call

    async def call(self: LocalTransport, name: str, *args: Any, **options: Any) -> dict[str, Any]:
        calls[name] += 1
        return await original(self, name, *args, **options)

    LocalTransport.call = call  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        LocalTransport.call = original  # type: ignore[method-assign]


def prefect_tasks(number: int) -> Figure:
    """Run empty Prefect tasks in one flow."""
    from prefect import flow, task

    @task
    async def empty(n: int) -> int:
        return n

    @flow
    async def all_tasks() -> int:
        return len(set(await asyncio.gather(*(empty(n) for n in range(number)))))

    def measured() -> dict[str, float]:
        _check(asyncio.run(all_tasks()), number)
        return {}

    return timed(measured)


def bare_psik(number: int) -> Figure:
    """Submit jobs by psik's own API, and wait until psik has recorded the end of each."""
    from psik.config import Config
    from psik.manager import JobManager
    from psik.models import BackendConfig, JobSpec

    prefix = Path.home() / "psik"
    prefix.mkdir()
    manager = JobManager(Config(prefix=prefix, backends={"default": BackendConfig(type="local")}))

    async def submit_all() -> None:
        for n in range(number):
            job = await manager.create(JobSpec(name=f"true {n}", script="#!/bin/sh\ntrue\n"))
            await job.submit()

    def measured() -> dict[str, float]:
        begin = time.monotonic()
        asyncio.run(submit_all())
        submitted = time.monotonic() - begin
        waiting = set(prefix.glob("*/status.csv"))
        _check(len(waiting), number)
        while waiting := {path for path in waiting if ",completed," not in path.read_text()}:
            time.sleep(0.05)
        return {"submitted": submitted}

    return timed(measured)


def _check(done: int, number: int) -> None:
    if done != number:
        raise SystemExit(f"{done} of {number} were done.")


FIGURES: dict[str, Callable[[int], Figure]] = {
    function.__name__: function for function in (bare_psik, prefect_tasks, submit_jobs, run_jobs)
}
TITLES = {
    "bare_psik": "psik's API: submit, wait",
    "prefect_tasks": "empty Prefect tasks",
    "submit_jobs": "asubmit_job",
    "run_jobs": "arun_job",
}


def bench(console: Console) -> None:
    """Take all figures by turns, beside one Prefect server, and print their medians."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    adopt_orphans()
    figures: dict[str, list[Figure]] = {name: [] for name in FIGURES}
    with tempfile.TemporaryDirectory() as bytecode, prefect_test_harness(server_startup_timeout=180):
        environment = compiled(Path(bytecode)) | {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
        server = psutil.Process().children()
        for name in FIGURES:  # the first ones compile
            _take(name, 2, environment, server)
        for _ in range(REPEATS):
            for name, repeats in figures.items():
                repeats.append(_take(name, NUMBER, environment, server))
    _print(console, {name: medians(repeats) for name, repeats in figures.items()})


def _take(name: str, number: int, environment: dict[str, str], server: list[psutil.Process]) -> Figure:
    before = _cpu(server)
    arguments = ["-m", "tests.bench.local", name, str(number)]
    figure = figure_of(arguments, environment, {process.pid for process in server})
    _settle(server)
    return {**figure, "cpu_server": _cpu(server) - before}


def _settle(server: list[psutil.Process]) -> None:
    """Wait until the server has written what it put off, so that the next figure does not pay for this one."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    quiet = 0
    while quiet < 2 and time.monotonic() < deadline:
        before = _cpu(server)
        time.sleep(1)
        quiet = quiet + 1 if _cpu(server) - before < _IDLE else 0


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _print(console: Console, figures: dict[str, Figure]) -> None:
    title = f"{NUMBER} jobs of `true` on this machine, medians of {REPEATS}; CPU in seconds"
    columns = ("", "wall s", "ms each", "CPU own", "calls", "jobs", "server", "peak MB", "grown", "calls a job")
    table = Table(*columns, title=title)
    for name, figure in figures.items():
        peak = figure["peak"] / _MEGABYTE
        table.add_row(
            *(TITLES[name], f"{figure['seconds']:.2f}", f"{figure['seconds'] / NUMBER * 1000:.0f}"),
            *(f"{figure[cpu]:.1f}" for cpu in ("cpu_own", "cpu_calls", "cpu_jobs", "cpu_server")),
            *(f"{peak:.0f}", f"{peak - figure['resident_before'] / _MEGABYTE:.0f}"),
            f"{figure['calls'] / NUMBER:.3f}" if "calls" in figure else "",
        )
    console.print(table)
    for name in ("submit_jobs", "run_jobs"):
        figure = figures[name]
        parts = ", ".join(f"{figure[f'calls of {call}']:.0f} of {call}" for call in ("submit", "status"))
        console.print(f"{TITLES[name]}: {figure['calls']:.0f} calls, {parts}")
    bare, tasks = figures["bare_psik"], figures["prefect_tasks"]["seconds"]
    console.print(f"psik's API: all submitted after {bare['submitted']:.2f} s")
    for name, part in (("submit_jobs", bare["submitted"]), ("run_jobs", bare["seconds"])):
        ratio = figures[name]["seconds"] / (part + tasks)
        console.print(f"{TITLES[name]} / (the same by psik's API + Prefect tasks): {ratio:.2f} (no limit)")


if __name__ == "__main__":
    _name, _number, _result = sys.argv[1:]
    hand_in(FIGURES[_name](int(_number)), _result)
    # The session's thread and Prefect's are none of the figure.
    sys.stdout.flush()
    os._exit(0)
