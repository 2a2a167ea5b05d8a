"""Submissions as a task makes them: what is at the facility, what is noted, and what an interrupt leaves."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from prefect_psik import (
    BackendAttributes,
    BackendClosed,
    ContactLost,
    FlowRunCancelling,
    JobHandle,
    JobSpec,
    QueueLimitReached,
    SpecError,
    WaitLimits,
)
from prefect_psik.blocks import PsikBackend
from prefect_psik.flow_run import cancellation
from prefect_psik.flow_run.labels import Place
from prefect_psik.jobs import submit as submissions
from prefect_psik.jobs.lifecycle import Again, Submitted
from prefect_psik.jobs.place_waits import PlaceWait
from prefect_psik.jobs.submit import Sending, Submission, asubmit, submit
from prefect_psik.session import admission
from prefect_psik.session import batcher as batches
from prefect_psik.session.admission import Ticket, Waiting
from prefect_psik.session.session import Session
from prefect_psik.spec.retry import Asked
from tests.unit.test_lifecycle import FIRST, SECOND, SPEC, Facility

FLOW_RUNS = ["root", "child"]
JOB = Submission(PsikBackend(), SPEC, FIRST, "on_retry", "cancel", FLOW_RUNS)
LEFT = replace(JOB, on_cancel="leave")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Facility:
    """What every block leads to."""
    found = Facility()
    monkeypatch.setattr(PsikBackend, "get_transport", lambda block: found)
    return found


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The flow runs that are marked, with the prefix; the second one cannot be."""
    found: list[tuple[str, str]] = []

    async def mark(flow_runs: list[str], place: Place) -> list[str]:
        found.extend((flow_run, place.prefix) for flow_run in flow_runs)
        return ["could not be marked"] if len(flow_runs) > 1 else []

    monkeypatch.setattr(submissions, "mark", mark)
    return found


