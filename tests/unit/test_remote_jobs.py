"""Jobs submitted to Slurm and canceled there, by commands that stand for Slurm's."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prefect_psik.blocks import BackendAttributes, PsikBackend
from prefect_psik.spec.identity import Identity
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.retry import Asked
from tests.unit.test_remote import STAMP, make_job, remote
from tests.unit.test_remote_status import NO_ACCOUNTING, Commands

FLOW_RUNS = ["11111111-1111", "22222222-2222"]
OWNER = {"flow_run": FLOW_RUNS[1], "flow_runs": FLOW_RUNS}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """A Slurm of commands, whose queue and accounting are empty."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    commands = Commands(directory, "squeue", "sacct", "sbatch", "scancel", "scontrol")
    commands.say("sbatch", "Submitted batch job 77")
    commands.say("scontrol", "MessageTimeout          = 20 sec")
    return commands


def job(kind: str = "slurm", *, attempt: int = 1, asked: Asked | None = None, **spec: Any) -> dict[str, Any]:
    """One job as our side sends it."""
    block = PsikBackend(attributes=BackendAttributes.model_validate({"type": kind, "queue_name": "debug"}))
    identity = Identity(key="k", stamp=STAMP, attempt=[attempt])
    given = JobSpec.model_validate({"script": "true\n", "name": "recon", "resources": {"duration": 5}, **spec})
    return block.submission(given, identity, OWNER, asked=asked)


