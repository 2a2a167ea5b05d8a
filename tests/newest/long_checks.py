"""What takes longer: the demo, a served schedule, 200 jobs in one flow. Only `make test-newest` runs this file."""

from __future__ import annotations

from uuid import UUID

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun

from tests.integration.local import wait_until
from tests.integration.prefect_services import Services
from tests.newest.flows import JOBS, LONGEST_SECONDS


def test_the_demo(services: Services) -> None:
    child = services.python("-m", "flows.tomography")
    assert child.ends(LONGEST_SECONDS), child.lines()
    assert child.process.returncode == 0, child.lines()
    assert "nrmse" in "\n".join(child.lines()), child.lines()


def test_a_schedule_makes_its_runs(services: Services) -> None:
    services.python("-m", "tests.newest.flows", "serve")
    wait_until(lambda: len(_completed(services)) >= 3, LONGEST_SECONDS)
    services.end_children()


def _completed(services: Services) -> list[FlowRun]:
    """The flow runs that a schedule made, and that completed."""
    with services.client() as client:
        runs = client.read_flow_runs(limit=200)
    return [run for run in runs if run.auto_scheduled and run.state and run.state.is_completed()]


def test_many_jobs_of_one_flow(services: Services) -> None:
    child = services.python("-m", "tests.newest.flows", "jobs")
    assert child.ends(LONGEST_SECONDS), child.lines()[-20:]
    assert child.process.returncode == 0, child.lines()[-20:]
    run = services.newest("many jobs")
    assert services.state(run).is_completed()
    # The server learns of task runs from events, which it may work off after the flow run has ended.
    wait_until(lambda: _states_of_tasks(services, run) == ["Completed"] * JOBS, LONGEST_SECONDS)


def _states_of_tasks(services: Services, flow_run: UUID) -> list[str | None]:
    of_the_flow = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
    with services.client() as client:
        return [task.state_name for task in client.read_task_runs(flow_run_filter=of_the_flow, limit=200)]
