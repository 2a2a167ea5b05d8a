"""A job's own records, as its script can damage them: no call about other jobs fails or hangs for them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_psik.models.jobs import JobHandle, JobState
from prefect_psik.outcome.answers import Entry, Facts
from prefect_psik.outcome.arrival import read_jobs
from tests.unit.reports import judge
from tests.unit.test_remote import make_job, remote
from tests.unit.test_remote_status import Commands, item

BAD, GOOD = (f"{number:020}" for number in (1, 2))
DONE = ("0,new,{}", "1,queued,77", "1,active,", "1,completed,")
RUNNING = DONE[:3]


def text(content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(content)

    return write


def directory(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("/nowhere")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a FIFO": lambda path: os.mkfifo(path),
    "a directory": directory,
    "a dangling link": dangling,
    "empty": text(""),
    "no JSON": text("{"),
    "a list": text("[1]"),
    "nested deeply": text("[" * 100_000),
    "a strange key": text('{"refused": "x"}'),
    "wrong types": text(
        '{"alive": false, "squeue": [1], "sacct": {"a": 1}, "time": "x", "type": 5, "found": [5]}'
    ),
    "short rows": text('{"alive": false, "squeue": ["TIMEOUT"], "sacct": ["", "", "", "", "", ""]}'),
    "large": text(json.dumps({"found": ["x" * 3_000_000], "key": "x" * 1_000_000, "type": "slurm"})),
    "lines that are none": text(
        "nan,1,completed,\n1e999,1,failed,1\n-5,1,completed,\n1,1,dancing,\n" + "9" * 9000
    ),
    "an option for Slurm": text("1.0,1,queued,--user=beam\n2.0,1,active,\n"),
}
RECORDS = ["prefect/end.1", "prefect/job.json", "prefect/intent.1", "prefect/found.1", "prefect/cancel.1"]
RECORDS += ["prefect/native.1", "prefect/vanished.1", "status.csv", "log/stdout.1", "log/console"]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands of Slurm that know both jobs, of which the good one has ended."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    found = Commands(tmp_path / "bin", "squeue", "sacct", "scancel", "scontrol")
    found.say("squeue", "77|RUNNING|1|Unknown||n1|None", "78|COMPLETED|1|2||n1|None")
    return found


def two_jobs(prefix: Path, kind: str) -> None:
    (prefix / ".locks").mkdir(parents=True)
    make_job(prefix, BAD, rows=RUNNING, type=kind)
    make_job(prefix, GOOD, rows=tuple(row.replace("77", "78") for row in DONE), type=kind)


def call(operation: str, prefix: Path) -> dict[str, Any]:
    jobs = [item(stamp, offsets={}) if operation == "status" else item(stamp) for stamp in (BAD, GOOD)]
    answer = remote.call(operation, {"prefix": str(prefix), "jobs": jobs})
    assert "error" not in answer, answer
    return dict(answer["jobs"])


@pytest.mark.parametrize("kind", ["slurm", "local"])
@pytest.mark.parametrize("record", RECORDS)
def test_no_call_about_other_jobs_fails_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: Commands, record: str, kind: str
) -> None:
    monkeypatch.setattr(remote, "TERM_SECONDS", 0.05)
    monkeypatch.setattr(remote, "KILL_SECONDS", 0.05)
    monkeypatch.setattr(remote, "SCANCEL_SECONDS", 0.05)
    for number, damage in enumerate(DAMAGE.values()):
        prefix = tmp_path / str(number)
        two_jobs(prefix, kind)
        path = prefix / BAD / record
        path.unlink(missing_ok=True)
        damage(path)
        for operation in ("status", "check", "fetch", "usage", "cancel", "list", "remove"):
            answers = call(operation, prefix)
            assert "error" not in answers[GOOD], (operation, number)
            if operation in ("status", "cancel"):
                assert isinstance(read_jobs(Facts, answers, answers, place="here")[GOOD], Facts)
            if operation == "list":
                assert isinstance(read_jobs(Entry, answers, answers, place="here")[GOOD], Entry)


def test_a_strange_end_counts_as_none_and_slurm_is_asked(tmp_path: Path, commands: Commands) -> None:
    two_jobs(tmp_path / "p", "slurm")
    (tmp_path / "p" / BAD / "prefect" / "end.1").write_text('{"refused": "x", "alive": false}')
    facts = call("status", tmp_path / "p")[BAD]
    assert (facts["alive"], facts["refused"]) == (True, 0)


def test_what_a_job_writes_as_its_id_is_no_argument_of_a_command(tmp_path: Path, commands: Commands) -> None:
    two_jobs(tmp_path / "p", "slurm")
    (tmp_path / "p" / BAD / "status.csv").write_text("1.0,1,queued,--user=beam\n2.0,1,active,\n")
    answers = {name: call(name, tmp_path / "p")[BAD] for name in ("status", "cancel")}
    assert "is not a Slurm job id" in answers["cancel"]["error"]["message"]
    said = " ".join(str(commands.calls(name)) for name in ("squeue", "sacct", "scancel"))
    assert "--user=beam" not in said


@pytest.mark.parametrize(
    "content",
    ["[", "[1]", '{"time": "x"}', '{"time": 1e300}', '{"time": NaN}', '{"rows": [1]}', '{"rows": {"77": ["x"]}}'],
)
@pytest.mark.parametrize("name", ["squeue", "sacct"])
def test_what_slurm_said_is_asked_again_where_the_shared_file_is_damaged(
    tmp_path: Path, commands: Commands, name: str, content: str
) -> None:
    two_jobs(tmp_path / "p", "slurm")
    (tmp_path / "p" / ".locks" / f"{name}.json").write_text(content)
    facts = call("status", tmp_path / "p")[BAD]
    handle = {"prefix": "/p", "stamp": BAD, "key": "k", "native_id": "77", "type": "slurm"}
    assert judge(facts, JobHandle.model_validate(handle)).state is JobState.active
    assert len(commands.calls("squeue")) == 1


SHAPE = {"partition": "p", "limit": "1", "nodes": "1", "required": "", "excluded": ""}
RESERVED: dict[str, Any] = {"reservations": [], "partitions": {}, "clock": {}}


@pytest.mark.parametrize(
    "held",
    [
        1,
        {"77": {"nodes": 5}},
        {"jobs": 1, "reserved": RESERVED},
        {"jobs": {"77": {"nodes": 5}}, "reserved": RESERVED},
        {"jobs": {"77": SHAPE | {"limit": "\ud800"}}, "reserved": RESERVED},
        {"jobs": {"77": SHAPE}, "reserved": RESERVED | {"clock": {"1": 1}}},
        {"jobs": {"77": SHAPE}, "reserved": RESERVED | {"reservations": [["x"]]}},
        {"jobs": {"77": SHAPE}, "reserved": {}},
    ],
)
def test_what_is_written_of_reservations_ends_no_wait(tmp_path: Path, commands: Commands, held: Any) -> None:
    two_jobs(tmp_path / "p", "slurm")
    rows = {"77": ["PENDING", "Unknown", "Unknown", "", "", "Resources"]}
    known = {"time": time.time(), "rows": rows, "error": None, "held": held}
    (tmp_path / "p" / ".locks" / "squeue.json").write_text(json.dumps(known))
    answers = read_jobs(Facts, call("status", tmp_path / "p"), [BAD, GOOD], place="here")
    assert all(isinstance(facts, Facts) and facts.held is None for facts in answers.values())


@pytest.mark.parametrize(
    "content", ['{"time": 1e300, "rows": {}}', '{"rows": 1}', '{"time": 1, "rows": {"77": [[]]}}']
)
def test_a_damaged_usage_is_asked_for_again(tmp_path: Path, commands: Commands, content: str) -> None:
    two_jobs(tmp_path / "p", "slurm")
    (tmp_path / "p" / ".locks" / "usage.json").write_text(content)
    commands.say("sacct", "77|COMPLETED|1|1|1||1|n1", "77.batch|COMPLETED|1|1|1|1K|1|n1")
    assert len(call("usage", tmp_path / "p")[BAD]["usage"]) == 2
