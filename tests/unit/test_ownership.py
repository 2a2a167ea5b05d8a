"""What others own, could write or could replace is refused, with path, owner and mode; nothing in it is used."""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_psik.jobs.preflight import preflight_payload
from prefect_psik.models.jobs import Verdict
from tests.unit.reports import judge_preflight
from tests.unit.test_preflight import GOOD
from tests.unit.test_remote import (
    STAMP,
    check_answer,
    check_error,
    make_job,
    new_job,
    nothing_is_run,
    nothing_is_started,
    only,
    remote,
    snapshot,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")

#: Somebody who is neither root nor the user of this test.
OTHER = 4711
OURS = "99"
DONE = ('0,new,{"backend": {"type": "local"}}', "1,queued,999999999", "1,active,", "1,completed,")


def job_at(prefix: Path, stamp: str) -> Path:
    """A whole job directory of a job that completed, which `new_job` would find again."""
    job = new_job()
    base = make_job(prefix, stamp, rows=DONE, key=job["key"], digest=job["digest"], outputs=["*"], expect=["*"])
    (base / "spec.json").write_text(json.dumps({"script": "true", "directory": str(base / "work")}))
    (prefix / ".locks").mkdir(exist_ok=True)
    (base / "prefect" / "script").write_text("touch it-ran")
    (base / "prefect" / "intent.1").write_text(json.dumps({"time": 1.0, "attempt": [1, 1]}))
    (base / "work" / "forged.txt").write_text("forged")
    (base / "log" / "stdout.1").write_text("forged")
    for path in (prefix, prefix / ".locks", base, *base.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return base


def given_away(name: str) -> Callable[[Path], Path]:
    def plant(base: Path) -> Path:
        os.chown(base / name, OTHER, OTHER)
        return base / name

    return plant


def opened(name: str, mode: int) -> Callable[[Path], Path]:
    def plant(base: Path) -> Path:
        (base / name).chmod(mode)
        return base / name

    return plant


def linked(name: str) -> Callable[[Path], Path]:
    """A link, root's own, to the very same thing elsewhere."""

    def plant(base: Path) -> Path:
        path = base / name
        aside = base.parent.parent / "aside"
        path.rename(aside)
        path.symlink_to(aside)
        return path

    return plant


def fifo(name: str) -> Callable[[Path], Path]:
    def plant(base: Path) -> Path:
        (base / name).unlink()
        os.mkfifo(base / name, 0o600)
        return base / name

    return plant


RECORDS = ("prefect/job.json", "prefect/script", "spec.json", "status.csv")
PLANTS = {
    **{f"{name or 'directory'} of another": given_away(name) for name in ("", "prefect", "log", *RECORDS)},
    **{f"{name or 'directory'} open to a group": opened(name, 0o770) for name in ("", "prefect", "log", *RECORDS)},
    **{f"{name or 'directory'} open to all": opened(name, 0o707) for name in ("", "prefect/job.json")},
    **{f"{name or 'directory'} open to a group on purpose": opened(name, 0o2770) for name in ("", "prefect")},
    **{f"{name or 'directory'} a link": linked(name) for name in ("", "prefect", "log", *RECORDS)},
    **{f"{name} a FIFO": fifo(name) for name in RECORDS},
}
#: Removal is last: it takes our own job away.
OPERATIONS = ("submit", "status", "cancel", "check", "fetch", "list", "rerun", "remove")


def asked(operation: str, prefix: Path) -> dict[str, dict[str, Any]]:
    """What an operation says of the planted job and of ours; nothing may be started by it."""
    rerun = {"rerun_after": 1, "attempt": [2, 1]} if operation == "rerun" else {}
    jobs = [new_job(**rerun) | {"stamp": stamp} for stamp in (STAMP, OURS)]
    if operation != "submit":
        jobs = [job | {"jobndx": 1, "offsets": {"stdout": 0}} for job in jobs]
    with nothing_is_run(), nothing_is_started() as launch:
        name = "submit" if operation == "rerun" else operation
        answer = check_answer(remote.call(name, {"prefix": str(prefix), "jobs": jobs}))
    assert not any(STAMP in str(call) for call in launch.call_args_list)
    return dict(answer["jobs"])


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_job_is_refused_by_each_operation_and_ours_goes_on(tmp_path: Path, plant: str) -> None:
    prefix = tmp_path / "psik"
    planted, _ = job_at(prefix, STAMP), job_at(prefix, OURS)
    path = PLANTS[plant](planted)
    before = snapshot(planted, prefix / "none")
    status = path.lstat()
    for operation in OPERATIONS:
        found = asked(operation, prefix)
        assert set(found[STAMP]) == ({"kept"} if operation == "remove" else {"error"}), operation
        message = found[STAMP]["kept"] if operation == "remove" else check_error(found[STAMP]["error"])
        assert message.startswith(f"{path} on "), operation
        assert f"owner {'root' if status.st_uid == 0 else f'uid {OTHER}'}, " in message, operation
        assert stat.S_ISLNK(status.st_mode) or f"mode {stat.S_IMODE(status.st_mode):04o}" in message, operation
        assert snapshot(planted, prefix / "none") == before, operation
        assert not {"error", "kept"} & set(found[OURS]), (operation, found[OURS])


@pytest.mark.parametrize("name", ["end.1", "cancel.1", "found.1", "intent.1", "owner.1"])
def test_a_record_of_a_run_that_is_not_ours_is_not_believed(tmp_path: Path, name: str) -> None:
    planted = job_at(tmp_path / "psik", STAMP)
    path = planted / "prefect" / name
    if name == "owner.1":
        path.symlink_to("999999999")
    else:
        path.write_text("{}")
    os.lchown(path, OTHER, OTHER)
    error = only({"jobs": {STAMP: call("status", tmp_path / "psik")["jobs"][STAMP]}})["error"]
    assert str(path) in check_error(error)
    assert error["kind"] == "foreign"


def refused(operation: str, prefix: Path) -> str:
    """Why an operation refuses a whole prefix."""
    answer = call(operation, prefix)
    return str(answer["prefix"]["error"] if operation == "preflight" else check_error(answer["error"]))


def call(operation: str, prefix: Path, **fields: Any) -> dict[str, Any]:
    """Carry out an operation for one job; nothing is started."""
    operation = "submit" if operation == "rerun" else operation
    job = new_job(**fields) | {"jobndx": 1}
    payload = {**preflight_payload_of(), "prefix": str(prefix), "jobs": [job]}
    with nothing_is_started():
        return check_answer(remote.call(operation, payload))


def preflight_payload_of() -> dict[str, Any]:
    from prefect_psik.blocks import PsikBackend
    from prefect_psik.spec.jobspec import JobSpec

    return preflight_payload(PsikBackend(), JobSpec(script="true\n"))


# ------------------------------------------------------------------------------------------------ the prefix


@pytest.mark.parametrize("mode", [0o700, 0o711, 0o755, 0o1770, 0o2770, 0o3770, 0o2775])
def test_a_prefix_that_is_used(tmp_path: Path, mode: int) -> None:
    """Of a group's, only those on purpose. What we make in it is ours alone, whatever the umask."""
    prefix = tmp_path / "psik"
    prefix.mkdir()
    os.chown(prefix, 0, OTHER)
    prefix.chmod(mode)
    before = os.umask(0)
    try:
        answer = only(call("submit", prefix, owner={"flow_runs": ["0" * 8]}))
    finally:
        os.umask(before)
    assert answer["created"] is True
    made = [path for path in prefix.rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}
    loose = mode in (0o2770, 0o2775)
    assert [f"chmod +t {prefix}." in warning for warning in answer["warnings"]] == [True] * loose
    assert stat.S_IMODE(prefix.stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o770, 0o775, 0o777, 0o707, 0o1777, 0o3777, 0o2777])
def test_a_prefix_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    prefix = tmp_path / "psik"
    job_at(prefix, STAMP)
    os.chown(prefix, 0, OTHER)
    prefix.chmod(mode)
    for operation in (*OPERATIONS, "usage", "preflight"):
        message = refused(operation, prefix)
        assert message.startswith(f"{prefix} on "), operation
        assert f"mode {mode:04o}" in message
        assert f"chmod go-w {prefix}" in message


def test_a_prefix_that_only_our_own_private_group_can_write_is_used(tmp_path: Path) -> None:
    """As `mkdir` makes it with the umask 0002 of many systems."""
    job_at(tmp_path / "psik", STAMP)
    (tmp_path / "psik").chmod(0o775)
    assert "error" not in call("status", tmp_path / "psik")["jobs"][STAMP]


def its_owner(prefix: Path) -> Path:
    os.chown(prefix, OTHER, OTHER)
    return prefix


def its_group_directory(prefix: Path) -> Path:
    os.chown(prefix, OTHER, OTHER)
    prefix.chmod(0o2770)
    return prefix


def it_is_a_link(prefix: Path) -> Path:
    prefix.rename(prefix.parent / "aside")
    prefix.symlink_to(prefix.parent / "aside")
    return prefix


def above_is_open(prefix: Path) -> Path:
    prefix.parent.chmod(0o777)
    return prefix.parent


def above_is_open_to_a_group(prefix: Path) -> Path:
    os.chown(prefix.parent, 0, OTHER)
    prefix.parent.chmod(0o775)
    return prefix.parent


def above_is_of_another(prefix: Path) -> Path:
    os.chown(prefix.parent, OTHER, OTHER)
    return prefix.parent


def above_is_sticky_and_of_another(prefix: Path) -> Path:
    os.chown(prefix.parent, OTHER, OTHER)
    prefix.parent.chmod(0o1777)
    return prefix.parent


def above_is_a_link_of_another(prefix: Path) -> Path:
    above = prefix.parent
    above.rename(above.parent / "aside")
    above.symlink_to("aside")
    os.lchown(above, OTHER, OTHER)
    return above


def above_leads_where_it_is_open(prefix: Path) -> Path:
    above, aside = prefix.parent, prefix.parent.parent / "open" / "aside"
    aside.parent.mkdir()
    aside.parent.chmod(0o777)
    above.rename(aside)
    above.symlink_to("open/../open/aside")
    return aside.parent


def own_records(name: str) -> Callable[[Path], Path]:
    def plant(prefix: Path) -> Path:
        (prefix / name).mkdir(mode=0o700, exist_ok=True)
        os.chown(prefix / name, OTHER, OTHER)
        return prefix / name

    return plant


@pytest.mark.parametrize(
    "plant",
    [
        its_owner,
        its_group_directory,
        it_is_a_link,
        above_is_open,
        above_is_open_to_a_group,
        above_is_sticky_and_of_another,
        above_is_a_link_of_another,
        above_leads_where_it_is_open,
        pytest.param(own_records(".locks"), id="locks"),
        pytest.param(own_records(".runs"), id="runs"),
    ],
)
def test_a_prefix_that_others_own_or_can_replace_is_refused(tmp_path: Path, plant: Callable[[Path], Path]) -> None:
    above = tmp_path / "above"
    above.mkdir(mode=0o755)
    job_at(above / "psik", STAMP)
    path = plant(above / "psik")
    before = snapshot(tmp_path, tmp_path / "none")
    for operation in (*OPERATIONS, "usage", "preflight"):
        message = refused(operation, above / "psik")
        assert message.startswith(f"{path} on "), operation
        assert "owner " in message
        assert snapshot(tmp_path, tmp_path / "none") == before, operation


def test_a_directory_above_that_its_owner_keeps_to_himself_is_used_with_a_warning(tmp_path: Path) -> None:
    """As that of a project's leader, of mode 2750: he could replace what is in it, and members could not."""
    above = tmp_path / "above"
    job_at(above / "psik", STAMP)
    above_is_of_another(above / "psik")
    above.chmod(0o2750)
    assert "error" not in call("status", above / "psik")["jobs"][STAMP]
    [warning] = call("preflight", above / "psik")["prefix"]["owners"]["shared"]
    assert warning.startswith(f"The owner of {above}, uid {OTHER}, can replace the directories of jobs")


def test_directories_above_a_prefix_that_are_used(tmp_path: Path) -> None:
    """Everybody's with the sticky bit, our own private group's, and a link of our own."""
    sticky, private = tmp_path / "sticky", tmp_path / "sticky" / "private"
    sticky.mkdir()
    sticky.chmod(0o1777)
    private.mkdir()
    private.chmod(0o775)
    (tmp_path / "link").symlink_to("sticky")
    answer = only(call("submit", tmp_path / "link" / "private" / "psik"))
    assert answer["created"] is True
    assert answer["warnings"] == []


def access_list(path: Path, kind: str) -> None:
    """Let one more user write in a directory, by a POSIX ACL, as `setfacl` does; the mode shows its mask."""
    entries = ((0x01, 7, -1), (0x02, 7, OTHER), (0x04, 5, -1), (0x10, 7, -1), (0x20, 5, -1))
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(path, f"system.posix_acl_{kind}", packed)
    except OSError as err:
        pytest.skip(f"no access lists here: {err}")


@pytest.mark.parametrize("above", [False, True])
def test_write_access_by_an_access_list_is_seen(tmp_path: Path, above: bool) -> None:
    prefix = tmp_path / "above" / "psik"
    job_at(prefix, STAMP)
    path = prefix.parent if above else prefix
    path.chmod(0o755)
    access_list(path, "access")
    assert refused("submit", prefix).startswith(f"{path} on ")


def test_an_access_list_that_is_inherited_opens_no_job(tmp_path: Path) -> None:
    prefix = tmp_path / "psik"
    prefix.mkdir(mode=0o700)
    access_list(prefix, "default")
    assert only(call("submit", prefix))["created"] is True
    made = [path for path in prefix.rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o077 for path in made} == {0}, "the mask lets nobody in"


def test_a_directory_of_a_group_above_a_prefix_is_used_with_a_warning(tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    os.chown(group, OTHER, OTHER)
    group.chmod(0o2770)
    [warning] = only(call("submit", group / "psik"))["warnings"]
    assert f"below {group} on " in warning
    assert "It should belong to root or to you." in warning


@pytest.mark.parametrize("plant", ["owner", "mode", "link", "fifo"])
def test_an_audit_file_of_another_is_not_written_to(tmp_path: Path, plant: str) -> None:
    prefix = tmp_path / "psik"
    job_at(prefix, STAMP)
    audit = prefix / "audit.jsonl"
    if plant == "link":
        (tmp_path / "aside").write_text("")
        audit.symlink_to(tmp_path / "aside")
    elif plant == "fifo":
        os.mkfifo(audit, 0o600)
    else:
        audit.touch(mode=0o600)
        os.chown(audit, OTHER if plant == "owner" else 0, OTHER)
        audit.chmod(0o666 if plant == "mode" else 0o600)
    for operation in ("submit", "remove", "preflight"):
        assert refused(operation, prefix).startswith(f"{audit} on "), operation
        assert (prefix / STAMP / "work").exists()


def test_a_cancel_does_not_depend_on_the_audit_file(tmp_path: Path) -> None:
    base = make_job(tmp_path, rows=("0,new,{}",))
    (tmp_path / "audit.jsonl").touch()
    os.chown(tmp_path / "audit.jsonl", OTHER, OTHER)
    (tmp_path / ".locks").mkdir(mode=0o700)
    assert "error" not in call("cancel", tmp_path)["jobs"][STAMP]
    assert ",1,canceled," in (base / "status.csv").read_text()
    assert (tmp_path / "audit.jsonl").read_text() == ""


def test_a_job_directory_that_appears_meanwhile_is_not_removed(tmp_path: Path) -> None:
    """Between the look and the making of a directory another may make it, with what is ours in it by a link."""
    prefix = tmp_path / "psik"
    prefix.mkdir(mode=0o700)
    mkdir = os.mkdir

    def slow(path: str, mode: int = 0o777, **more: Any) -> None:
        if str(path) == str(prefix / STAMP):
            mkdir(path, 0o777)
            (prefix / STAMP / "precious").write_text("x")
        mkdir(path, mode, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "mkdir", slow)
        error = only(call("submit", prefix))["error"]
    assert "File exists" in check_error(error)
    assert (prefix / STAMP / "precious").read_text() == "x"


@pytest.mark.parametrize("mode", [0o755, 0o1777, 0o777])
def test_the_link_to_an_odd_prefix_lies_where_nobody_can_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """Slurm reaches the job through it, perhaps hours later."""
    beside, home = tmp_path / "beside", tmp_path / "home"
    beside.mkdir()
    beside.chmod(mode)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    plain = remote._plain(str(beside / "with blank" / "psik" / STAMP))
    assert Path(plain).parent.parent == (home if mode == 0o777 else beside)


# ------------------------------------------------------------------------------------------------ preflight


def test_preflight_reports_directories_in_the_places_of_jobs(tmp_path: Path) -> None:
    prefix = tmp_path / "psik"
    planted, _ = job_at(prefix, STAMP), job_at(prefix, OURS)
    os.chown(planted, OTHER, OTHER)
    os.chown(prefix, 0, OTHER)
    prefix.chmod(0o2770)
    owners = call("preflight", prefix)["prefix"]["owners"]
    assert [text.split(" on ")[0] for text in owners["planted"]] == [str(planted)]
    checks = judge_preflight(GOOD | {"prefix": GOOD["prefix"] | {"owners": owners}}, duration=1, nodes=1)
    [check] = [check for check in checks if check.name == "owners"]
    assert check.verdict is Verdict.warning
    assert f"uid {OTHER}" in check.message
    assert f"chmod +t {prefix}." in check.message


def test_preflight_says_that_all_is_ours(tmp_path: Path) -> None:
    job_at(tmp_path / "psik", STAMP)
    owners = call("preflight", tmp_path / "psik")["prefix"]["owners"]
    assert owners == {"shared": [], "planted": []}
    checks = judge_preflight(GOOD | {"prefix": GOOD["prefix"] | {"owners": owners}}, duration=1, nodes=1)
    assert {check.verdict for check in checks if check.name == "owners"} == {Verdict.ok}
