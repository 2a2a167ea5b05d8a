"""A job from submission to result: which run a submission gets, and what its result tells."""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass, field
from typing import Any

import pytest

from prefect_psik import (
    FailureCause,
    JobHandle,
    JobState,
    JobStatus,
    KeyConflict,
    PrefectPsikError,
    RemoteCodeError,
)
from prefect_psik.blocks import PsikBackend
from prefect_psik.jobs.lifecycle import Again, Submitted, error_of, finish, submit
from prefect_psik.session import session
from prefect_psik.session.poller import Update
from prefect_psik.session.session import Channel, Session
from prefect_psik.spec.identity import Identity
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.retry import Asked

SPEC = JobSpec.model_validate({"script": "true", "name": "recon", "resources": {"duration": 5}})
FIRST = Identity(key="k", stamp="123", attempt=[1, 1], is_own=True)
SECOND = Identity(key="k", stamp="123", attempt=[1, 2], is_own=True)
USED = [["77", "COMPLETED", "3600", "57600", "08:00:00", "1G", "2", "n[1-2]"]]


@dataclass
class Facility:
    """A transport to jobs that are only written down: the runs of each, as `remote` keeps them."""

    end: str = ""
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    canceled: list[tuple[str, int, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=lambda: {"a": b"one"})
    fetched: dict[str, Any] = field(default_factory=dict)
    usage: list[list[str]] = field(default_factory=list)
    place: str = "here"
    gather_seconds: float = 0.0

    @property
    def key(self) -> tuple[int, ...]:
        return (id(self),)

    async def call(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        answers = {job["stamp"]: getattr(self, f"_{operation}")(job) for job in payload["jobs"]}
        return {"jobs": answers} | ({"more": False} if operation == "list" else {})

    def _submit(self, job: dict[str, Any]) -> dict[str, Any]:
        runs = self.runs.setdefault(job["stamp"], [])
        if runs and runs[0]["digest"] != job["digest"]:
            message = "Its directory is /psik/123."
            return {"error": {"kind": "conflict", "message": message, "canonical": runs[0]["canonical"]}}
        created = not runs or (job.get("rerun_after") == len(runs) and job["attempt"] > runs[-1]["attempt"])
        if created:
            runs.append(job)
        ndx, run = len(runs), runs[-1]
        status = f"1.0,{ndx},queued,{76 + ndx}\n2.0,{ndx},active,\n" + (
            f"3.0,{ndx},{self.end}\n" if self.end else ""
        )
        facts = {"type": "local", "status": status, "native_id": str(76 + ndx)}
        known = {"prefix": "/psik", "jobndx": ndx, "native_id": str(76 + ndx), "attempt": run["attempt"]}
        known |= {"created": created, "asked": run["asked"]}
        return {**known, "warnings": self.warnings} if created else {**known, "facts": facts}

    def _cancel(self, job: dict[str, Any]) -> dict[str, Any]:
        self.canceled.append((job["stamp"], job["jobndx"], job["owner"]))
        return {"type": "local", "status": f"3.0,{job['jobndx']},canceled,\n"}

    def _fetch(self, job: dict[str, Any]) -> dict[str, Any]:
        sizes = {name: len(data) for name, data in self.files.items()}
        files = {name: base64.b64encode(data).decode() for name, data in self.files.items()}
        found = {"entries": {name: name for name in files}, "good": dict.fromkeys(files, 1), "sizes": sizes}
        return {**found, "files": files, "left": [], "more": 0, "trouble": None, **self.fetched}

    def _usage(self, job: dict[str, Any]) -> dict[str, Any]:
        return {"usage": self.usage, "wait": None}


@pytest.fixture(autouse=True)
def accounting_answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "USAGE_PAUSE_SECONDS", 0.0)


def channel_to(facility: Facility) -> Channel:
    return Channel(Session.current(), facility, "/psik", 1.0)  # type: ignore[arg-type]


async def _submit(
    facility: Facility, identity: Identity, *, rerun: bool = True, spec: JobSpec = SPEC, again: Again | None = None
) -> Submitted:
    return await submit(channel_to(facility), PsikBackend(), spec, identity, rerun=rerun, owner={}, again=again)


async def test_the_handle_is_what_the_facility_answered() -> None:
    found = await _submit(Facility(warnings=["hm"]), FIRST)
    assert (found.created, found.warnings) == (True, ["hm"])
    assert found.handle == JobHandle(
        prefix="/psik", stamp="123", jobndx=1, native_id="77", key="k", name="recon", duration=5
    )


@pytest.mark.parametrize(
    ("end", "identity", "rerun", "runs"),
    [
        ("failed,3", SECOND, True, 2),
        ("canceled,", SECOND, True, 2),
        ("failed,3", SECOND, False, 1),
        ("failed,3", FIRST, True, 1),
        ("completed,", SECOND, True, 1),
        ("", SECOND, True, 1),
    ],
)
async def test_only_a_newer_attempt_runs_a_job_again_that_ended_badly(
    end: str, identity: Identity, rerun: bool, runs: int
) -> None:
    facility = Facility(end)
    await _submit(facility, FIRST)
    found = await _submit(facility, identity, rerun=rerun)
    assert len(facility.runs["123"]) == runs
    assert (found.created, found.handle.jobndx, found.handle.native_id) == (runs == 2, runs, str(76 + runs))


async def test_another_run_within_an_attempt_asks_for_more_and_is_newer() -> None:
    facility = Facility("failed,9", warnings=["slow partition"])
    await _submit(facility, FIRST)
    again = Again(after=1, number=1, asked=Asked(10, "2G"))
    found = await _submit(facility, FIRST, again=again)
    assert (found.created, found.handle.jobndx, found.warnings) == (True, 2, ["slow partition"])
    assert (found.handle.duration, found.handle.memory) == (10, "2G")
    assert facility.runs["123"][1]["attempt"] == [1, 1, 1]
    repeated = await _submit(facility, FIRST, again=again)
    assert (repeated.created, repeated.handle.jobndx) == (False, 2), "its reply may have been lost"
    assert repeated.warnings == []


async def test_a_handle_knows_its_endpoint_and_scheduler_and_may_lack_a_native_id() -> None:
    class Unconfirmed(Facility):
        def _submit(self, job: dict[str, Any]) -> dict[str, Any]:
            return super()._submit(job) | {"native_id": None}

    endpoint = uuid.uuid4()
    block = PsikBackend.model_validate({"endpoint_id": endpoint, "attributes": {"type": "slurm"}})
    block._block_document_name = "perlmutter"
    handle = (await submit(channel_to(Unconfirmed()), block, SPEC, FIRST, rerun=True, owner={})).handle
    assert (handle.endpoint_id, handle.type, handle.backend) == (endpoint, "slurm", "perlmutter")
    assert handle.native_id is None


async def test_a_key_that_stands_for_another_job_shows_the_difference() -> None:
    facility = Facility()
    await _submit(facility, FIRST)
    with pytest.raises(KeyConflict) as caught:
        await _submit(facility, SECOND, spec=SPEC.model_copy(update={"script": "fälse"}))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("The key 'k' already belongs to a job with a different spec.")
    assert "Its directory is /psik/123." in lines[0]
    changed = [line.strip(" ,") for line in lines[1:] if line[0] in "+-"]
    assert len(changed) == 4, "only what differs"
    assert changed[:2] == ["--- submitted before", "+++ given now"]
    assert changed[2].startswith('- "script": "true')
    assert changed[3].startswith('+ "script": "fälse')
    assert caught.value.stored == SPEC.canonical()


async def test_a_key_that_stands_for_a_job_that_is_not_told_shows_all_that_is_given_now() -> None:
    class Silent(Facility):
        def _submit(self, job: dict[str, Any]) -> dict[str, Any]:
            return {"error": {"kind": "conflict", "message": "Its record cannot be read."}}

    with pytest.raises(KeyConflict) as caught:
        await _submit(Silent(), FIRST)
    lines = str(caught.value).splitlines()
    assert {line[0] for line in lines[3:]} <= {"+", "-", "@"}
    assert any(line.startswith('+ "script": "true') for line in lines)
    assert caught.value.stored == ""


# ---------------------------------------------------------------------------------------------------- results

HANDLE = JobHandle(prefix="/psik", stamp="123", key="k", native_id="77", type="slurm", name="recon")
TIMES: dict[str, Any] = {"submitted": 10.0, "started": 12.0, "ended": 1812.0}


def ended(state: JobState = JobState.completed, **more: Any) -> Update:
    status = JobStatus(handle=HANDLE, state=state, message="m", **{"exit_code": 0, **TIMES, **more})
    return Update(status=status, tails={"stdout": "out", "stderr": "err", "console": "con"}, outputs=["a"])


async def test_a_result_has_what_accounting_knows() -> None:
    found = await finish(channel_to(Facility(usage=USED)), ended(nodes=1, node_list="n7"))
    assert (found.nodes, found.node_list, found.node_hours) == (2, "n[1-2]", 2.0)
    assert (found.peak_memory, found.cpu_efficiency) == (1024**3, 0.5)
    assert (found.queue_seconds, found.run_seconds) == (2.0, 1800.0)
    assert (found.stdout, found.stderr, found.console) == ("out", "err", "con")
    assert (found.handle, found.native_id, found.message, found.exit_code) == (HANDLE, "77", "m", 0)
    assert found.warnings == []


async def test_without_accounting_it_has_what_the_job_itself_saw() -> None:
    found = await finish(channel_to(Facility()), ended(nodes=4, node_list="n[1-4]"))
    assert (found.nodes, found.node_list, found.node_hours) == (4, "n[1-4]", 2.0)
    assert (found.peak_memory, found.cpu_efficiency) == (None, None)
    assert (await finish(channel_to(Facility()), ended())).node_hours is None


@pytest.mark.parametrize("times", [{"started": None}, {"handle": HANDLE.model_copy(update={"type": "local"})}])
async def test_accounting_is_asked_only_for_what_it_can_know(times: dict[str, Any]) -> None:
    update = ended()
    assert update.status is not None
    update.status = update.status.model_copy(update=times)
    assert (await finish(channel_to(Facility(usage=USED)), update)).peak_memory is None


async def test_times_that_are_unknown_or_swapped() -> None:
    found = await finish(channel_to(Facility()), ended(submitted=13.0, ended=None))
    assert (found.queue_seconds, found.run_seconds) == (0.0, None)
    found = await finish(channel_to(Facility()), ended(submitted=None))
    assert found.queue_seconds is None


async def test_small_outputs_come_back_and_large_ones_are_named() -> None:
    facility = Facility(fetched={"left": [{"name": "b", "why": "size", "size": 5_000_000}], "more": 7})
    found = await finish(channel_to(facility), ended(warnings=["before"]))
    assert found.outputs == {"a": b"one"}
    assert found.warnings[0] == "before"
    assert "The output b has 5,000,000 bytes" in found.warnings[1]
    assert found.warnings[2] == "7 more output files were not returned."
    failed = await finish(channel_to(facility), ended(JobState.failed, cause=FailureCause.script, exit_code=3))
    assert (failed.outputs, failed.state, failed.cause) == ({}, JobState.failed, FailureCause.script)


@pytest.mark.parametrize(
    ("fetched", "says"),
    [
        ({"good": {}, "entries": {}, "sizes": {}, "files": {}}, "a no longer matches anything"),
        ({"missing": True}, "its directory was removed before its outputs were fetched"),
        ({"trouble": "it took more than 20 s"}, "collecting its outputs stopped because it took more than 20 s"),
    ],
)
async def test_outputs_that_went_before_they_were_fetched_fail_the_job(fetched: dict[str, Any], says: str) -> None:
    found = await finish(channel_to(Facility(fetched=fetched)), ended())
    assert (found.state, found.cause, found.outputs) == (JobState.failed, FailureCause.missing_output, {})
    assert says in found.message


@pytest.mark.parametrize(
    ("fetched", "says"),
    [
        ({"files": {}}, "contains other output files than it lists"),
        ({"sizes": {}}, "contains other output files than it lists"),
        ({"sizes": {"a": 4}}, "contains 3 bytes of a, but says that it has 4"),
        ({"files": {"a": "no base64!"}}, "its base64 cannot be decoded"),
        ({"files": {"a": None}}, "files.a"),
        ({"sizes": {"b": 1}, "files": {"b": "eA=="}, "entries": {"b": "b"}}, "do not name"),
        ({"sizes": {"b": 1}, "files": {"b": "eA=="}, "entries": {"b": "a"}}, "do not name"),
        ({"sizes": {"../a": 1}, "files": {"../a": "eA=="}, "entries": {"../a": "a"}}, "do not name"),
        ({"entries": {"b": "a"}}, "contains other output files than it lists"),
    ],
)
async def test_an_answer_that_is_not_what_was_asked_for_is_an_error(fetched: dict[str, Any], says: str) -> None:
    with pytest.raises(RemoteCodeError, match=says):
        await finish(channel_to(Facility(fetched=fetched)), ended())


async def test_what_slurm_thought_of_a_script_that_ended_by_itself_is_a_warning_once() -> None:
    facility = Facility(usage=[["77", "TIMEOUT", *USED[0][2:]]])
    [warning] = (await finish(channel_to(facility), ended())).warnings
    assert warning.startswith("Slurm reports TIMEOUT")
    assert (await finish(channel_to(facility), ended(warnings=[warning]))).warnings == [warning]
    assert (await finish(channel_to(facility), ended(exit_code=None))).warnings == []


async def test_a_result_needs_a_status() -> None:
    with pytest.raises(PrefectPsikError, match="defect"):
        await finish(channel_to(Facility()), Update())


async def test_an_error_ends_with_the_last_lines_of_one_log() -> None:
    failed = ended(JobState.failed, cause=FailureCause.script, exit_code=3, warnings=["W."])
    found = await finish(channel_to(Facility()), failed)
    long = "".join(f"line {n}\n" for n in range(12))
    error = error_of(found.model_copy(update={"stderr": long}))
    assert error is not None
    text = str(error)
    assert text.startswith("Job 'recon'")
    assert " failed on this machine: m. W. Read the last lines" in text
    assert "Last lines of stderr:\nline 2\n" in text
    assert text.endswith("line 11\nIts directory is /psik/123.")
    assert "con" not in text.split("Last lines")[1].replace("console", "")
    assert not error.transient
    quiet = str(error_of(found.model_copy(update={"stderr": " \n", "console": "", "stdout": ""})))
    assert quiet.endswith(". Its directory is /psik/123.")
    assert "Last lines" not in quiet
    console = str(error_of(found.model_copy(update={"stderr": "", "stdout": "out"})))
    assert "Last lines of console:\ncon\n" in console


@pytest.mark.parametrize("cause", FailureCause)
async def test_only_what_is_not_the_jobs_fault_is_worth_another_try(cause: FailureCause) -> None:
    error = error_of(await finish(channel_to(Facility()), ended(JobState.failed, cause=cause, exit_code=None)))
    assert error is not None
    assert error.transient is (cause in (FailureCause.node_failure, FailureCause.preempted))
