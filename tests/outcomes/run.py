"""Runs the cases of one site, side by side: `python -m tests.outcomes.run SITE DIRECTORY RESULTS [CASE …]`."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

from prefect_psik import BackendAttributes, GlobusCredentials, PrefectPsikError, PsikBackend
from tests.outcomes import cancels, crowd, faults, preemption, queues, scripts, starts
from tests.outcomes.case import CASES, Case, Result, differences
from tests.outcomes.site import Site
from tests.testbed.facility import Facility
from tests.testbed.slurm import can_limit_memory, private_slurm
from tests.testbed.state import TestbedError

#: The modules that enter cases into the table, in its order.
MODULES = (scripts, cancels, starts, queues, preemption, faults, crowd)
_ORDER = [module.__name__ for module in MODULES]
PARALLEL = 40
#: What is not done then has failed.
LIMIT_SECONDS = 560.0
#: What may go wrong in a case; it fails that case alone.
FAILURES = (
    AssertionError,
    PrefectPsikError,
    TestbedError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    RuntimeError,
)


def ordered_cases() -> list[Case]:
    """All cases, in the order of the table."""
    return sorted(CASES.values(), key=lambda case: _ORDER.index(case.act.__module__))


@contextmanager
def site(name: str, directory: Path) -> Iterator[Site]:
    """Come to a site: the facility, which runs already, or a Slurm of its own that lives as long as this block."""
    with ExitStack() as stack:
        if name == "facility":
            facility = Facility.from_state()
            stack.enter_context(facility.client())
            yield Site(facility.slurm, _endpoint(facility), facility.data)
            return
        limited = faults.MEMORY_NODE if name == "faults" and can_limit_memory() else None
        slurm = stack.enter_context(
            private_slurm(directory / "slurm", accounting=name != "bare", memory_node=limited)
        )
        os.environ.update(slurm.env)
        if name == "queue":
            commands = directory / "commands"
            commands.mkdir()
            queues.wrap_sbatch(commands)
        place = directory / "jobs"
        place.mkdir(mode=0o755)
        yield Site(slurm, _login_node(place), directory, accounting=name != "bare")


def _endpoint(facility: Facility) -> PsikBackend:
    # Two nodes are left to the cases that take whole ones.
    options = {"--exclude": "n3,n4"}
    return PsikBackend(
        endpoint_id=UUID(facility.endpoint_id),
        prefix=str(facility.prefix),
        attributes=BackendAttributes(
            type="slurm", queue_name="debug", project_name=facility.account, options=options
        ),
        credentials=GlobusCredentials(client_id=UUID(facility.client_id), client_secret=facility.client_secret),
        poll_interval_seconds=5,
    )


def _login_node(prefix: Path) -> PsikBackend:
    """This machine as the login node of a Slurm without an endpoint: SLURM_CONF leads to it."""
    attributes = BackendAttributes(type="slurm", queue_name="debug", project_name="proj1")
    return PsikBackend(prefix=str(prefix), attributes=attributes, poll_interval_seconds=2)


def run(where: Site, cases: list[Case], keep: Callable[[Result], None]) -> None:
    """Run cases, the phases one after the other; each result is kept when it is there."""
    where.chosen = frozenset(case.name for case in cases)
    deadline = time.monotonic() + LIMIT_SECONDS
    for phase in sorted({case.phase for case in cases}):
        pool = ThreadPoolExecutor(PARALLEL)
        running = {pool.submit(_run_one, where, case): case for case in cases if case.phase == phase}
        try:
            for future in as_completed(running, timeout=deadline - time.monotonic()):
                keep(future.result())
        except TimeoutError:
            for future, case in running.items():
                if not future.done():
                    keep(Result(case.name, LIMIT_SECONDS, None, [f"no end within {LIMIT_SECONDS:.0f} s"]))
        pool.shutdown(wait=False)


def _run_one(where: Site, case: Case) -> Result:
    begin = time.monotonic()
    seen = None
    try:
        seen = case.act(where)
        problems = differences(case.expected, seen)
    except FAILURES as err:
        lines = traceback.format_exception(err)[-3:]
        problems = [f"{type(err).__name__}: {err}\n{''.join(lines)}"[:3000]]
    except threading.BrokenBarrierError:
        problems = ["the cases that share its event did not come"]
    print(f"{'FAILED' if problems else 'passed'}  {case.name}", flush=True)
    return Result(case.name, time.monotonic() - begin, seen, problems)


def main(name: str, directory: str, results: str, *chosen: str) -> None:
    """Run the cases of a site and write their results as JSON."""
    cases = [case for case in CASES.values() if case.site == name and (not chosen or case.name in chosen)]
    done: list[Result] = []
    with site(name, Path(directory)) as where:
        run(where, cases, done.append)
        where.tidy()
    Path(results).write_text(json.dumps([asdict(result) for result in done]))


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # a case that hangs must not keep the others' results
