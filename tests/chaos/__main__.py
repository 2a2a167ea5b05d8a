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
#: A run of fewer kinds shows nothing.
KINDS_AT_LEAST = 10
#: After the last fault, all flow runs must come to an end within this time.
REST_SECONDS = 600.0


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=len(KINDS))
    parser.add_argument("--minutes", type=float, default=60, help="begin nothing after this time; default: 60")
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
            number = asyncio.run(_run(field, driver, kinds, dice, begin + 60 * given.minutes))
            evidence = gather(field, driver, time.time() + FREE_SECONDS)
            driver.by_hand["job canceled by flows/reconcile.py"] = field.services.reconciled()
            facility.globus.start()
            over = facility.globus.over_the_limit()
    finally:
        if was_down:
            facility.stop()
    found = score(evidence)
    if number < given.faults:
        print(f"\nOnly {number} of {given.faults} faults happened: none was begun after {given.minutes:g} min.")
    if over:
        found.problems.append(f"more than 20 requests were sent in 10 s: {over}")
    happened = Counter(kind.name for kind in kinds[:number])
    report.show(happened, driver.by_hand, found, time.monotonic() - begin)
    return 0 if found.is_clean and not over and len(happened) >= min(KINDS_AT_LEAST, given.faults) else 1


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


async def _run(field: Field, driver: Driver, kinds: list[Kind], dice: Random, limit: float) -> int:
    """Let faults happen while flows run, then let those come to their ends; returns the number of faults."""
    await driver.deploy()
    field.services.start_worker()
    field.services.start_reconciler()
    ended = threading.Event()
    pauses = [dice.uniform(*PAUSE_SECONDS) for _ in kinds]
    own_dice = [Random(dice.random()) for _ in kinds]
    done: list[Future[None]] = []
    with ThreadPoolExecutor(len(KINDS)) as pool:
        try:
            await driver.step(AHEAD * JOBS_PER_FAULT)
            while not any(field.services.flow_processes()):
                await asyncio.sleep(LOOK_SECONDS)
            due = time.monotonic() + PAUSE_SECONDS[1]
            while len(done) < len(kinds) and time.monotonic() < limit:
                await driver.step((len(done) + AHEAD) * JOBS_PER_FAULT)
                # On a slow machine faults wait for jobs, so that there are enough of them beside each.
                if time.monotonic() >= due and driver.jobs_settled >= (len(done) - AHEAD) * JOBS_PER_FAULT:
                    number = len(done)
                    print(f"{time.strftime('%H:%M:%S')} {number + 1:3} {kinds[number].name}", flush=True)
                    done.append(pool.submit(inject, kinds[number], field, own_dice[number], ended))
                    due = time.monotonic() + pauses[number]
                await asyncio.sleep(LOOK_SECONDS)
            if len(done) < len(kinds):
                driver.start_no_more()
            deadline = time.monotonic() + REST_SECONDS
            while not driver.is_done and time.monotonic() < deadline:
                await driver.step(sys.maxsize)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            ended.set()
    for future in done:
        future.result()
    return len(done)


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    sys.exit(main())
