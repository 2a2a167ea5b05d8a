"""The flow that compares Slurm's jobs with Prefect's flow runs: it reports, and mends only if told to."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import ArtifactSort
from prefect.runtime import flow_run
from prefect.states import Cancelled, Running

from flows.reconcile import Finding, reconcile
from prefect_psik import JobHandle, PsikBackend, clean_jobs, run_job, submit_job
from prefect_psik.flow_run.cancellation import OnCancel
from tests.integration.places import sleeper
from tests.integration.slurm_view import live
from tests.integration.test_slurm_jobs import backend, client, script
from tests.testbed.facility import Facility

__all__ = ["backend", "client"]

pytestmark = pytest.mark.usefixtures("prefect_server")

AT_ONCE = timedelta(0)


@pytest.fixture
def place(backend: PsikBackend, facility: Facility) -> Iterator[str]:
    """The name of a block with a prefix of its own."""
    name = f"reconcile-{time.time_ns():x}"
    backend.model_copy(update={"prefix": f"{backend.prefix}/{name}"}).save(name)
    yield name
    for native_id in live(facility, name):
        facility.slurm.ask("scancel", native_id)


@pytest.fixture
def api(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as opened:
        yield opened


@flow
def leave_job(place: str, name: str, on_cancel: OnCancel = "cancel") -> tuple[UUID, JobHandle]:
    """Submit a job that nobody waits for."""
    handle = submit_job(place, sleeper(f"{place}-{name}"), key=f"{place}-{name}", on_cancel=on_cancel)
    return UUID(flow_run.id), handle


@flow
def ended_job(place: str, name: str) -> UUID:
    """Run a short job."""
    run_job(place, script("true", f"{place}-{name}"))
    return UUID(flow_run.id)


def left(api: SyncPrefectClient, place: str, name: str, state: State[Any] | None, **options: Any) -> str:
    """A live job whose flow run has this state, or was deleted; returns its stamp."""
    run, handle = leave_job(place, name, **options)
    if state is None:
        api.delete_flow_run(run)
    else:
        api.set_flow_run_state(run, state, force=True)
    return str(handle.stamp)


def by_id(findings: list[Finding]) -> dict[str, str]:
    return {finding.id: finding.why for finding in findings}


def shown(api: SyncPrefectClient) -> dict[str, str]:
    """What the newest table artifact says was done, by id."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["psik-reconcile"]))
    [artifact] = api.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC, limit=1)
    assert artifact.type == "table"
    assert isinstance(artifact.data, str)
    return {row["id"]: row["done"] for row in json.loads(artifact.data)}


def test_jobs_whose_flow_run_is_gone(facility: Facility, api: SyncPrefectClient, place: str) -> None:
    cancelled = left(api, place, "cancelled", Cancelled())
    deleted = left(api, place, "deleted", None)
    left(api, place, "kept", Cancelled(), on_cancel="leave")
    left(api, place, "running", Running())
    left(api, place, "shared", Cancelled())
    left(api, place, "shared", Running())
    found = by_id(reconcile([place]))
    assert found == {cancelled: "its flow run was cancelled", deleted: "its flow run no longer exists"}
    assert len(live(facility, place)) == 5, "it only reports"

    assert shown(api) == {cancelled: "reported", deleted: "reported"}

    mended = {finding.id: finding.done for finding in reconcile([place], cancel=True)}
    assert mended == {cancelled: "canceled", deleted: "canceled"}
    assert shown(api) == mended
    assert len(live(facility, place)) == 3
    assert reconcile([place]) == []


def test_flow_runs_whose_jobs_are_gone(api: SyncPrefectClient, place: str, backend: PsikBackend) -> None:
    waiting = ended_job(place, "ended")
    busy, _ = leave_job(place, "busy")
    elsewhere = f"{place}-elsewhere"
    backend.model_copy(update={"prefix": f"{backend.prefix}/{elsewhere}"}).save(elsewhere)
    unjudged = ended_job(elsewhere, "ended")
    for run in (waiting, busy, unjudged):
        api.set_flow_run_state(run, Running(), force=True)
    assert by_id(reconcile([place])) == {}, "not idle for an hour"

    [found] = reconcile([place], idle=AT_ONCE)
    assert (found.id, found.done) == (str(waiting), "reported")
    assert "all of its 1 jobs have ended" in found.why
    assert api.read_flow_run(waiting).state_name == "Running"
    assert shown(api) == {str(waiting): "reported"}

    [closed] = reconcile([place], close=True, idle=AT_ONCE)
    assert (closed.id, closed.done) == (str(waiting), "closed as Crashed")
    states = [api.read_flow_run(run).state_name for run in (waiting, busy, unjudged)]
    assert states == ["Crashed", "Running", "Running"]
    assert shown(api) == {str(waiting): "closed as Crashed"}


def test_a_flow_run_whose_jobs_were_removed(api: SyncPrefectClient, place: str) -> None:
    waiting = ended_job(place, "removed")
    api.set_flow_run_state(waiting, Running(), force=True)
    [_] = clean_jobs(place, older_than=timedelta(0))
    [found] = reconcile([place], idle=AT_ONCE)
    assert (found.id, found.done) == (str(waiting), "reported")
    assert "its jobs no longer exist" in found.why
    assert shown(api) == {str(waiting): "reported"}
