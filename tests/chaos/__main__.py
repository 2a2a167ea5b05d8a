"""Inject faults at random into running flows, and compare what was told of their jobs with the truth.

`python -m tests.chaos --seed 1 --faults 100`. The last line has what must be zero.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from uuid import UUID

from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_psik import BackendAttributes, PsikBackend
from tests.chaos import report
from tests.chaos.driver import LOOK_SECONDS, Driver
from tests.chaos.evidence import gather
from tests.chaos.faults import KINDS, Field, Kind, inject
from tests.chaos.flows import BACKEND
from tests.chaos.plan import JOBS_PER_FAULT, rounds, scenarios
from tests.chaos.score import FREE_SECONDS, score
from tests.chaos.services import Services
from tests.testbed import packages
from tests.testbed.facility import Facility
from tests.testbed.small_disk import small_disk

#: Three hundred jobs take a quarter of it.
PREFIX_MEGABYTES = 96
#: From one fault to the next.
PAUSE_SECONDS = (4.0, 12.0)
#: Jobs are begun for so many faults to come, and faults happen for so many whose jobs are yet to run.
AHEAD = 4
#: After the last fault, all flow runs must come to an end within this time.
REST_SECONDS = 600.0
#: Faults that do not bite are begun again, but not for ever.
BEGUN_AT_MOST = 2


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=len(KINDS))
    parser.add_argument("--minutes", type=float, default=60, help="begin nothing after this time; default: 60")
    parser.add_argument(
        "--deadline", type=float, default=90, help="fail unless it is over by then; default: 90 min"
    )
    parser.add_argument("--keep", action="store_true", help="leave the directory of Prefect's logs")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    packages.install()
    begin = time.monotonic()
    print(f"seed {given.seed}, {given.faults} faults", flush=True)
    facility = Facility.at()
    was_down = not facility.daemons.alive()
    try:
        facility.start()
        facility.globus.forget_peaks()
        with _field(facility, keep=given.keep) as field:
            dice = Random(given.seed)
            driver = Driver(field, scenarios(dice, JOBS_PER_FAULT * given.faults))
            kinds = rounds(dice, list(KINDS.values()), given.faults)
            limit, over = begin + 60 * given.minutes, begin + 60 * given.deadline
            cut_short = asyncio.run(_run(field, driver, kinds, dice, limit, over))
            left = min(FREE_SECONDS, over - time.monotonic())
            evidence = gather(field, driver, time.time() + left)
            driver.by_hand["job canceled by flows/reconcile.py"] = field.services.reconciled()
            late = time.monotonic() >= over
            facility.globus.start()
            greedy = facility.globus.over_the_limit()
    finally:
        if was_down:
            facility.stop()
    found = score(evidence)
    happened = Counter(fault.name for fault in evidence.faults)
    lacking = report.lacking(given.faults, happened, found, cut_short=cut_short)
    if greedy:
        lacking.append(f"More than 20 requests were sent in 10 s: {greedy}.")
    if late:
        lacking.append(f"It was not over after {given.deadline:g} min.")
    for name in dict.fromkeys(found.suspects):
        report.show_job(name, evidence)
    report.show(happened, driver.by_hand, [*found.problems, *lacking], found, time.monotonic() - begin)
    return 0 if found.is_clean and not lacking else 1


def _end(signum: int, _frame: object) -> None:
    """Leave as after Ctrl-C, so that all is removed again."""
    raise SystemExit(128 + signum)


@contextmanager
def _field(facility: Facility, *, keep: bool) -> Iterator[Field]:
    """Prefect, and a prefix on a small disk, on a running facility; all of it is removed again."""
    with ExitStack() as stack:
        root = Path(tempfile.mkdtemp(prefix="prefect-psik-chaos-"))
        root.chmod(0o755)
        if keep:
            print(f"logs below {root}", flush=True)
        else:
            stack.callback(shutil.rmtree, root, ignore_errors=True)
        place = facility.prefix / root.name
        prefix = stack.enter_context(small_disk(place, facility.user, megabytes=PREFIX_MEGABYTES))
        services = Services(root, facility.env)
        stack.callback(services.stop)
        services.start()
        stack.enter_context(temporary_settings({PREFECT_API_URL: services.url}))
        backend = PsikBackend(
            endpoint_id=UUID(facility.endpoint_id),
            prefix=str(prefix),
            attributes=BackendAttributes(type="slurm", queue_name="debug", project_name=facility.account),
            poll_interval_seconds=5,
        )
        backend.save(BACKEND, overwrite=True)
        stack.callback(facility.slurm.run, "scancel", f"--user={facility.user}")
        yield Field(facility, services, prefix)


async def _run(field: Field, driver: Driver, kinds: list[Kind], dice: Random, limit: float, over: float) -> bool:
    """Let faults happen while flows run, then let those come to their ends; says whether time was up before."""
    await driver.deploy()
    field.services.start_worker()
    field.services.start_reconciler()
    wanted, ended = len(kinds), threading.Event()
    begun: list[tuple[Kind, Future[bool]]] = []
    with ThreadPoolExecutor(len(KINDS)) as pool:
        try:
            await driver.step(AHEAD * JOBS_PER_FAULT)
            while not any(field.services.flow_processes()) and time.monotonic() < limit:
                await asyncio.sleep(LOOK_SECONDS)
            due = time.monotonic() + PAUSE_SECONDS[1]
            while len(field.faults) < wanted and time.monotonic() < limit:
                failed = [kind for kind, future in begun if future.done() and not future.result()]
                number = len(begun) - len(failed)
                await driver.step((number + AHEAD) * JOBS_PER_FAULT)
                # On a slow machine faults wait for jobs, so that there are enough of them beside each.
                ready = time.monotonic() >= due and driver.jobs_settled >= (number - AHEAD) * JOBS_PER_FAULT
                if ready and number < wanted and len(begun) < BEGUN_AT_MOST * wanted:
                    # What did not bite comes again, last.
                    kind = (kinds + failed)[len(begun)]
                    print(f"{time.strftime('%H:%M:%S')} {number + 1:3} {kind.name}", flush=True)
                    begun.append((kind, pool.submit(inject, kind, field, Random(dice.random()), ended)))
                    due = time.monotonic() + dice.uniform(*PAUSE_SECONDS)
                elif len(begun) == BEGUN_AT_MOST * wanted and all(future.done() for _, future in begun):
                    break
                await asyncio.sleep(LOOK_SECONDS)
            cut_short = time.monotonic() >= limit
            driver.start_no_more(JOBS_PER_FAULT * len(begun))
            rest = min(over, time.monotonic() + REST_SECONDS)
            while not driver.is_done and time.monotonic() < rest:
                await driver.step(sys.maxsize)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            ended.set()
    return cut_short


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    sys.exit(main())