def call(prefix: Path, operation: str, *jobs: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = remote.call(operation, {"prefix": str(prefix), "jobs": list(jobs), **more})
    return answer


def submit(prefix: Path, given: dict[str, Any]) -> dict[str, Any]:
    answer = call(prefix, "submit", given)
    assert "error" not in answer, answer
    return dict(answer["jobs"][STAMP])


def cancel(prefix: Path, **more: Any) -> dict[str, Any]:
    return dict(call(prefix, "cancel", {"stamp": STAMP, "owner": OWNER, **more})["jobs"][STAMP])


def trouble(answer: dict[str, Any], kind: str) -> str:
    assert answer["error"]["kind"] == kind, answer
    return str(answer["error"]["message"])


def audit(prefix: Path) -> list[dict[str, Any]]:
    path = prefix / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rows(prefix: Path) -> list[str]:
    """The record of psik without its times, from the first submission on."""
    lines = (prefix / STAMP / "status.csv").read_text().splitlines()
    return [line.split(",", 1)[1] for line in lines if ",new," not in line]


def read(prefix: Path, name: str) -> Any:
    return json.loads((prefix / STAMP / "prefect" / name).read_text())


def pass_(prefix: Path, name: str, seconds: float) -> None:
    """Let time pass since a note was written."""
    path = prefix / STAMP / "prefect" / name
    note = json.loads(path.read_text())
    path.write_text(json.dumps({**note, "time": note["time"] - seconds}))


@contextmanager
def locked(prefix: Path) -> Iterator[None]:
    """Hold the lock of the job."""
    (prefix / ".locks").mkdir(parents=True, exist_ok=True)
    with (prefix / ".locks" / STAMP).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --------------------------------------------------------------------------------------------------- submission


def test_a_job_is_handed_to_slurm_once(slurm: Commands, tmp_path: Path) -> None:
    slurm.say("sbatch", "Submitted batch job 77", error="sbatch: warning: slow queue\nsbatch: error: really\n")
    slurm.say("squeue", "77|RUNNING|1|Unknown||n1|None")
    begin = time.time()
    first = submit(tmp_path / "p", job())
    again = submit(tmp_path / "p", job(attempt=2))
    [submission] = slurm.calls("sbatch")
    base = tmp_path / "p" / STAMP
    assert f"--chdir={base}" in submission
    assert "--partition debug" in submission
    assert "psik_python" not in submission
    assert {name: first[name] for name in first if name != "prefix"} == {
        "created": True,
        "jobndx": 1,
        "native_id": "77",
        "attempt": [1],
        "asked": {"duration": 5, "memory": None},
        "warnings": ["warning: slow queue really"],
    }
    assert (again["created"], again["jobndx"], again["native_id"], again["attempt"]) == (False, 1, "77", [1])
    assert again["asked"] == {"duration": 5, "memory": None}
    assert again["facts"]["alive"] is True
    assert again["prefix"] == first["prefix"] == str(tmp_path / "p")
    assert rows(tmp_path / "p") == ["1,queued,77"]
    intent = read(tmp_path / "p", "intent.1")
    assert begin <= intent["time"] <= time.time()
    assert (intent["attempt"], intent["asked"], intent["console"]) == ([1], {"duration": 5, "memory": None}, 0)
    [line] = audit(tmp_path / "p")
    assert begin - 1 <= line["time"] <= time.time()
    assert {name: line[name] for name in line if name not in ("time", "user")} == {
        "operation": "submit",
        "stamp": STAMP,
        "owner": OWNER,
        "jobndx": 1,
        "native_id": "77",
    }
    record = read(tmp_path / "p", "job.json")
    assert (record["key"], record["owner"], record["name"], record["type"]) == ("k", OWNER, "recon", "slurm")
    assert (record["version"], record["requeue"]) == (1, False)
    assert record["directory"] == str(base / "work")
    assert begin <= record["created"] <= time.time()
    for flow_run in FLOW_RUNS:
        assert [path.name for path in (tmp_path / "p" / ".runs" / flow_run).iterdir()] == [STAMP]


def test_a_job_that_slurm_may_requeue_is_known_as_such(slurm: Commands, tmp_path: Path) -> None:
    submit(tmp_path / "p", job(attributes={"--requeue": "--requeue"}))
    assert read(tmp_path / "p", "job.json")["requeue"] is True


def test_a_refusal_is_told_in_sbatchs_words_and_leaves_nothing(slurm: Commands, tmp_path: Path) -> None:
    slurm.say("sbatch", code=1, error="sbatch: error: invalid partition specified: debug\n")
    message = trouble(submit(tmp_path / "p", job()), "rejected")
    assert message == "The facility refused the job: invalid partition specified: debug"
    assert not (tmp_path / "p" / STAMP).exists()
    assert audit(tmp_path / "p") == []


def test_a_refused_second_run_leaves_the_first(slurm: Commands, tmp_path: Path) -> None:
    submit(tmp_path / "p", job())
    slurm.say("sbatch", code=1, error="sbatch: error: no\n")
    trouble(submit(tmp_path / "p", job(attempt=2) | {"rerun_after": 1}), "rejected")
    assert rows(tmp_path / "p") == ["1,queued,77"]
    assert not (tmp_path / "p" / STAMP / "prefect" / "intent.2").exists()
    assert submit(tmp_path / "p", job(attempt=3))["jobndx"] == 1


def test_without_sbatch_the_setup_is_wrong(
    slurm: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slurm.directory / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(slurm.directory))
    assert "sbatch is not on the PATH" in trouble(submit(tmp_path / "p", job()), "setup")
    assert not (tmp_path / "p" / STAMP).exists()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (1, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"),
        (1, "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"),
        (137, ""),
        (128, "sbatch: error: no"),
    ],
)
def test_what_is_no_refusal_may_have_been_submitted_and_is_looked_for(
    slurm: Commands, tmp_path: Path, code: int, error: str
) -> None:
    prefix = tmp_path / "p"
    slurm.say("sbatch", code=code, error=error)
    assert "did not confirm the submission" in trouble(submit(prefix, job()), "busy")
    slurm.say("sbatch", "Submitted batch job 88")
    left = trouble(submit(prefix, job()), "busy")
    assert f"An earlier call may have started job {STAMP}" in left
    assert "in 30 s" in left, "Slurm's MessageTimeout, and 10 s"
    assert len(slurm.calls("sbatch")) == 1
    slurm.say("squeue", "66|/elsewhere", f"77|{prefix / STAMP}")
    found = submit(prefix, job())
    assert (found["created"], found["native_id"], found["warnings"]) == (True, "77", [])
    assert rows(prefix) == ["1,queued,77"]
    [line] = audit(prefix)
    assert (line["operation"], line["native_id"], line["jobndx"]) == ("adopt", "77", 1)
    assert len(slurm.calls("sbatch")) == 1


def test_what_left_no_trace_is_submitted_again_when_it_cannot_turn_up_any_more(
    slurm: Commands, tmp_path: Path
) -> None:
    prefix = tmp_path / "p"
    slurm.say("sbatch", code=137)
    submit(prefix, job())
    slurm.say("sbatch", "Submitted batch job 88")
    submit(prefix, job())
    pass_(prefix, "none.1", 25)
    assert "in 5 s" in trouble(submit(prefix, job()), "busy")
    pass_(prefix, "none.1", 6)
    cancel_note = prefix / STAMP / "prefect" / "cancel.1"
    cancel_note.write_text("{}")
    assert submit(prefix, job())["native_id"] == "88"
    assert not cancel_note.exists(), "it was of the try before"
    assert not (prefix / STAMP / "prefect" / "none.1").exists()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("77|{base}|RUNNING|1700000000", True),
        ("77|{base}|FAILED|1700000000", True),
        ("77|{base}|FAILED|Unknown", False),  # refused, and listed all the same
        ("77|{base}|CANCELLED by 0|Unknown", True),
        ("77|/elsewhere|RUNNING|1700000000", False),
        ("77_1|{base}|RUNNING|1700000000", False),
        ("garbage", False),
    ],
)
def test_accounting_knows_what_the_queue_no_longer_lists(
    slurm: Commands, tmp_path: Path, line: str, found: bool
) -> None:
    prefix = tmp_path / "p"
    slurm.say("sbatch", code=137)
    submit(prefix, job())
    slurm.say("sacct", line.format(base=prefix / STAMP))
    answer = submit(prefix, job())
    assert (answer.get("native_id") == "77") is found
    since = time.strftime("%Y-%m-%dT%H:%M", time.localtime(read(prefix, "intent.1")["time"] - 60))
    assert f"-S {since}" in slurm.calls("sacct")[-1]


