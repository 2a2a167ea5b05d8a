"""Jobs of this machine and their processes; what is listed and removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_remote import STAMP, make_job, remote
from tests.unit.test_remote_jobs import (
    FLOW_RUNS,
    OWNER,
    audit,
    call,
    cancel,
    job,
    locked,
    read,
    rows,
    slurm,
    submit,
    trouble,
)
from tests.unit.test_remote_status import Commands

__all__ = ["slurm"]  # a fixture


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def status(prefix: Path, **more: Any) -> dict[str, Any]:
    return dict(call(prefix, "status", {"stamp": STAMP, **more})["jobs"][STAMP])


def test_a_job_of_this_machine_is_ended_with_all_its_processes(prefix: Path) -> None:
    script = "sleep 300 &\necho $! > child.part; mv child.part child\nwait\n"
    answer = submit(prefix, job("local", script=script))
    assert answer["warnings"] == []
    work = prefix / STAMP / "work"
    wait_for(work / "child")
    pid = int(answer["native_id"])
    note = read(prefix, "native.1")
    assert (note["pid"], note["session"]) == (pid, int(Path(f"/proc/{pid}/stat").read_text().split()[5]))
    assert note["start"] == Path(f"/proc/{pid}/stat").read_text().split()[21]
    assert status(prefix)["alive"] is True
    assert submit(prefix, job("local", script=script))["created"] is False
    assert "error" not in cancel(prefix)
    assert not alive(pid)
    assert not alive(int((work / "child").read_text()))
    assert rows(prefix)[-1].startswith("1,canceled,")
    assert audit(prefix)[-1]["operation"] == "cancel"


def test_processes_that_ignore_it_are_forced(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(remote.__dict__, "TERM_SECONDS", 0.5)
    script = (
        "trap '' TERM\n(trap '' TERM; exec sleep 300) &\necho $! > child.part; mv child.part child\nsleep 300\n"
    )
    answer = submit(prefix, job("local", script=script))
    wait_for(prefix / STAMP / "work" / "child")
    os.kill(int(answer["native_id"]), signal.SIGKILL)  # psik's runner cannot pass it on
    assert "error" not in cancel(prefix)
    assert not alive(int((prefix / STAMP / "work" / "child").read_text()))


def test_a_process_that_does_not_end_is_told(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = submit(prefix, job("local", script="touch began\nsleep 300\n"))
    wait_for(prefix / STAMP / "work" / "began")
    monkeypatch.setitem(remote.__dict__, "TERM_SECONDS", 0.2)
    monkeypatch.setitem(remote.__dict__, "KILL_SECONDS", 0.2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda pid, number: None)
        message = trouble(cancel(prefix), "busy")
    assert f"has not ended yet: processes [{answer['native_id']}" in message
    assert "are still running" in message
    assert not any(",canceled," in row for row in rows(prefix))
    cancel(prefix)


def test_the_console_of_a_second_run_begins_where_the_first_ended(prefix: Path) -> None:
    submit(prefix, job("local", script="true\n"))
    ours = prefix / STAMP / "prefect"
    deadline = time.monotonic() + 120
    while not any(",completed," in row for row in rows(prefix)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    console = prefix / STAMP / "log" / "console"
    console.write_text("first\n")
    again = submit(prefix, job("local", script="true\n", attempt=2) | {"rerun_after": 1})
    assert (again["jobndx"], read(prefix, "intent.2")["console"]) == (2, 6)
    assert not (prefix / STAMP / "log" / "console.1").exists()
    while not any(row.startswith("2,completed,") for row in rows(prefix)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    console.write_text("first\nsecond\n")
    assert status(prefix, jobndx=2, offsets={})["logs"]["console"]["text"] == "second\n"
    assert status(prefix, jobndx=2)["tails"]["console"] == "second\n"
    assert (ours / "native.2").exists()


@pytest.mark.parametrize("owner", [True, False])
def test_a_call_that_died_may_have_started_a_job_of_this_machine(prefix: Path, owner: bool) -> None:
    base = make_job(prefix, key="k", digest=job("local")["digest"])
    (base / "prefect" / "intent.1").write_text(json.dumps({"time": time.time(), "attempt": [1]}))
    if owner:
        sleeping = subprocess.Popen(["sleep", "300"])
        (base / "prefect" / "owner.1").symlink_to(str(sleeping.pid))
        answer = submit(prefix, job("local"))
        assert (answer["native_id"], answer["created"]) == (str(sleeping.pid), True)
        assert rows(prefix) == [f"1,queued,{sleeping.pid}"]
        assert read(prefix, "native.1")["pid"] == sleeping.pid
        sleeping.kill()
        sleeping.wait()
    else:
        assert "in 15 s" in trouble(submit(prefix, job("local")), "busy")


def test_a_process_is_known_by_its_place_where_nothing_was_noted(prefix: Path) -> None:
    base = make_job(prefix, rows=())
    runner = subprocess.Popen(["sleep", "300"], cwd=base / "work", start_new_session=True)
    stranger = subprocess.Popen(["sleep", "300"], cwd=prefix, start_new_session=True)
    try:
        for process, expected in ((runner, True), (stranger, False)):
            (base / "status.csv").write_text(f"1.0,1,queued,{process.pid}\n")
            assert status(prefix)["alive"] is expected
        child = subprocess.Popen(["sleep", "300"], env={"base": str(base)}, start_new_session=True)
        (base / "prefect" / "owner.1").symlink_to("1")
        (base / "prefect" / "process.1.1").write_text(f"{child.pid} (sh) S")
        assert status(prefix)["alive"] is True, "the script lives, although its runner does not"
        child.kill()
        child.wait()
        assert status(prefix)["alive"] is False
    finally:
        for process in (runner, stranger):
            process.kill()
            process.wait()


def test_processes_are_read_as_the_kernel_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/proc/self/stat").open() as file:
        mine = remote._parse_stat(file.read())
    assert (mine.pid, mine.parent) in ((os.getpid(), os.getppid()),)
    assert (mine.group, mine.session) == (os.getpgid(0), os.getsid(0))
    odd = "7 (a ) S b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20"
    found = remote._parse_stat(odd)
    assert (found.pid, found.parent, found.group, found.session, found.start) == (7, 1, 2, 3, "4711")
    for state in "ZX":
        with pytest.raises(ValueError, match="zombie"):
            remote._parse_stat(odd.replace(") S 1", f") {state} 1"))


def test_without_proc_processes_come_from_ps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ps").write_text("#!/bin/sh\necho ' 7 1 2 S+ Fri Nov 27 10:00:00 2026'\necho ' 8 1 2 Z x'\n")
    (tmp_path / "ps").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/proc/self/stat" and exists(path))
    table = remote._processes()
    assert list(table) == [7]
    found = table[7]
    assert (found.parent, found.group, found.session, found.start) == (1, 2, None, "Fri Nov 27 10:00:00 2026")


# ------------------------------------------------------------------------------------------------------ records


def listed(prefix: Path, **more: Any) -> tuple[list[str], bool]:
    answer: dict[str, Any] = remote.call("list", {"prefix": str(prefix), **more})
    return list(answer["jobs"]), answer["more"]


def test_jobs_are_listed_newest_first_in_pages(tmp_path: Path) -> None:
    for number in (3, 1, 2):
        os.utime(make_job(tmp_path, str(number)), (number, number))
    (tmp_path / "4").mkdir()  # half made
    (tmp_path / "no job").mkdir()
    os.utime(tmp_path / "4", (0.0, 0.0))
    assert listed(tmp_path) == (["3", "2", "1"], False)
    assert listed(tmp_path, limit=2) == (["3", "2"], True)
    assert listed(tmp_path, skip=1, limit=2) == (["2", "1"], True)
    assert listed(tmp_path, skip=2, limit=2) == (["1"], False)
    assert listed(tmp_path, jobs=[{"stamp": "2"}]) == (["2"], False)


def test_many_jobs_are_not_listed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(remote.__dict__, "LIST_LIMIT", 2)
    for number in range(3):
        make_job(tmp_path, str(number))
    found, more = listed(tmp_path, limit=5)
    assert (len(found), more) == (2, True)


def test_the_jobs_of_a_flow_run_are_listed_with_all_that_is_known(slurm: Commands, tmp_path: Path) -> None:
    submit(tmp_path, job())
    make_job(tmp_path, "9", owner={"flow_run": "x"})
    (tmp_path / ".runs" / FLOW_RUNS[0] / "garbage").touch()
    assert listed(tmp_path, flow_run=FLOW_RUNS[0]) == ([STAMP], False)
    assert listed(tmp_path, flow_run="33333333-3333") == ([], False)
    for odd in ("../x", "x" * 8, "a" * 7, 5):
        assert remote.call("list", {"prefix": str(tmp_path), "flow_run": odd})["error"]["kind"] == "payload"
    entries = remote.call("list", {"prefix": str(tmp_path)})["jobs"]
    assert entries[STAMP] | {"created": 0} == {
        "key": "k",
        "name": "recon",
        "type": "slurm",
        "owner": OWNER,
        "flow_runs": FLOW_RUNS,
        "created": 0,
        "jobndx": 1,
        "native_id": "77",
        "asked": {"duration": 5, "memory": None},
        "state": "queued",
        "prefix": str(tmp_path),
    }
    assert abs(entries[STAMP]["created"] - time.time()) < 60
    assert (entries["9"]["flow_runs"], entries["9"]["state"], entries["9"]["asked"]) == ([], "new", {})
    (tmp_path / STAMP / "status.csv").open("a").write("9.0,0,canceled,\n")
    assert remote.call("list", {"prefix": str(tmp_path)})["jobs"][STAMP]["state"] == "canceled"


ENDED = ("0,new,{}", "1,queued,x", "1,active,", "1,completed,")


def removed(prefix: Path, **more: Any) -> dict[str, Any]:
    return dict(call(prefix, "remove", {"stamp": STAMP, "owner": OWNER, **more})["jobs"][STAMP])


def test_what_has_ended_is_removed_with_all_that_was_noted(tmp_path: Path) -> None:
    make_job(tmp_path, rows=ENDED)
    other = make_job(tmp_path, "9", rows=ENDED)
    for flow_run, stamps in (("one", [STAMP]), ("both", [STAMP, "9"])):
        (tmp_path / ".runs" / flow_run).mkdir(parents=True)
        for stamp in stamps:
            (tmp_path / ".runs" / flow_run / stamp).touch()
    (tmp_path / ".locks").mkdir()
    assert removed(tmp_path, jobndx=1) == {"removed": True}
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*") if path.parent != other)
    assert left == [".runs/both"]
    assert [path.name for path in (tmp_path / ".runs" / "both").iterdir()] == ["9"]
    [line] = audit(tmp_path)
    assert (line["operation"], line["stamp"], line["owner"]) == ("remove", STAMP, OWNER)
    assert removed(tmp_path) == {"kept": "it is not a job of prefect-psik"}


@pytest.mark.parametrize(
    ("rows", "jobndx", "why"),
    [
        ((*ENDED, "2,queued,y", "2,failed,3"), 1, "it has been run again since"),
        (ENDED, None, None),
        ((*ENDED, "2,queued,y", "2,failed,3"), 2, None),
    ],
)
def test_only_the_run_that_is_meant_is_removed(
    tmp_path: Path, rows: tuple[str, ...], jobndx: int | None, why: str | None
) -> None:
    base = make_job(tmp_path, rows=rows)
    (tmp_path / ".locks").mkdir()
    more = {} if jobndx is None else {"jobndx": jobndx}
    assert removed(tmp_path, **more) == ({"removed": True} if why is None else {"kept": why})
    assert base.exists() is (why is not None)


def test_what_may_be_alive_or_is_worked_on_stays(slurm: Commands, tmp_path: Path) -> None:
    submit(tmp_path, job())
    slurm.say("squeue", "77|RUNNING|1|Unknown||n1|None")
    assert removed(tmp_path) == {"kept": "it may still be running"}
    with locked(tmp_path):
        assert removed(tmp_path) == {"kept": "another call is working on it"}
    assert (tmp_path / STAMP).is_dir()


@pytest.fixture
def immovable(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a directory that not even root can remove: something is mounted there."""
    mounted: list[Path] = []

    def mount(path: Path) -> None:
        path.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "psik-test", path], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        mounted.append(path)

    yield mount
    for line in Path("/proc/mounts").read_text().splitlines():
        device, place = line.split()[:2]
        if device == "psik-test" and Path(place).is_relative_to(tmp_path):  # it may have been moved
            subprocess.run(["umount", place], check=True)


