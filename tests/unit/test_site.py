"""Tests of the site's own psik.json: what it pins, how jobs could evade it, and when it is not believed."""

from __future__ import annotations

import getopt
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import psik.config
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_psik.blocks import BackendAttributes, PsikBackend
from prefect_psik.jobs.preflight import preflight_payload
from prefect_psik.models.jobs import Verdict
from prefect_psik.remote import letter
from prefect_psik.spec.identity import Identity
from prefect_psik.spec.jobspec import JobSpec
from tests.unit.reports import judge_preflight

#: The letter as it arrives: one text, in a namespace of its own.
remote: Any = ModuleType("the_letter")
exec(compile(letter(), "<letter>", "exec"), remote.__dict__)

STAMP = "12345678901234567890"
ONE: dict[str, Any] = {"duration": 1, "nodes": 1}
BACKENDS = {
    "debug": {"type": "slurm", "queue_name": "debug", "project_name": "proj1"},
    "any-queue": {"type": "slurm", "project_name": "stf006", "attributes": {"--qos": "low"}},
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The site's file, which belongs to somebody else than the user that the job would run as."""
    (tmp_path / "etc").mkdir(mode=0o755)
    (tmp_path / "etc").chmod(0o755)
    path = tmp_path / "etc" / "psik.json"
    monkeypatch.setattr(remote, "SITE_FILE", str(path))
    monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    return path


def write(path: Path, **document: Any) -> None:
    path.write_text(json.dumps(document))
    path.chmod(0o644)


@contextmanager
def nothing_is_started() -> Iterator[mock.Mock]:
    """Submit up to the point where psik would be asked."""
    with mock.patch.object(remote, "_launch", return_value=("1", [])) as launch:
        yield launch


def submission(prefix: Path, attributes: BackendAttributes | None = None, **spec: Any) -> dict[str, Any]:
    """One job, as our side would send it."""
    backend = PsikBackend(prefix=str(prefix), attributes=attributes or BackendAttributes())
    identity = Identity(key="k", stamp=STAMP, attempt=[1])
    return backend.submission(JobSpec(script="true\n", **spec), identity, {})


def submit(prefix: Path, attributes: BackendAttributes | None = None, **spec: Any) -> dict[str, Any]:
    """Submit one job, as our side would; its answer, or the error."""
    job = submission(prefix, attributes, **spec)
    with nothing_is_started():
        answer = remote.call("submit", {"prefix": str(prefix), "jobs": [job]})
    found: dict[str, Any] = answer if "error" in answer else answer["jobs"][STAMP]
    return found


def slurm(**attributes: Any) -> BackendAttributes:
    return BackendAttributes.model_validate({"type": "slurm", **attributes})


def refusal(answer: dict[str, Any], kind: str = "rejected") -> str:
    assert answer["error"]["kind"] == kind, answer
    message = str(answer["error"]["message"])
    assert message.endswith(".")
    return message


# ----------------------------------------------------------------------------------------------- what is pinned


def test_without_a_file_nothing_is_pinned(site: Path, tmp_path: Path) -> None:
    assert remote._site_rules() == {}
    assert submit(tmp_path / "jobs", slurm(queue_name="any"))["created"]


def test_the_place_is_fixed() -> None:
    assert remote.SITE_FILE == "/etc/prefect-psik/psik.json"


def test_what_is_allowed_passes(site: Path, tmp_path: Path) -> None:
    write(site, prefix=str(tmp_path), backends=BACKENDS)
    assert submit(tmp_path / "a", slurm(queue_name="debug", project_name="proj1", options={"--mem": "1G"}))[
        "created"
    ]
    assert submit(tmp_path / "b", slurm(queue_name="other", project_name="stf006", qos="low"))["created"]
    assert psik.config.load_config(site).backends["debug"].queue_name == "debug", "it is psik's own format"


def test_variables_of_the_prefix_are_those_of_the_facility(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    write(site, prefix="$SCRATCH/psik")
    (tmp_path / "scratch" / "psik").mkdir(parents=True)
    assert submit(tmp_path / "scratch" / "psik" / "mine")["created"]
    assert "does not allow the prefix" in refusal(submit(tmp_path / "scratch"))


def test_another_prefix_is_refused_and_not_touched(site: Path, tmp_path: Path) -> None:
    write(site, prefix=str(tmp_path / "allowed"))
    for prefix in (tmp_path / "elsewhere", tmp_path / "allowed" / ".." / "elsewhere", tmp_path / "allowed-not"):
        message = refusal(submit(prefix))
        assert str(site) in message
        assert f"must be {tmp_path / 'allowed'} or a directory below it" in message
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "link").symlink_to(tmp_path)
    refusal(submit(tmp_path / "allowed" / "link" / "elsewhere"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["allowed", "etc"]


@pytest.mark.parametrize(
    ("attributes", "asked"),
    [
        (slurm(queue_name="gpu", project_name="proj1"), "queue_name gpu"),
        (slurm(queue_name="debug", project_name="other"), "project_name other"),
        (slurm(queue_name="debug"), "project_name none"),
        (slurm(project_name="stf006"), "--qos none"),
        (slurm(project_name="stf006", qos="high"), "--qos high"),
        (BackendAttributes(type="local"), "type local"),
        (slurm(queue_name="debug", project_name="proj1", options={"--partition": "gpu"}), "queue_name debug/gpu"),
        (slurm(queue_name="debug", project_name="proj1", options={"--part": "gpu"}), "queue_name debug/gpu"),
        (slurm(queue_name="debug", project_name="proj1", options={"--acc": "x"}), "project_name proj1/x"),
        (slurm(project_name="stf006", qos="low", options={"--qo": "high"}), "--qos high/low"),
    ],
)
def test_what_no_backend_allows_is_refused(
    site: Path, tmp_path: Path, attributes: BackendAttributes, asked: str
) -> None:
    write(site, backends=BACKENDS)
    message = refusal(submit(tmp_path / "jobs", attributes))
    assert str(site) in message
    assert asked in message
    assert "Allowed: debug (type slurm, queue_name debug, project_name proj1); any-queue (" in message
    assert not (tmp_path / "jobs" / STAMP).exists()


@pytest.mark.parametrize("option", ["-p", "-A", "-H", "--cluster-constraint"])
def test_options_that_cannot_be_read_are_refused(site: Path, tmp_path: Path, option: str) -> None:
    write(site, backends=BACKENDS)
    given = slurm(queue_name="debug", project_name="proj1", options={option: True if option == "-H" else "x"})
    if option == "--cluster-constraint":
        assert submit(tmp_path / "jobs", given)["created"]
    else:
        assert "use sbatch's long options" in refusal(submit(tmp_path / "jobs", given))


def test_another_cluster_is_refused(site: Path) -> None:
    write(site, backends=BACKENDS)
    rules = remote._site_rules()
    for option in ("--clusters=other", "--cluster=other"):
        with pytest.raises(remote.Trouble, match="no other cluster"):
            remote._check_backend(rules, BACKENDS["debug"], {option: option})


#: What psik would merge into the arguments of sbatch, or write into its batch script.
PAST_THE_SITE = [
    {"-p": "debug"},
    {"-A": "other"},
    {"-M": "other"},
    {"--clusters": "other"},
    {"--partition": "debug"},
    {"--partition=debug": "--partition=debug"},
    {"-I": "-pdebug"},
    {"--qos": "x"},
    {"": ""},
    {"psik_python": "/usr/bin/python3", "--hold": "--hold"},
    {"psik_python": "/usr/bin/python3\n#SBATCH --clusters=other"},
    {"psik_python": "/usr/bin/env python3"},
    {"psik_python": "python3"},
    {"psik_python": "$HOME/python3"},
    {"psik_python": ""},
    {"psik_python": ["/usr/bin/python3"]},
]


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("attributes", PAST_THE_SITE, ids=repr)
def test_nothing_passes_in_the_attributes_of_psiks_backend(
    site: Path, tmp_path: Path, attributes: dict[str, Any], pinned: bool
) -> None:
    if pinned:
        write(site, backends={"batch": {"type": "slurm", "queue_name": "batch"}})
    job = submission(tmp_path / "jobs", slurm(queue_name="batch"))
    job["backend"]["attributes"] = attributes
    with nothing_is_started() as launch:
        answer = remote.call("submit", {"prefix": str(tmp_path / "jobs"), "jobs": [job]})["jobs"][STAMP]
    assert "psik_python" in refusal(answer)
    assert not launch.called
    assert not (tmp_path / "jobs" / STAMP).exists()
    payload = preflight_payload(PsikBackend(prefix=str(tmp_path / "jobs")), JobSpec(script="true"))
    payload["backend"] = job["backend"]
    assert "psik_python" in remote.call("preflight", payload)["site"]["error"]


def test_a_plain_python_passes_in_the_attributes_of_psiks_backend(site: Path, tmp_path: Path) -> None:
    assert submit(tmp_path / "jobs", slurm(psik_python="/opt/psik-3.1/bin/python3.11"))["created"]


@pytest.mark.parametrize("attributes", [{"-p": "debug"}, {"psik_python": "/x\n#SBATCH -p debug"}], ids=repr)
def test_nothing_passes_in_what_is_stored_of_a_job_that_runs_again(
    site: Path, tmp_path: Path, attributes: dict[str, str]
) -> None:
    """As an older release, or the script itself, may have left it."""
    assert submit(tmp_path / "jobs", slurm())["created"]
    status = tmp_path / "jobs" / STAMP / "status.csv"
    first, _, rest = status.read_text().partition("\n")
    stamp, number, state, info = first.split(",", 3)
    changed = json.loads(info)
    changed["backend"]["attributes"] = attributes
    status.write_text(f"{stamp},{number},{state},{json.dumps(changed)}\n{rest}")
    job = submission(tmp_path / "jobs", slurm()) | {"rerun_after": 1, "attempt": [2]}
    with nothing_is_started() as launch:
        answer = remote.call("submit", {"prefix": str(tmp_path / "jobs"), "jobs": [job]})["jobs"][STAMP]
    assert "psik_python" in refusal(answer)
    assert not launch.called


_TOKENS = st.sampled_from(
    ["--partition", "--part", "--p", "-p", "-px", "-Hpx", "--account", "--acc=x", "-A", "--qos=low", "--hold", "x"]
)


@given(st.dictionaries(st.one_of(_TOKENS, _TOKENS.map(lambda name: f"{name}=x")), _TOKENS, max_size=4))
def test_what_passes_asks_sbatch_for_what_is_pinned(arguments: dict[str, str]) -> None:
    """Read the command line as getopt does, which takes unambiguous beginnings; the last one counts."""
    pinned = {"type": "slurm", "queue_name": "debug", "project_name": "proj1"}
    rules = {"file": "f", "prefix": None, "backends": {"debug": pinned}}
    try:
        remote._check_backend(rules, pinned, arguments)
    except remote.Trouble:
        return
    line = ["--partition", "debug", "--account", "proj1"]
    for key, value in arguments.items():
        line += [key, value]
    long = ["partition=", "account=", "qos=", "hold", "clusters=", "parsable"]
    try:
        options, _ = getopt.getopt(line, "p:A:H", long)
    except getopt.GetoptError:
        return  # sbatch refuses it
    effective = {
        {"-p": "--partition", "-A": "--account"}.get(name, name): value for name, value in options if value
    }
    assert (effective["--partition"], effective["--account"]) == ("debug", "proj1")


# ------------------------------------------------------------------------------------ when it is not believed


def a_link(site: Path) -> None:
    write(site.with_name("other.json"))
    site.symlink_to("other.json")


def a_linked_directory(site: Path) -> None:
    site.parent.rename(site.parent.with_name("real"))
    write(site.parent.with_name("real") / site.name)
    site.parent.symlink_to("real")


def a_pipe(site: Path) -> None:
    os.mkfifo(site, 0o644)


def a_directory(site: Path) -> None:
    site.mkdir()


def writable_for_a_group(site: Path) -> None:
    write(site)
    site.chmod(0o664)


def in_a_directory_writable_for_all(site: Path) -> None:
    write(site)
    site.parent.chmod(0o777)


@pytest.mark.parametrize(
    "make",
    [a_link, a_linked_directory, a_pipe, a_directory, writable_for_a_group, in_a_directory_writable_for_all],
)
def test_a_file_that_others_could_have_made_stops_all_submissions(site: Path, tmp_path: Path, make: Any) -> None:
    make(site)
    message = refusal(submit(tmp_path / "jobs"), "setup")
    assert str(site) in message
    assert "Nothing is submitted until the site's administrator fixes it" in message
    assert not (tmp_path / "jobs").exists()


def test_a_file_of_the_jobs_user_is_not_believed(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(site)
    if os.geteuid() == 0:  # only root can give a file away
        os.chown(site, os.getuid(), -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: site.stat().st_uid)
    assert "it must belong to root" in refusal(submit(tmp_path / "jobs"), "setup")
    if os.geteuid() == 0:
        os.chown(site, 0, -1)
        os.chown(site.parent, os.getuid(), -1)
        assert "if that is not you" in refusal(submit(tmp_path / "jobs"), "setup")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a valid psik.json"),
        ("{", "not a valid psik.json"),
        ("[]", "not a valid psik.json"),
        ('{"backends": []}', "not a valid psik.json"),
        ('{"backends": {"a": "slurm"}}', "not a valid psik.json"),
        ('{"backends": {"a": {"queue_name": 5}}}', "not a valid psik.json"),
        ('{"backend": {}}', "unknown field 'backend'"),
        ('{"backends": {"a": {"queue": "x"}}}', "unknown field 'queue'"),
        ('{"prefix": "scratch"}', "not an absolute path"),
        ('{"prefix": "$NO_SUCH_VARIABLE/x"}', "not an absolute path"),
    ],
)
def test_a_file_that_is_not_understood_stops_all_submissions(
    site: Path, tmp_path: Path, text: str, why: str
) -> None:
    site.write_text(text)
    assert why in refusal(submit(tmp_path / "jobs"), "setup")
    assert not (tmp_path / "jobs").exists()


def test_jobs_that_are_there_can_be_looked_at_and_canceled(site: Path, tmp_path: Path) -> None:
    assert submit(tmp_path / "jobs")["created"]
    write(site, prefix="/elsewhere", backends=BACKENDS)
    status = remote.call("status", {"prefix": str(tmp_path / "jobs"), "jobs": [{"stamp": STAMP}]})
    assert status["jobs"][STAMP]["type"] == "local"


def test_a_rerun_is_checked_by_what_is_stored(site: Path, tmp_path: Path) -> None:
    assert submit(tmp_path / "jobs", slurm(queue_name="gpu", project_name="proj1"))["created"]
    write(site, backends=BACKENDS)
    message = refusal(submit(tmp_path / "jobs", slurm(queue_name="debug", project_name="proj1")))
    assert "queue_name gpu" in message


def test_a_preflight_tells_what_the_site_rules_out_and_touches_nothing(site: Path, tmp_path: Path) -> None:
    backend = PsikBackend(prefix=str(tmp_path / "jobs"))
    write(site, backends=BACKENDS)
    payload = preflight_payload(
        backend.model_copy(update={"prefix": str(tmp_path / "other")}), JobSpec(script="true")
    )
    last = judge_preflight(remote.call("preflight", payload), **ONE)[-1]
    assert (last.name, last.verdict) == ("site", Verdict.failed)
    assert "does not allow this job, which asks for --qos none" in last.message
    assert not (tmp_path / "other").exists()
    write(site, backends={"here": {"type": "local"}})
    checks = judge_preflight(remote.call("preflight", payload), **ONE)
    assert [check.message for check in checks if check.name == "site"] == [f"{site} allows this prefix and job."]
    assert all(check.verdict is Verdict.ok for check in checks)


def test_the_documents_example_is_a_psik_json_that_pins(site: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert psik.config.Config.model_validate_json(example).backends["batch"].project_name == "als123"
    site.write_text(example)
    rules = remote._site_rules()
    assert rules["prefix"] == "/lustre/als"
    assert rules["backends"]["debug"]["--qos"] == "debug"


def test_an_empty_directory_of_the_jobs_name_does_not_open_another_prefix(site: Path, tmp_path: Path) -> None:
    write(site, prefix=str(tmp_path / "allowed"))
    other = tmp_path / "other"
    (other / STAMP).mkdir(parents=True)
    assert submit(other)["error"]["kind"] == "rejected"
    assert [path.name for path in other.rglob("*")] == [STAMP], "nothing was written there"