def test_a_job_of_an_earlier_run_is_not_taken_for_the_new_one(slurm: Commands, tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    submit(prefix, job())
    slurm.say("sbatch", code=137)
    slurm.say("squeue", f"77|{prefix / STAMP}")
    again = job(attempt=2) | {"rerun_after": 1}
    trouble(submit(prefix, again), "busy")
    assert "no trace" in trouble(submit(prefix, again), "busy")


@pytest.mark.parametrize("name", ["squeue", "sacct"])
def test_while_slurm_does_not_answer_nothing_is_submitted_again(
    slurm: Commands, tmp_path: Path, name: str
) -> None:
    prefix = tmp_path / "p"
    slurm.say("sbatch", code=137)
    submit(prefix, job())
    slurm.say(name, code=1, error="Socket timed out")
    assert "Socket timed out" in trouble(submit(prefix, job()), "busy")
    assert not (prefix / STAMP / "prefect" / "none.1").exists()


def test_without_accounting_the_queue_decides(slurm: Commands, tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    slurm.say("sbatch", code=137)
    submit(prefix, job())
    slurm.say("sacct", f"77|{prefix / STAMP}|RUNNING|1", code=1, error=NO_ACCOUNTING)
    slurm.say("scontrol", code=1)
    assert "in 110 s" in trouble(submit(prefix, job()), "busy"), "Slurm's default, where it does not tell"


def test_a_repeated_request_that_is_refused_may_have_been_taken_the_first_time(
    slurm: Commands, tmp_path: Path
) -> None:
    prefix = tmp_path / "p"
    slurm.say("sbatch", code=1, error="sbatch: error: Duplicate job id\n")
    slurm.say("squeue", f"77|{prefix / STAMP}")
    found = submit(prefix, job())
    assert (found["native_id"], found["warnings"]) == ("77", ["Duplicate job id"])
    assert [line["operation"] for line in audit(prefix)] == ["adopt"]


def test_a_newer_attempt_may_start_the_next_run_and_asks_for_more(slurm: Commands, tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    submit(prefix, job())
    log = prefix / STAMP / "log" / "console"
    log.write_text("first")
    slurm.say("sbatch", "Submitted batch job 78")
    for attempt, after in ((1, 1), (2, 2), (2, 7)):
        assert submit(prefix, job(attempt=attempt) | {"rerun_after": after})["created"] is False
    longer = job(attempt=2, asked=Asked(10, "2G")) | {"rerun_after": 1}
    again = submit(prefix, longer)
    assert (again["created"], again["jobndx"], again["native_id"], again["attempt"]) == (True, 2, "78", [2])
    assert again["asked"] == {"duration": 10, "memory": "2G"}
    assert rows(prefix) == ["1,queued,77", "2,queued,78"]
    assert (prefix / STAMP / "log" / "console.1").read_text() == "first"
    assert not log.exists()
    spec = json.loads((prefix / STAMP / "spec.json").read_text())
    assert (
        spec["resources"]["duration"]
        == longer["spec"]["resources"]["duration"]
        > job()["spec"]["resources"]["duration"]
    )
    assert spec["attributes"].items() >= longer["spec"]["attributes"].items()
    assert "--mem=2G" in slurm.calls("sbatch")[-1]
    first = call(prefix, "status", {"stamp": STAMP, "jobndx": 1, "offsets": {}})["jobs"][STAMP]
    assert first["logs"]["console"]["text"] == "first"


def test_another_call_that_submits_the_same_job_is_waited_for(
    slurm: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(remote.__dict__, "LOCK_SECONDS", 0.2)
    prefix = tmp_path / "p"
    with locked(prefix):
        assert "Another call has been submitting" in trouble(submit(prefix, job()), "busy")
    submit(prefix, job())
    ours = prefix / STAMP / "prefect"
    with locked(prefix):
        trouble(submit(prefix, job()), "busy")
        (ours / "owner.1").symlink_to("77")
        (ours / "process.1.77").write_text("12 (bash) S 1 12 12")
        assert submit(prefix, job())["created"] is False, "the job itself holds it"


def test_an_old_psik_is_refused(slurm: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, passes in (("3.1.0", False), ("3.0.9", False), ("3.1.1", True), ("3.10.0rc1", True), ("4", True)):
        monkeypatch.setattr("importlib.metadata.version", lambda _, version=version: version)
        answer = call(tmp_path / "p", "submit", job())
        assert ("error" not in answer) is passes, version
        if not passes:
            assert f"psik {version} on" in trouble(answer, "setup")


# ----------------------------------------------------------------------------------------------------- a cancel


def test_a_cancel_is_recorded_once_slurm_says_so(slurm: Commands, tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    submit(prefix, job())
    slurm.say("squeue", "77|RUNNING|1|Unknown||n1|None")
    slurm.then("scancel", "squeue", "77|CANCELLED|1|2||n1|None")
    facts = cancel(prefix)
    assert slurm.calls("scancel") == ["scancel 77"]
    assert "-j 77,999999999,999999998" in slurm.calls("squeue")[-1]
    assert rows(prefix) == ["1,queued,77", "1,canceled,"]
    asked = read(prefix, "cancel.1")
    assert abs(asked["time"] - time.time()) < 60
    assert (asked["owner"], asked["user"]) == (OWNER, remote._user())
    assert facts["cancel_asked"] == asked["time"]
    assert [(line["operation"], line.get("jobndx")) for line in audit(prefix)] == [("submit", 1), ("cancel", 1)]
    cancel(prefix)
    assert len(slurm.calls("scancel")) == 1, "it has an end"


def test_a_job_that_slurm_does_not_end_is_told(
    slurm: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(remote.__dict__, "SCANCEL_SECONDS", 0.3)
    prefix = tmp_path / "p"
    submit(prefix, job())
    slurm.say("squeue", "77|RUNNING|1|Unknown||n1|None")
    assert "scancel was accepted, but Slurm still reports RUNNING" in trouble(cancel(prefix), "busy")
    slurm.say("scancel", code=1, error="Access denied")
    assert "scancel was refused (Access denied)" in trouble(cancel(prefix), "busy")
    slurm.say("squeue", code=1, error="Socket timed out")
    assert f"Job {STAMP} has not ended yet: Socket timed out." in trouble(cancel(prefix), "busy")
    assert rows(prefix) == ["1,queued,77"]
    assert [line["operation"] for line in audit(prefix)] == ["submit"]


@pytest.mark.parametrize("listed", [["77|COMPLETED|1|2||n1|None"], ["77|TIMEOUT|1|2||n1|None"], []])
def test_a_job_that_ended_before_its_cancel_keeps_its_end(
    slurm: Commands, tmp_path: Path, listed: list[str]
) -> None:
    prefix = tmp_path / "p"
    submit(prefix, job())
    slurm.say("squeue", "77|RUNNING|1|Unknown||n1|None")
    call(prefix, "status", {"stamp": STAMP})
    slurm.say("squeue", *listed)
    facts = cancel(prefix)
    assert rows(prefix) == ["1,queued,77"]
    assert [line["operation"] for line in audit(prefix)] == ["submit"]
    assert facts["squeue"] == (listed[0].split("|")[1:] if listed else None), "what Slurm said before is not used"


def test_a_cancel_finds_what_was_never_confirmed(slurm: Commands, tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    slurm.say("sbatch", code=137)
    submit(prefix, job())
    with locked(prefix):
        assert "it is being submitted right now" in trouble(cancel(prefix), "busy")
    assert "no trace of it yet, but one may still appear for 30 s" in trouble(cancel(prefix), "busy")
    assert slurm.calls("scancel") == []
    slurm.say("squeue", code=1, error="Socket timed out")
    assert "Socket timed out" in trouble(cancel(prefix), "busy")
    slurm.say("squeue", f"77|{prefix / STAMP}")
    slurm.then("scancel", "squeue", "77|CANCELLED|1|2||n1|None")
    cancel(prefix)
    assert slurm.calls("scancel") == ["scancel 77"]
    assert rows(prefix) == ["1,queued,77", "1,canceled,"]


def test_what_never_turned_up_is_canceled(slurm: Commands, tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    slurm.say("sbatch", code=137)
    submit(prefix, job())
    cancel(prefix)
    pass_(prefix, "none.1", 31)
    cancel(prefix)
    assert rows(prefix) == ["1,canceled,"]
    assert slurm.calls("scancel") == []


def test_a_cancel_is_of_one_run(slurm: Commands, tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    make_job(prefix, rows=("0,new,{}", "1,queued,77", "1,failed,3", "2,queued,78"), type="slurm")
    (prefix / ".locks").mkdir()
    slurm.then("scancel", "squeue", "78|CANCELLED|1|2||n1|None")
    cancel(prefix, jobndx=1)
    assert slurm.calls("scancel") == []
    cancel(prefix)
    assert slurm.calls("scancel") == ["scancel 78"]
    assert rows(prefix)[-1] == "2,canceled,"