@pytest.fixture
def cancelling(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The flow runs that Prefect says are being cancelled."""
    found: set[str] = set()

    async def is_cancelling(flow_runs: tuple[str, ...]) -> bool:
        return bool(found.intersection(flow_runs))

    monkeypatch.setattr(cancellation, "is_cancelling", is_cancelling)
    monkeypatch.setattr(cancellation, "_submitted", {})
    return found


pytestmark = pytest.mark.usefixtures("marked", "cancelling")


def test_a_job_is_submitted_once_and_noted_for_a_cancel(
    place: Facility, marked: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    place.warnings = ["slow partition"]
    with caplog.at_level(logging.INFO):
        handle = submit(JOB)
        assert submit(JOB) == handle
    assert len(place.runs["123"]) == 1
    assert place.runs["123"][0]["owner"] == cancellation.owner_of(FLOW_RUNS)
    assert marked[:2] == [(flow_run, JOB.block.prefix) for flow_run in FLOW_RUNS]
    assert [set(cancellation._submitted[flow_run]) for flow_run in FLOW_RUNS] == [{("123", 1)}] * 2
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told[0][1].endswith("submitted on this machine: /psik/123")
    assert told[1:3] == [
        ("WARNING", f"{handle}: could not be marked"),
        ("WARNING", f"{handle}: slow partition"),
    ]
    assert "found again" in told[3][1]
    assert JobHandle.model_validate_json(vars(caplog.records[0])["psik_handle"]) == handle


def test_a_job_that_a_cancel_leaves_is_noted_nowhere(place: Facility, marked: list[tuple[str, str]]) -> None:
    submit(LEFT)
    assert place.runs["123"][0]["owner"]["flow_runs"] == []
    assert (marked, cancellation._submitted) == ([], {})


@pytest.mark.parametrize(("rerun", "runs"), [("on_retry", 2), ("never", 1)])
def test_a_retry_runs_a_failed_job_again_unless_it_is_not_to(place: Facility, rerun: Any, runs: int) -> None:
    place.end = "failed,3"
    submit(JOB)
    submit(replace(JOB, identity=SECOND, rerun=rerun))
    assert len(place.runs["123"]) == runs


async def test_the_async_twin_and_another_run(place: Facility) -> None:
    await asubmit(JOB)
    handle = await asubmit(JOB, Again(after=1, number=1, asked=Asked(10, None)))
    assert (handle.jobndx, handle.duration) == (2, 10)


def test_nothing_is_submitted_for_a_flow_run_that_is_cancelled(
    place: Facility, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "_cancelling", {"root"})
    with pytest.raises(FlowRunCancelling):
        submit(JOB)
    assert place.runs == {}


@pytest.mark.parametrize(
    ("job", "created", "is_own", "is_cancelled", "canceled"),
    [
        (JOB, True, True, True, True),
        (JOB, True, False, True, True),
        (JOB, False, True, True, True),
        (JOB, False, False, True, False),  # a key of the user's: others may wait for it
        (JOB, True, True, False, False),
        (LEFT, True, True, True, False),
    ],
)
def test_an_interrupt_cancels_only_a_job_of_ours_of_a_flow_run_that_is_cancelled(
    place: Facility,
    cancelling: set[str],
    job: Submission,
    created: bool,
    is_own: bool,
    is_cancelled: bool,
    canceled: bool,
) -> None:
    if is_cancelled:
        cancelling.add("root")
    submission: Future[Submitted] = Future()
    submission.set_result(Submitted(JobHandle(prefix="/psik", stamp="123", key="k"), created, []))
    replace(job, identity=replace(FIRST, is_own=is_own)).interrupted(Sending(submission, Ticket())).result(60)
    assert place.canceled == ([("123", 1, cancellation.owner_of(FLOW_RUNS))] if canceled else [])


def test_a_job_that_comes_of_an_interrupted_submission_is_canceled(
    place: Facility, cancelling: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelling.add("root")

    def interrupted(future: Future[object], within: float | None = None) -> Submitted:
        raise KeyboardInterrupt

    monkeypatch.setattr(submissions, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit(JOB)
    assert [stamp for stamp, *_ in place.canceled] == ["123"]


async def test_a_job_that_comes_of_a_cancelled_task_is_canceled(place: Facility, cancelling: set[str]) -> None:
    cancelling.add("root")
    task = asyncio.create_task(asubmit(JOB))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [stamp for stamp, *_ in place.canceled] == ["123"]


# ------------------------------------------------------------------------------------------ a full queue


@pytest.fixture
def full(place: Facility, monkeypatch: pytest.MonkeyPatch) -> Facility:
    """A facility whose queue takes no jobs until `place.end` says so."""
    monkeypatch.setattr(admission, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(cancellation, "watch", lambda wait: None)  # no server is asked here
    real = place._submit

    def submit(job: dict[str, Any]) -> dict[str, Any]:
        if place.end == "open":
            return real(job)
        return {"error": {"kind": "full", "message": "No place.", "limit": "AssocMaxSubmitJobLimit"}}

    monkeypatch.setattr(place, "_submit", submit)
    return place


SLURM = PsikBackend(attributes=BackendAttributes(type="slurm", project_name="proj"))
WAITING = replace(JOB, block=SLURM)
SAID = "job 'recon' is waiting for a place in the queue of account proj (AssocMaxSubmitJobLimit)"


def waits(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.getMessage() == SAID for record in caplog.records)


async def test_a_full_queue_is_waited_for_and_told_once(full: Facility, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="prefect_psik")
    wait = PlaceWait()
    task = asyncio.create_task(asubmit(WAITING, wait=wait))
    async with asyncio.timeout(60):
        while not waits(caplog):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # some tries
        full.end = "open"
        handle = await task
    assert handle.stamp == "123"
    assert waits(caplog) == 1
    assert wait.seconds > 0.4
    assert wait.notes[0].startswith("a place in the queue of account proj (AssocMaxSubmitJobLimit), for ")


def test_the_limit_of_the_queue_ends_the_wait_for_a_place(full: Facility) -> None:
    limits = WaitLimits(queue=timedelta(seconds=0.3))
    with pytest.raises(QueueLimitReached) as reached:
        submit(WAITING, wait=PlaceWait(limits))
    assert reached.value.handle is None
    assert str(reached.value).startswith(
        "Job 'recon' on this machine has been waiting for a place in the queue of account proj "
        "(AssocMaxSubmitJobLimit) for more than 0.3 s. Nothing was submitted. "
    )
    assert full.runs == {}


async def test_a_cancel_of_the_flow_run_ends_the_wait_for_a_place(
    full: Facility, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched: list[cancellation.Watched] = []
    monkeypatch.setattr(cancellation, "watch", watched.append)
    caplog.set_level(logging.INFO, logger="prefect_psik")
    task = asyncio.create_task(asubmit(WAITING))
    async with asyncio.timeout(60):
        while not watched:
            await asyncio.sleep(0.05)
        stopped = Session.current().run(_stop(watched[0]))
        await asyncio.wrap_future(stopped)
        with pytest.raises(FlowRunCancelling, match=r"recon.*waits for a place.*it was not submitted"):
            await task
    full.end = "open"
    await asyncio.sleep(0.3)
    assert full.runs == {}


@pytest.fixture
def lossy(full: Facility, monkeypatch: pytest.MonkeyPatch) -> Facility:
    """A full queue; once `end` is "lost" it takes jobs, and the answers are lost."""
    monkeypatch.setattr(batches, "REPEAT_SECONDS", 0.0)
    refuses = full._submit

    def submit(job: dict[str, Any]) -> dict[str, Any]:
        if full.end != "lost":
            return refuses(job)
        full.runs[job["stamp"]] = [job]
        return {"error": {"kind": "busy", "message": "The reply was lost."}}

    monkeypatch.setattr(full, "_submit", submit)
    return full


@pytest.mark.parametrize(
    ("job", "submitted_by", "canceled"),
    [
        (WAITING, "child", True),
        (replace(WAITING, identity=replace(FIRST, is_own=False)), "child", True),
        (replace(WAITING, identity=replace(FIRST, is_own=False)), "somebody else", False),
        (replace(WAITING, on_cancel="leave"), "child", False),
    ],
)
async def test_a_cancel_reaches_what_a_try_without_an_answer_submitted(
    lossy: Facility,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    job: Submission,
    submitted_by: str,
    canceled: bool,
) -> None:
    watched: list[cancellation.Watched] = []
    entry: dict[str, Any] = {
        "key": "k",
        "name": None,
        "type": "slurm",
        "jobndx": 1,
        "native_id": None,
        "prefix": "/psik",
    }
    entry |= {"owner": {"flow_run": submitted_by}, "flow_runs": [], "asked": {}, "state": "new", "created": 1.0}
    monkeypatch.setattr(lossy, "_list", lambda job: entry, raising=False)
    monkeypatch.setattr(cancellation, "watch", watched.append)
    caplog.set_level(logging.INFO, logger="prefect_psik")
    task = asyncio.create_task(asubmit(job))
    async with asyncio.timeout(60):
        while not watched:
            await asyncio.sleep(0.05)
        lossy.end = "lost"
        while not any("still trying: The reply was lost" in record.getMessage() for record in caplog.records):
            await asyncio.sleep(0.05)
        await asyncio.wrap_future(Session.current().run(_stop(watched[0])))
        with pytest.raises(FlowRunCancelling, match="its last try got no answer"):
            await task
    owner = cancellation.owner_of(FLOW_RUNS)
    assert lossy.canceled == ([("123", 1, owner)] if canceled else [])


def test_a_limit_after_a_try_without_an_answer_does_not_say_that_nothing_was_submitted(
    lossy: Facility, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = PlaceWait(WaitLimits(trouble=timedelta(seconds=0.3)))
    told = wait.tell

    def tell(waiting: Waiting, job: str, place: str, stamp: str) -> None:
        lossy.end = "lost"
        told(waiting, job, place, stamp)

    monkeypatch.setattr(wait, "tell", tell)
    with pytest.raises(ContactLost) as reached:
        submit(WAITING, wait=wait)
    assert "the job may have been submitted. Submit it again with the same key" in str(reached.value)
    assert "Nothing was submitted" not in str(reached.value)
    assert str(reached.value).startswith(
        "Nothing has been heard of job 'recon' on this machine for more than 0.3 s. Last error: "
    )


async def _stop(wait: cancellation.Watched) -> None:
    await wait.stop()


async def test_an_interrupt_ends_the_wait_for_a_place(full: Facility, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="prefect_psik")
    task = asyncio.create_task(asubmit(WAITING))
    async with asyncio.timeout(60):
        while not waits(caplog):
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    full.end = "open"
    await asyncio.sleep(0.3)
    assert full.runs == {}


def test_a_submission_is_made_of_what_the_task_gave_and_where_it_runs() -> None:
    block = PsikBackend(prefix="/psik")
    found = Submission.of(block, SPEC, key="scan 7", rerun="never", on_cancel="leave")
    assert (found.identity.key, found.rerun, found.on_cancel, found.flow_runs) == ("scan 7", "never", "leave", [])
    with pytest.raises(BackendClosed):
        Submission.of(PsikBackend(accept_jobs=False), SPEC, key="scan 7", rerun="never", on_cancel="leave")


def test_what_became_of_directives_is_logged_once_where_the_task_waits(
    place: Facility, caplog: pytest.LogCaptureFixture
) -> None:
    block = PsikBackend(attributes=BackendAttributes(type="slurm"))
    spec = JobSpec(name="recon", script="#!/bin/bash\n#SBATCH -N 2\n#SBATCH -o out.txt\ntrue\n")
    caplog.set_level(logging.INFO, logger="prefect_psik")
    submit(Submission.of(block, spec, key="scan 8", rerun="never", on_cancel="leave"))
    said = [
        (record.levelname, record.getMessage()) for record in caplog.records if "script, " in record.getMessage()
    ]
    assert said == [
        ("INFO", "job 'recon': script, line 2: -N 2 → node_count 2"),
        (
            "WARNING",
            "job 'recon': script, line 3: -o out.txt is not used: psik keeps the logs in the job's directory",
        ),
    ]


def test_script_that_cannot_be_honoured_is_refused_before_anything_is_sent(place: Facility) -> None:
    block = PsikBackend(attributes=BackendAttributes(type="slurm"))
    spec = JobSpec(script="#!/bin/bash\n#SBATCH --array=0-9\ntrue\n")
    with pytest.raises(SpecError, match="Line 2 of the script"):
        Submission.of(block, spec, key="scan 9", rerun="never", on_cancel="leave")


def test_handle_has_the_name_that_the_script_gives_the_job(place: Facility) -> None:
    block = PsikBackend(attributes=BackendAttributes(type="slurm"))
    spec = JobSpec(script="#!/bin/bash\n#SBATCH -J recon\ntrue\n")
    assert submit(Submission.of(block, spec, key="scan 10", rerun="never", on_cancel="leave")).name == "recon"
