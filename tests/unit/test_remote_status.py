"""Tests of the facts of jobs on Slurm: with commands that answer, fail, hang, and are counted."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobHandle, JobState
from prefect_psik.transport.base import MAX_CALL_BYTES
from tests.unit.reports import judge
from tests.unit.test_remote import make_job, remote

_COMMAND = """\
#!/bin/sh
echo "{name} $*" >> "{calls}"
sleep "$(cat "{directory}/{name}.seconds" 2> /dev/null || echo 0)"
cat "{directory}/{name}.err" >&2 2> /dev/null
cat "{directory}/{name}.out" 2> /dev/null
test ! -e "{directory}/{name}.then" || mv "{directory}/{name}.then" "{directory}/$(cat "{directory}/{name}.whom")"
exit "$(cat "{directory}/{name}.code" 2> /dev/null || echo 0)"
"""
NO_ACCOUNTING = "Slurm accounting storage is disabled"
NO_DATABASE = "sacct: error: Problem talking to the database: Connection refused"
QUEUED, ACTIVE = "1,queued,77", "1,active,"


class Commands:
    """Commands of Slurm, as a test wants them."""

    def __init__(self, directory: Path, *names: str) -> None:
        self.directory = directory
        for name in names:
            path = directory / name
            path.write_text(_COMMAND.format(name=name, directory=directory, calls=directory / "calls"))
            path.chmod(0o755)

    def say(self, name: str, *lines: str, code: int = 0, error: str = "", seconds: float = 0.0) -> None:
        """Have a command answer so from now on."""
        (self.directory / f"{name}.out").write_text("".join(f"{line}\n" for line in lines))
        (self.directory / f"{name}.err").write_text(error)
        (self.directory / f"{name}.code").write_text(str(code))
        (self.directory / f"{name}.seconds").write_text(str(seconds))

    def then(self, name: str, other: str, *lines: str) -> None:
        """Have another command answer so once this one was called."""
        (self.directory / f"{name}.whom").write_text(f"{other}.out")
        (self.directory / f"{name}.then").write_text("".join(f"{line}\n" for line in lines))

    def calls(self, name: str) -> list[str]:
        """How a command was called."""
        path = self.directory / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(name)]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """The commands, first on the PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    return Commands(directory, "squeue", "sacct")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A prefix that was submitted to."""
    place = tmp_path / "psik jobs é"
    (place / ".locks").mkdir(parents=True)
    return place


def slurm_job(prefix: Path, number: int = 1, *rows: str, **record: Any) -> str:
    """A job of Slurm, submitted an hour ago, with native id 76 + number."""
    stamp = f"{number:020}"
    lines = rows or (f"1,queued,{76 + number}",)
    base = make_job(prefix, stamp, rows=("0,new,{}", *lines), type="slurm", **record)
    (base / "prefect" / "intent.1").write_text(json.dumps({"time": time.time() - 3600, "attempt": [1]}))
    return stamp


def item(stamp: str, **more: Any) -> dict[str, Any]:
    native_id = str(76 + int(stamp))
    return {"stamp": stamp, "jobndx": 1, "type": "slurm", "native_id": native_id, **more}


def look(prefix: Path, *stamps: str, **more: Any) -> dict[str, dict[str, Any]]:
    """One call."""
    answer = remote.call("status", {"prefix": str(prefix), "jobs": [item(stamp, **more) for stamp in stamps]})
    assert "error" not in answer, answer
    assert len(json.dumps(answer)) < MAX_CALL_BYTES
    return dict(answer["jobs"])


def judged(prefix: Path, stamp: str, facts: dict[str, Any]) -> Any:
    handle = JobHandle(prefix=str(prefix), stamp=stamp, key="k", native_id=item(stamp)["native_id"], type="slurm")
    return judge(facts, handle)


def age(prefix: Path, name: str, seconds: float) -> None:
    """Have an answer of Slurm be older."""
    path = prefix / ".locks" / f"{name}.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps(known | {"time": known["time"] - seconds}))


def test_reservations_are_asked_for_only_where_slurm_speaks_of_one(commands: Commands, prefix: Path) -> None:
    Commands(commands.directory, "scontrol")
    start = int(time.time()) + 3600
    reservation = (
        f"ReservationName=m StartTime={start} EndTime={start + 60} Nodes=n[1-4] Flags=MAINT State=INACTIVE"
    )
    commands.say("scontrol", reservation, "PartitionName=debug AllowGroups=ALL Nodes=n[1-4] State=UP")
    stamp = slurm_job(prefix)
    commands.say("squeue", "77|PENDING|Unknown|Unknown|||Resources")
    assert "held" not in look(prefix, stamp)[stamp]
    assert commands.calls("scontrol") == []
    age(prefix, "squeue", 60)
    reason = "ReqNodeNotAvail, Reserved for maintenance"
    commands.say("squeue", f"77|PENDING|Unknown|Unknown|||{reason}", f"78|debug|9:00:00|1|||{reason}")
    commands.then("scontrol", "squeue", f"77|debug|2:00:00|1|||{reason}")
    facts = look(prefix, stamp)[stamp]
    told = judged(prefix, stamp, facts).reason
    assert told.startswith(f"{reason}: does not fit before the maintenance that starts ")
    assert time.strftime("%H:%M %Z", time.localtime(start)) in told, "by the clock of the facility, and its zone"
    assert told.endswith(("at most 59 min it could start now", "at most 1 h it could start now"))
    assert len(commands.calls("scontrol")) == 2
    look(prefix, stamp)
    assert len(commands.calls("scontrol")) == 2, "its answer is shared as that of squeue is"


def test_a_large_site_is_described_once_and_each_job_gets_its_own_part(commands: Commands, prefix: Path) -> None:
    Commands(commands.directory, "scontrol")
    lines = [f"ReservationName=r{n} StartTime=9 EndTime=10 Nodes=x{n}[1-9]" for n in range(400)]
    parts = [f"PartitionName=p{n} Nodes=m{n}[1-9] State=UP" for n in range(400)]
    mine = "ReservationName=m StartTime=11 EndTime=12 Nodes=n1,n[5-6]"
    commands.say("scontrol", *lines, mine, *parts, "PartitionName=debug Nodes=n[1-4] State=UP")
    reason = "ReqNodeNotAvail, Reserved for maintenance"
    stamps = [slurm_job(prefix, n + 1) for n in range(140)]
    commands.say("squeue", *(f"{77 + n}|PENDING|Unknown|Unknown|||{reason}" for n in range(140)))
    commands.then("scontrol", "squeue", *(f"{77 + n}|debug|2:00:00|1|||{reason}" for n in range(140)))
    held = [facts["held"] for facts in look(prefix, *stamps).values()]
    assert len(held) == 140
    assert all((one["reservations"], one["partitions"]) == ([mine], {"debug": "n[1-4]"}) for one in held)
    assert all(set(one["clock"]) == {"11", "12"} for one in held)
    assert (prefix / ".locks" / "squeue.json").stat().st_size < 200_000


def test_of_commands_that_fail_one_is_asked(commands: Commands, prefix: Path) -> None:
    Commands(commands.directory, "scontrol")
    stamp = slurm_job(prefix)
    commands.say("squeue", "77|PENDING|Unknown|Unknown|||ReqNodeNotAvail")
    commands.say("scontrol", code=1)
    look(prefix, stamp)
    assert len(commands.calls("scontrol")) == 1
    age(prefix, "squeue", 60)
    commands.say("squeue", code=1, error="Unable to contact slurm controller")
    look(prefix, stamp)
    assert len(commands.calls("scontrol")) == 1, "squeue failed first"


def test_a_line_that_is_cut_off_is_no_end(commands: Commands, prefix: Path) -> None:
    commands.say("squeue", "77|RUNNING|1|Unknown||n1|None")
    stamp = slurm_job(prefix, 1, QUEUED, ACTIVE)
    with (prefix / stamp / "status.csv").open("a") as file:
        file.write("9.0,1,failed,1")  # of 13
    facts = look(prefix, stamp)[stamp]
    assert facts["alive"] is True, "Slurm is still asked"
    assert not judged(prefix, stamp, facts).state.is_final


def test_many_looks_and_callers_share_one_squeue(
    commands: Commands, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SQUEUE_SECONDS", 3600.0)
    commands.say("squeue", *(f"{77 + n}|RUNNING|1|Unknown||n1|None" for n in range(8)))
    stamps = [slurm_job(prefix, n + 1) for n in range(8)]
    threads = [threading.Thread(target=look, args=(prefix, stamp)) for stamp in stamps for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(commands.calls("squeue")) == 1
    assert commands.calls("sacct") == []
    age(prefix, "squeue", 1800)
    look(prefix, *stamps)
    assert len(commands.calls("squeue")) == 1
    age(prefix, "squeue", 1800)
    look(prefix, *stamps)
    assert len(commands.calls("squeue")) == 2


def test_a_thousand_jobs_fit_into_one_call_and_come_again_only_if_they_change(
    commands: Commands, prefix: Path
) -> None:
    number = 1000
    commands.say("squeue", *(f"{77 + n}|RUNNING|1|Unknown||n1|None" for n in range(number)))
    stamps = [slurm_job(prefix, n + 1, f"1,queued,{77 + n}", ACTIVE) for n in range(number)]
    begin = time.process_time()
    first = look(prefix, *stamps, offsets={})
    assert time.process_time() - begin < 30
    assert len(first) == number
    assert all(facts["alive"] for facts in first.values())
    jobs = [item(stamp, seen=first[stamp]["token"], offsets={}) for stamp in stamps]
    (prefix / stamps[3] / "log" / "stdout.1").write_text("news")
    again = remote.call("status", {"prefix": str(prefix), "jobs": jobs})["jobs"]
    assert [stamp for stamp, facts in again.items() if facts != {"same": True}] == [stamps[3]]
    assert again[stamps[3]]["logs"]["stdout"]["text"] == "news"
    assert len(json.dumps(again)) < 60 * number


def test_what_does_not_fit_into_an_answer_comes_with_the_next(commands: Commands, prefix: Path) -> None:
    number = 600
    stamps = [slurm_job(prefix, n + 1, ACTIVE, "1,failed,3") for n in range(number)]
    for stamp in stamps:
        for stream in ("stdout.1", "stderr.1", "console"):
            (prefix / stamp / "log" / stream).write_text("x" * 8192)
    left, calls = set(stamps), 0
    while left:
        calls += 1
        answers = look(prefix, *sorted(left))  # refuses an answer that is too large
        told = {stamp for stamp, facts in answers.items() if not facts.get("same")}
        assert told
        assert all(answers[stamp] == {"same": True, "later": True} for stamp in left - told)
        left -= told
    assert 1 < calls < 5


@pytest.mark.parametrize("error", ["slurm_load_jobs error: Socket timed out on send/recv operation", ""])
def test_squeue_that_fails_is_told_and_ends_no_job(commands: Commands, prefix: Path, error: str) -> None:
    stamp = slurm_job(prefix, 1, QUEUED, ACTIVE)
    commands.say("squeue", code=1, error=error)
    facts = look(prefix, stamp)[stamp]
    assert facts["squeue_error"] == (error or "squeue ended with 1")
    assert facts["alive"] is None
    assert judged(prefix, stamp, facts).state is JobState.active
    assert commands.calls("sacct") == []


def test_rows_of_the_last_answer_stay_while_squeue_fails(commands: Commands, prefix: Path) -> None:
    stamp = slurm_job(prefix)
    commands.say("squeue", "77|PENDING|Unknown|Unknown|||JobHeldUser")
    look(prefix, stamp)
    age(prefix, "squeue", 60)
    commands.say("squeue", code=1, error="Unable to contact slurm controller")
    facts = look(prefix, stamp)[stamp]
    assert facts["squeue"][0] == "PENDING"
    assert judged(prefix, stamp, facts).state is JobState.queued


def test_site_without_slurms_commands_is_told(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    stamp = slurm_job(prefix)
    assert "squeue is not on the PATH" in look(prefix, stamp)[stamp]["squeue_error"]


def test_job_that_left_the_queue_is_looked_for_in_accounting(commands: Commands, prefix: Path) -> None:
    stamp = slurm_job(prefix, 1, QUEUED, ACTIVE)
    commands.say("squeue")
    commands.say("sacct", "77|TIMEOUT|1000|1060|0:0|n1|None")
    facts = look(prefix, stamp)[stamp]
    assert facts["accounting"] == "answers"
    assert judged(prefix, stamp, facts).cause is FailureCause.walltime
    look(prefix, stamp)
    assert len(commands.calls("sacct")) == 1


def test_end_that_slurm_told_is_kept_when_it_forgets_and_an_orphan_writes(
    commands: Commands, prefix: Path
) -> None:
    stamp = slurm_job(prefix, 1, QUEUED, ACTIVE)
    now = int(time.time())
    commands.say("squeue", f"77|NODE_FAIL|{now - 60}|{now - 20}||n1|NodeDown")
    first = judged(prefix, stamp, look(prefix, stamp)[stamp])
    with (prefix / stamp / "status.csv").open("a") as file:
        file.write(f"{time.time()},1,completed,\n")
    commands.say("squeue", code=1, error="down")
    commands.say("sacct", code=1, error=NO_DATABASE)
    age(prefix, "squeue", 60)
    later = judged(prefix, stamp, look(prefix, stamp)[stamp])
    assert (first.state, first.cause) == (later.state, later.cause) == (JobState.failed, FailureCause.node_failure)


def test_job_that_may_be_requeued_keeps_no_end(commands: Commands, prefix: Path) -> None:
    stamp = slurm_job(prefix, 1, QUEUED, ACTIVE, requeue=True)
    commands.say("squeue", "77|NODE_FAIL|1000|1060||n1|NodeDown")
    look(prefix, stamp)
    commands.say("squeue", "77|PENDING|Unknown|Unknown|||BeginTime")
    age(prefix, "squeue", 60)
    status = judged(prefix, stamp, look(prefix, stamp)[stamp])
    assert status.state is JobState.queued
    assert "start it again" in (status.reason or "")


def test_site_without_accounting_is_told_apart_from_a_database_that_is_down(
    commands: Commands, prefix: Path
) -> None:
    stamp = slurm_job(prefix)
    commands.say("squeue")
    commands.say("sacct", code=1, error=NO_DATABASE)
    facts = look(prefix, stamp)[stamp]
    assert (facts["accounting"], facts["sacct_error"]) == ("silent", NO_DATABASE)
    assert not judged(prefix, stamp, facts).state.is_final
    assert not judged(prefix, stamp, facts | {"now": time.time() + 1e6}).state.is_final
    age(prefix, "sacct", 60)
    commands.say("sacct", code=1, error=NO_ACCOUNTING)
    facts = look(prefix, stamp)[stamp]
    assert facts["accounting"] == "none"
    assert not judged(prefix, stamp, facts).state.is_final
    assert judged(prefix, stamp, facts | {"now": time.time() + 100}).cause is FailureCause.lost


def test_accounting_that_is_behind_is_asked_again_and_not_believed_to_be_done(
    commands: Commands, prefix: Path
) -> None:
    stamp = slurm_job(prefix)
    commands.say("squeue")
    commands.say("sacct")
    facts = look(prefix, stamp)[stamp]
    assert not judged(prefix, stamp, facts).state.is_final
    assert facts["token"] is None
    commands.say("sacct", "77|CANCELLED by 1001|Unknown|1060|0:0|None assigned|None")
    look(prefix, stamp)
    assert len(commands.calls("sacct")) == 1
    age(prefix, "sacct", 60)
    assert "user id 1001" in judged(prefix, stamp, look(prefix, stamp)[stamp]).message
    assert len(commands.calls("sacct")) == 2


def test_callers_that_come_between_are_asked_for_together(
    commands: Commands, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SQUEUE_SECONDS", 3600.0)
    stamps = [slurm_job(prefix, n + 1) for n in range(5)]
    commands.say("squeue")
    commands.say("sacct")
    for stamp in stamps:
        look(prefix, stamp)
    assert len(commands.calls("sacct")) == 1
    age(prefix, "sacct", remote.SQUEUE_SECONDS)
    commands.say("sacct", *(f"{77 + n}|TIMEOUT|1000|1060|0:0|n1|None" for n in range(5)))
    look(prefix, stamps[4])
    [_, call] = commands.calls("sacct")
    assert all(str(77 + n) in call for n in range(1, 5))
    for stamp in stamps[1:]:
        assert judged(prefix, stamp, look(prefix, stamp)[stamp]).cause is FailureCause.walltime
    assert len(commands.calls("sacct")) == 2


def test_list_that_is_older_than_the_submission_says_nothing(commands: Commands, prefix: Path) -> None:
    stamp = slurm_job(prefix)
    (prefix / stamp / "prefect" / "intent.1").write_text(json.dumps({"time": time.time() + 3600, "attempt": [1]}))
    commands.say("squeue")
    facts = look(prefix, stamp)[stamp]
    assert "vanished" not in facts
    assert judged(prefix, stamp, facts).state is JobState.queued


def test_directory_that_is_gone_does_not_hide_that_slurm_has_the_job(commands: Commands, prefix: Path) -> None:
    stamp = f"{1:020}"
    commands.say("squeue", "77|PENDING|Unknown|Unknown|||Priority")
    facts = look(prefix, stamp)[stamp]
    assert facts["missing"]
    assert judged(prefix, stamp, facts).state is JobState.queued
    commands.say("squeue")
    commands.say("sacct", "77|FAILED|1000|1060|0:53|n1|None")
    age(prefix, "squeue", 60)
    assert judged(prefix, stamp, look(prefix, stamp)[stamp]).cause is FailureCause.lost


def test_end_of_psik_needs_no_command_but_a_kill_does(commands: Commands, prefix: Path) -> None:
    commands.say("squeue", "78|COMPLETED|1000|1060||n1|None")
    plain = slurm_job(prefix, 1, QUEUED, ACTIVE, "1,failed,3")
    assert "alive" not in look(prefix, plain)[plain]
    assert commands.calls("squeue") == []
    killed = slurm_job(prefix, 2, "1,queued,78", ACTIVE, "1,failed,-9")
    assert judged(prefix, killed, look(prefix, killed)[killed]).exit_code == -9
    assert len(commands.calls("squeue")) == 1


@pytest.mark.parametrize("rest", ["123.4,1,completed", "123.4,1,completed,", "123.4,1,failed,1", "1"])
def test_line_that_is_not_all_there_is_no_end(commands: Commands, prefix: Path, rest: str) -> None:
    stamp = slurm_job(prefix, 1, QUEUED, ACTIVE)
    with (prefix / stamp / "status.csv").open("a") as file:
        file.write(rest)
    commands.say("squeue", "77|RUNNING|1|Unknown||n1|None")
    assert judged(prefix, stamp, look(prefix, stamp)[stamp]).state is JobState.active


def test_lines_that_were_swapped_make_no_difference(commands: Commands, prefix: Path) -> None:
    stamp = slurm_job(prefix, 1, ACTIVE, QUEUED, "1,completed,")
    assert judged(prefix, stamp, look(prefix, stamp)[stamp]).state is JobState.completed


def test_nodes_come_from_the_launcher(commands: Commands, prefix: Path) -> None:
    stamp = slurm_job(prefix, 1, QUEUED, ACTIVE)
    ours = prefix / stamp / "prefect"
    (ours / "owner.1").symlink_to("77")
    (ours / "process.1.77").write_text("12 (bash) S 1 12 12")
    (ours / "nodes.1.77").write_text("2 n[1-2]\n")
    commands.say("squeue", "77|RUNNING|1|Unknown||n[1-2]|None")
    status = judged(prefix, stamp, look(prefix, stamp)[stamp])
    assert (status.nodes, status.node_list) == (2, "n[1-2]")


# ----------------------------------------------------------------------------------------------------- usage


def used(prefix: Path, *stamps: str) -> dict[str, dict[str, Any]]:
    answer = remote.call("usage", {"prefix": str(prefix), "jobs": [{"stamp": s, "jobndx": 1} for s in stamps]})
    assert "error" not in answer, answer
    return dict(answer["jobs"])


def test_usage_is_asked_for_all_and_kept(commands: Commands, prefix: Path) -> None:
    stamps = [slurm_job(prefix, n + 1) for n in range(3)]
    lines = []
    for n in range(3):
        lines += [f"{77 + n}|COMPLETED|10|20|00:05|||1|n1", f"{77 + n}.batch|COMPLETED|10|20|00:05|2048K|1|n1"]
    commands.say("sacct", *lines)
    first = used(prefix, *stamps)
    assert all(found["wait"] is None for found in first.values())
    assert [row[0] for row in first[stamps[1]]["usage"]] == ["78", "78.batch"]
    used(prefix, *stamps)
    assert len(commands.calls("sacct")) == 1


def test_usage_that_is_not_all_there_is_asked_for_again_in_a_while(
    commands: Commands, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "USAGE_SECONDS", 3600.0)
    stamp = slurm_job(prefix)
    commands.say("sacct", "77|COMPLETED|10|20|00:05||1|n1", "77.batch|RUNNING|10|20|00:05||1|n1")
    assert 0 < used(prefix, stamp)[stamp]["wait"] <= remote.USAGE_SECONDS
    assert 0 < used(prefix, stamp)[stamp]["wait"] <= remote.USAGE_SECONDS
    assert len(commands.calls("sacct")) == 1


def test_site_without_accounting_is_not_asked_for_usage_again(commands: Commands, prefix: Path) -> None:
    stamp = slurm_job(prefix)
    commands.say("sacct", code=1, error=NO_ACCOUNTING)
    assert used(prefix, stamp)[stamp] == {"usage": None, "wait": None}


def test_a_damaged_directory_is_the_trouble_of_its_own_job(commands: Commands, prefix: Path) -> None:
    commands.say("squeue", "78|RUNNING|1|Unknown||n1|None")
    broken, whole = slurm_job(prefix, 1), slurm_job(prefix, 2, "1,queued,78", "1,active,")
    record = prefix / broken / "prefect" / "job.json"
    record.unlink()
    record.mkdir()
    answer = remote.call("status", {"prefix": str(prefix), "jobs": [{"stamp": broken}, {"stamp": whole}]})
    assert answer["jobs"][broken]["error"]["kind"] == "foreign"
    assert answer["jobs"][whole]["alive"] is True
    removed = remote.call("remove", {"prefix": str(prefix), "jobs": [{"stamp": broken}]})
    assert "is not a plain file" in removed["jobs"][broken]["kept"]


def test_the_job_that_does_the_work_counts_not_the_one_that_was_noted(commands: Commands, prefix: Path) -> None:
    """sbatch's answer came late: the job that it noted was refused by the one that it had submitted before."""
    commands.say("squeue", "78|RUNNING|1|Unknown||n1|None")
    stamp = slurm_job(prefix, 1, "1,queued,77", "1,active,")
    (prefix / stamp / "prefect" / "owner.1").symlink_to("78")
    facts = remote.call("status", {"prefix": str(prefix), "jobs": [{"stamp": stamp}]})["jobs"][stamp]
    assert (facts["native_id"], facts["alive"]) == ("78", True)