def test_removed_is_only_what_is_gone(tmp_path: Path, immovable: Callable[[Path], None]) -> None:
    base = make_job(tmp_path, rows=ENDED)
    other = make_job(tmp_path, "9", rows=ENDED)
    (tmp_path / ".locks").mkdir()
    (base / "work" / "stuck").parent.mkdir(exist_ok=True)
    immovable(base / "work" / "stuck")
    answer = removed(tmp_path)
    away = tmp_path / ".locks" / f"removed.{STAMP}"
    assert "removed" not in answer
    assert f"{away}/work/stuck: Device or resource busy" in answer["kept"]
    assert sorted(path.name for path in away.rglob("*")) == ["stuck", "work"], "all else is gone"
    subprocess.run(["umount", away / "work" / "stuck"], check=True)
    assert call(tmp_path, "remove", {"stamp": "9", "owner": OWNER})["jobs"]["9"] == {"removed": True}
    assert not away.exists(), "what was left is tried again"
    assert not other.exists()


def test_a_job_that_cannot_be_moved_is_whole(
    tmp_path: Path, immovable: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_job(tmp_path, rows=ENDED)
    (tmp_path / ".locks").mkdir()
    away = tmp_path / ".locks" / f"removed.{STAMP}"
    immovable(away)
    before = sorted(base.rglob("*"))
    assert "cannot be moved" in removed(tmp_path)["kept"]
    assert sorted(base.rglob("*")) == before
