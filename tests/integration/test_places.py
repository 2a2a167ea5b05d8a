"""Cancel and crash told apart in every place where a task can wait: a table whose rows are run side by side.

A cancel through the API ends the Slurm jobs and the flow run. A crash, Ctrl-C or a redeploy leaves the jobs, and
what waits there next finds them again.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import psutil
import pytest
from prefect import flow
from prefect.client.schemas.objects import StateType

from flows.reconcile import reconcile
from prefect_psik import PsikBackend, asubmit_job, await_for_job, submit_job, wait_for_job
from prefect_psik.flow_run.cancellation import OnCancel
from tests.integration.local import wait_until
from tests.integration.places import JOBS, PLACES, WORKED, sleeper
from tests.integration.prefect_services import POOL, Child, Services, kill_all
from tests.integration.slurm_view import accounted, lines_of, live, wait_running
from tests.testbed.facility import Facility

#: How each place dies as a script: in the main thread, on an event loop and in a thread each signal comes once,
#: but for SIGTERM in the main thread, which a worker's processes have.
SCRIPT_DIES_BY = {
    "direct": signal.SIGKILL,
    "nested": signal.SIGINT,
    "awaited": signal.SIGTERM,
    "anested": signal.SIGKILL,
    "gathered": signal.SIGINT,
    "submitted": signal.SIGTERM,
    "asubmitted": signal.SIGINT,
    "mapped": signal.SIGKILL,
}
#: How those that a worker runs die there.
WORKED_DIES_BY = {
    "direct": signal.SIGTERM,
    "awaited": signal.SIGKILL,
    "anested": signal.SIGTERM,
    "submitted": signal.SIGTERM,
}
#: Of each kind one: jobs that a cancel is to leave are left by the same lines everywhere.
LEAVING = ("direct", "awaited", "mapped")
#: Longer than a cancel takes until Slurm has it: what still runs then was left.
LEFT_SECONDS = 8.0
#: A table's fixture starts up to 16 processes.
pytestmark = pytest.mark.timeout(900)


def has_process(worker: Child, run: UUID) -> bool:
    """Whether a process of a flow run lives."""
    for process in worker.descendants():
        with suppress(psutil.NoSuchProcess):
            if process.environ().get("PREFECT__FLOW_RUN_ID") == str(run):
                return True
    return False


@pytest.fixture(scope="module")
def once() -> str:
    """In all names and keys: no job of the facility ever had them, not even in a first run of these tests."""
    return f"{time.time_ns():x}"


@dataclass(frozen=True)
class Row:
    """The Slurm jobs of one place before and after, by native id, and how its flow run ended."""

    before: dict[str, str]
    after: dict[str, str]
    state: StateType | None = None


Table = dict[tuple[str, str], Row]


def names_of(place: str, tag: str, once: str) -> list[str]:
    """The names of the jobs of a place."""
    name = f"{tag}-{once}-{place}"
    return [name] if JOBS[place] == 1 else [f"{name}-{number}" for number in range(JOBS[place])]


def jobs_of(facility: Facility, tag: str, once: str) -> dict[str, dict[str, str]]:
    """The live jobs of all places."""
    return {place: live(facility, f"{tag}-{once}-{place}") for place in PLACES}


def told(log: Iterable[str], jobs: int) -> bool:
    """Whether so many jobs were submitted or found again, by the log of what waits for them."""
    return sum(" submitted on " in line or " found again on " in line for line in log) >= jobs


def wait_for(condition: Callable[[str], bool], places: Iterable[str]) -> None:
    """Wait until a condition holds for all of these places."""
    for place in places:
        wait_until(lambda place=place: condition(place), 300)  # type: ignore[misc]


def cancel_all(
    facility: Facility,
    services: Services,
    runs: dict[str, UUID],
    tag: str,
    once: str,
    on_cancel: OnCancel = "cancel",
) -> Table:
    """Cancel the flow runs of all places through the API."""
    before = jobs_of(facility, tag, once)
    for run in runs.values():
        services.cancel(run)
    for run in runs.values():
        wait_until(lambda run=run: services.state(run).is_final(), 300)  # type: ignore[misc]
    if on_cancel == "cancel":  # they were asked to end, and may take their time
        wait_until(lambda: not any(jobs_of(facility, tag, once).values()))
    after = jobs_of(facility, tag, once)
    return {
        ("cancel", place): Row(before[place], after[place], services.state(run).type)
        for place, run in runs.items()
    }


@pytest.fixture(scope="module")
def block(services: Services, block: str) -> str:
    """The facility, looked at seldom: as many processes as here share the requests that Globus allows a login."""
    with services.api():
        found = PsikBackend.load(block)
        assert isinstance(found, PsikBackend)
        found.model_copy(update={"poll_interval_seconds": 20.0}).save("patient", overwrite=True)
    return "patient"


# --------------------------------------------------------------------------------- scripts without a runner


@pytest.fixture(scope="module")
def scripts(facility: Facility, services: Services, block: str, once: str) -> Table:
    """Run each place as a script, twice with the same keys: killed or interrupted, then cancelled."""
    services.end_children()  # those of a first run

    def start() -> dict[str, Child]:
        command = "tests/integration/places.py"
        children = {place: services.python(command, place, block, f"script-{once}") for place in PLACES}
        wait_for(lambda place: told(children[place].lines(), JOBS[place]), PLACES)
        wait_running(facility, f"script-{once}", sum(JOBS.values()))
        return children

    children = start()
    before = jobs_of(facility, "script", once)
    for place, child in children.items():
        child.signal(SCRIPT_DIES_BY[place])
    time.sleep(LEFT_SECONDS)
    for child in children.values():
        child.kill()
    after = jobs_of(facility, "script", once)
    rows: Table = {("crash", place): Row(before[place], after[place]) for place in PLACES}
    children = start()
    rows |= cancel_all(facility, services, {place: services.newest(place) for place in PLACES}, "script", once)
    assert all(child.ends(180) for child in children.values())
    return rows


@pytest.mark.parametrize("place", PLACES)
def test_a_script_that_is_killed_leaves_its_jobs(scripts: Table, place: str) -> None:
    row = scripts["crash", place]
    assert row.before == row.after
    assert len(row.after) == JOBS[place]
    assert row.before.keys() == scripts["cancel", place].before.keys(), "the next one found them again"


@pytest.mark.parametrize("place", PLACES)
def test_a_script_that_is_cancelled_ends_its_jobs(
    facility: Facility, scripts: Table, place: str, once: str
) -> None:
    row = scripts["cancel", place]
    assert row.after == {}
    # No runner decides on this flow run: the engine's end and ours race. It is never stuck.
    assert row.state in (StateType.CANCELLED, StateType.FAILED)
    for name in names_of(place, "script", once):
        [state] = accounted(facility, name).values()
        assert state.startswith("CANCELLED")
        assert len(lines_of(facility, name)) == 1


def test_a_script_that_is_cancelled_ends_also_the_jobs_that_it_does_not_wait_for_yet(
    facility: Facility, services: Services, block: str, once: str
) -> None:
    tag = f"several-{once}"
    child = services.python("tests/integration/places.py", "several", block, tag)
    wait_running(facility, tag, 3)
    run = services.newest("several")
    services.cancel(run)
    assert child.ends(120)
    assert services.state(run).is_final()
    assert live(facility, tag) == {}


# -------------------------------------------------------------------------------------------------- serve()


@pytest.fixture(scope="module")
def serving(services: Services) -> Iterator[Child]:
    """A process that serves all places."""
    child = services.python("tests/integration/places.py", "serve")
    try:
        wait_until(lambda: services.deployed("crowd/served"), 180)
        yield child
    finally:
        child.kill()


@pytest.fixture(scope="module")
def served(facility: Facility, services: Services, serving: Child, block: str, once: str) -> Table:
    """Cancel a flow run of each place that is served; and of some one that asked to leave its jobs."""
    rows: Table = {}
    rounds: dict[OnCancel, tuple[str, ...]] = {"cancel": tuple(PLACES), "leave": LEAVING}
    # One after the other: all of them share the requests that Globus allows a login.
    jobs = 0
    for on_cancel, places in rounds.items():
        tag = {"cancel": "served", "leave": "leave"}[on_cancel]
        runs = {
            place: services.run_deployment(
                f"{place}/served", backend=block, tag=f"{tag}-{once}", on_cancel=on_cancel
            )
            for place in places
        }
        own = sum(JOBS[place] for place in places)
        wait_until(lambda jobs=jobs + own: told(serving.lines(), jobs), 300)  # type: ignore[misc]
        wait_running(facility, f"{tag}-{once}", own, 300)
        jobs += own
        cancelled = cancel_all(facility, services, runs, tag, once, on_cancel)
        rows |= {(on_cancel, place): row for (_, place), row in cancelled.items()}
    return rows


@pytest.mark.parametrize("place", PLACES)
def test_a_served_flow_run_that_is_cancelled_ends_its_jobs(
    facility: Facility, served: Table, place: str, once: str
) -> None:
    row = served["cancel", place]
    assert len(row.before) == JOBS[place]
    assert row.after == {}
    assert row.state is StateType.CANCELLED
    for name in names_of(place, "served", once):
        [state] = accounted(facility, name).values()
        assert state.startswith("CANCELLED")


@pytest.mark.parametrize("place", LEAVING)
def test_jobs_that_a_cancel_is_to_leave_go_on(served: Table, place: str) -> None:
    row = served["leave", place]
    assert len(row.before) == JOBS[place]
    assert row.after == row.before
    assert row.state is StateType.CANCELLED


# ----------------------------------------------------------------------------------------- a process worker


@pytest.fixture(scope="module")
def worker(services: Services) -> Iterator[Child]:
    """A process worker with deployments of some places."""
    deploying = services.python("tests/integration/places.py", "deploy", POOL)
    assert deploying.ends(300)
    child = services.worker()
    yield child
    child.kill()


@pytest.fixture(scope="module")
def worked(facility: Facility, services: Services, worker: Child, block: str, once: str) -> Table:
    """Run one place of each kind on a process worker: the processes are killed and retried, then cancelled."""
    runs = {
        place: services.run_deployment(f"{place}/worked", backend=block, tag=f"worked-{once}") for place in WORKED
    }
    jobs = sum(JOBS[place] for place in WORKED)
    rows: Table = {}

    def goes_on(times: int) -> bool:
        """Whether all wait; a worker may tell of one crash twice, which undoes a retry of the first time."""
        for run in runs.values():
            if services.state(run).is_crashed() and not has_process(worker, run):
                services.retry(run)
        return told(worker.lines(), times * jobs)

    wait_until(lambda: goes_on(1), 300)
    wait_running(facility, f"worked-{once}", jobs)
    before = jobs_of(facility, "worked", once)
    flows = worker.descendants()
    places = {str(run): place for place, run in runs.items()}
    for process in flows:
        with suppress(psutil.NoSuchProcess):
            place = places.get(process.environ().get("PREFECT__FLOW_RUN_ID", ""), "")
            process.send_signal(WORKED_DIES_BY.get(place, signal.SIGKILL))
    time.sleep(LEFT_SECONDS)
    psutil.wait_procs(flows, 60)
    kill_all(flows)
    wait_for(lambda place: services.state(runs[place]).is_final(), runs)
    after = jobs_of(facility, "worked", once)
    rows |= {
        ("crash", place): Row(before[place], after[place], services.state(run).type) for place, run in runs.items()
    }
    for run in runs.values():
        services.retry(run)
    wait_until(lambda: goes_on(2), 300)
    rows |= cancel_all(facility, services, runs, "worked", once)
    return rows


@pytest.mark.parametrize("place", WORKED)
def test_a_workers_flow_process_that_is_killed_leaves_its_jobs(worked: Table, place: str) -> None:
    row = worked["crash", place]
    assert len(row.before) == JOBS[place]
    assert row.after == row.before
    assert row.state is StateType.CRASHED
    assert row.before.keys() == worked["cancel", place].before.keys(), "the retry found them again"


@pytest.mark.parametrize("place", WORKED)
def test_a_workers_flow_run_that_is_cancelled_ends_its_jobs(
    facility: Facility, worked: Table, place: str, once: str
) -> None:
    row = worked["cancel", place]
    assert row.after == {}
    assert row.state is StateType.CANCELLED
    for name in names_of(place, "worked", once):
        [state] = accounted(facility, name).values()
        assert state.startswith("CANCELLED")
        assert len(lines_of(facility, name)) == 1


# ------------------------------------------------------------------- the hook, suspend and resume, time-outs


@pytest.mark.parametrize("by", ["served", "worked"])
def test_a_job_that_nobody_waits_for_is_ended_by_the_hook_unless_it_is_to_be_left(
    request: pytest.FixtureRequest, facility: Facility, services: Services, block: str, by: str, once: str
) -> None:
    names: dict[str, OnCancel] = {f"hook-{once}-{by}": "cancel", f"left-{once}-{by}": "leave"}
    request.getfixturevalue({"served": "serving", "worked": "worker"}[by])
    runs = {
        name: services.run_deployment(f"forgetful/{by}", backend=block, tag=name, on_cancel=on_cancel)
        for name, on_cancel in names.items()
    }
    before = {name: wait_running(facility, name) for name in runs}
    for run in runs.values():
        services.cancel(run)
    for run in runs.values():
        wait_until(lambda run=run: services.state(run).is_final(), 120)  # type: ignore[misc]
        assert services.state(run).type is StateType.CANCELLED
    time.sleep(LEFT_SECONDS)
    gone, left = names
    assert live(facility, gone) == {}
    assert live(facility, left) == before[left]


def test_a_flow_run_that_is_suspended_and_resumed_finds_its_job_again(
    facility: Facility, services: Services, block: str, serving: Child, once: str
) -> None:
    tag = f"suspend-{once}"
    run = services.run_deployment("suspended/served", backend=block, tag=tag)
    wait_until(lambda: services.state(run).is_paused(), 180)
    running = wait_running(facility, tag)
    time.sleep(LEFT_SECONDS)
    assert live(facility, tag) == running
    services.resume(run)
    # The first process did not wait for it: what tells that it is active is the second one, waiting.
    wait_until(lambda: any(" is active" in line for line in services.logs(run)))
    assert any(" found again on " in line for line in services.logs(run))
    assert live(facility, tag) == running
    services.cancel(run)
    wait_until(lambda: services.state(run).is_final())
    assert services.state(run).type is StateType.CANCELLED
    wait_until(lambda: live(facility, tag) == {})
    assert len(lines_of(facility, f"{tag}-suspended")) == 1


def test_a_cancel_while_suspended_leaves_the_job_to_reconcile(
    facility: Facility, services: Services, block: str, serving: Child, once: str
) -> None:
    """Prefect sets such a flow run to Cancelled at once: no process of it waits, and no hook is called."""
    tag, own = f"unresumed-{once}", f"suspended-{once}"
    with services.api():
        found = PsikBackend.load(block)
        assert isinstance(found, PsikBackend)
        found.model_copy(update={"prefix": f"{facility.prefix}/{own}"}).save(own)
    run = services.run_deployment("suspended/served", backend=own, tag=tag)
    wait_until(lambda: services.state(run).is_paused(), 180)
    running = wait_running(facility, tag)
    services.cancel(run)
    wait_until(lambda: services.state(run).is_cancelled(), 60)
    time.sleep(LEFT_SECONDS)
    with services.api(), facility.client():
        [reported] = reconcile([own])
        assert (reported.why, reported.done) == ("its flow run was cancelled", "reported")
        assert live(facility, tag) == running
        [mended] = reconcile([own], cancel=True)
    assert (mended.id, mended.done) == (reported.id, "canceled")
    assert live(facility, tag) == {}


@pytest.mark.parametrize("how", ["direct", "submitted"])
def test_a_sync_tasks_own_timeout_leaves_the_job(
    facility: Facility, services: Services, block: str, how: str, once: str
) -> None:
    name = f"timeout-{once}-{how}"

    @flow
    def impatient() -> None:
        handle = submit_job(block, sleeper(name))
        wait = wait_for_job.with_options(timeout_seconds=3)
        if how == "direct":
            wait(handle)
        else:
            wait.submit(handle).result()

    with services.api(), facility.client():
        assert impatient(return_state=True).is_failed()
    wait_running(facility, name)


async def test_an_async_tasks_own_timeout_leaves_the_job(
    facility: Facility, services: Services, block: str, once: str
) -> None:
    name = f"timeout-{once}-awaited"

    @flow
    async def impatient() -> None:
        handle = await asubmit_job(block, sleeper(name))
        await await_for_job.with_options(timeout_seconds=3)(handle)

    with services.api(), facility.client():
        state = await impatient(return_state=True)
        assert state.is_failed()
    await asyncio.to_thread(wait_running, facility, name)
