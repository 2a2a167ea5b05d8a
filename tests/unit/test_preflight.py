"""What a preflight makes of the facts of a facility."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from prefect_psik.exceptions import PreflightFailed
from prefect_psik.jobs.preflight import failure_of, slurm_minutes
from prefect_psik.models.jobs import PreflightReport, Verdict
from prefect_psik.remote import letter
from tests.unit.reports import judge_preflight

GOOD: dict[str, Any] = {
    "letter": letter().rsplit('"', 2)[1],
    "host": "login1",
    "user": "beam",
    "python": "3.11.2",
    "executable": "/venv/bin/python",
    "versions": {"psik": "3.1.1", "globus-compute-endpoint": "4.19.0", "globus-compute-sdk": "4.19.0"},
    "site": {"file": None},
    "prefix": {"path": "/scratch/psik", "free_bytes": 10**12, "free_inodes": 10**6, "locks": True},
    "slurm": {
        "commands": ["sbatch"],
        "version": "slurm 22.05.8",
        "controller": {"ok": True, "text": "Slurmctld(primary) at ctl is UP"},
        "accounting": {"ok": True, "text": ""},
        "partition": {"PartitionName": "debug", "State": "UP", "MaxTime": "01:00:00", "TotalNodes": "4"},
        "test": {"ok": True, "text": "Job 9 to start at 1795393555 using 16 processors"},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    facts = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = facts
    for name in parents:
        place = place[name]
    place[last] = value
    return facts


def verdicts(facts: dict[str, Any], *, duration: int = 10, nodes: int = 1) -> dict[str, tuple[Verdict, str]]:
    found = judge_preflight(facts, duration=duration, nodes=nodes)
    assert all(check.message.endswith(".") and len(check.message) > 10 for check in found)
    return {check.name: (check.verdict, check.message) for check in found}


@pytest.mark.parametrize(("duration", "waits"), [(600, True), (300, False)])
def test_a_maintenance_ahead_is_a_warning(duration: int, waits: bool) -> None:
    facts = changed(
        "slurm.held",
        {
            "reservations": ["ReservationName=m StartTime=19900 EndTime=40000 Nodes=n[1-4] Flags=MAINT"],
            "partitions": {"debug": "n[1-4]"},
            "clock": {"19900": "1 Dec 08:00 CET"},
        },
    )
    found = verdicts({**facts, "now": 1000.0}, duration=duration)
    assert ("maintenance" in found) is waits
    if waits:
        assert found["maintenance"] == (
            Verdict.warning,
            "The job would wait: does not fit before the maintenance that starts 1 Dec 08:00 CET; with a duration "
            "of at most 5 h 15 min it could start now.",
        )


def test_a_partition_without_a_name_hides_no_other_check() -> None:
    facts = changed("slurm.held", {"reservations": []})
    del facts["slurm"]["partition"]["PartitionName"]
    assert "maintenance" not in verdicts({**facts, "now": 1000.0})


def test_a_full_queue_is_a_warning_since_a_submission_waits() -> None:
    test = {"ok": False, "text": "AssocMaxSubmitJobLimit Job violates", "full": "AssocMaxSubmitJobLimit"}
    verdict, message = verdicts(changed("slurm.test", test))["resources"]
    assert (verdict, message.startswith("The queue is full for now (")) == (Verdict.warning, True)
    assert verdicts(changed("slurm.test", {**test, "full": None}))["resources"][0] is Verdict.failed


def test_all_is_well() -> None:
    found = verdicts(GOOD)
    assert {verdict for verdict, _ in found.values()} == {Verdict.ok}
    assert "2026-" in found["resources"][1], "Slurm's estimate is a time that people read"


@pytest.mark.parametrize(
    ("path", "value", "check", "verdict", "words"),
    [
        ("versions.psik", None, "psik", "failed", "pip install 'psik>=3.1.1'"),
        ("versions.psik", "3.0.9", "psik", "failed", "too old"),
        ("versions.psik", "3.1.4", "psik", "ok", "3.1.4"),
        ("versions.psik", "4.0rc1", "psik", "warning", "Try one job"),
        ("python", "3.13.0", "versions", "ok", "does no harm"),
        ("python", "3.8.10", "versions", "failed", "too old"),
        ("prefix", {"error": "The prefix /x is not writable."}, "prefix", "failed", "not writable"),
        ("prefix.free_bytes", 10, "space", "failed", "Remove old job directories"),
        ("prefix.free_bytes", 10**8, "space", "warning", "100,000,000 bytes"),
        ("prefix.free_inodes", 3, "inodes", "failed", "3 inodes"),
        ("prefix.locks", False, "locks", "failed", "submit a job twice"),
        ("slurm.commands", ["qsub"], "scheduler", "failed", "qsub .PBS"),
        ("slurm.commands", [], "scheduler", "failed", "not on the PATH"),
        ("slurm.controller", {"ok": False, "text": "DOWN"}, "scheduler", "failed", "cannot be reached"),
        ("slurm.accounting", {"ok": False, "text": "disabled"}, "accounting", "warning", "disabled"),
        ("slurm.partition", None, "queue", "failed", "no such partition"),
        ("slurm.partition.State", "DOWN", "queue", "failed", "is DOWN"),
        ("slurm.partition.MaxTime", "00:05:00", "queue", "failed", "at most 5 min, but the job asks for 10,"),
        ("slurm.partition.MaxTime", "UNLIMITED", "queue", "ok", "is up"),
        ("slurm.test", {"ok": False, "text": "Invalid account"}, "resources", "failed", "Invalid account"),
        ("slurm.test", None, "resources", "warning", "was not tested"),
    ],
)
def test_one_thing_is_wrong(path: str, value: Any, check: str, verdict: str, words: str) -> None:
    import re

    found, message = verdicts(changed(path, value))[check]
    assert found == verdict, message
    assert re.search(words, message), message


def test_more_nodes_than_the_partition_has() -> None:
    assert verdicts(GOOD, nodes=5)["queue"][0] is Verdict.failed
    assert verdicts(GOOD, nodes=4)["queue"][0] is Verdict.ok


def test_a_file_system_without_inodes_is_not_asked_for_them() -> None:
    assert "inodes" not in verdicts(changed("prefix.free_inodes", None))


def test_a_python_of_the_nodes_is_looked_at() -> None:
    facts = GOOD | {"psik_python": {"path": "/opt/py", "executable": False}}
    assert verdicts(facts)["psik_python"][0] is Verdict.warning


def test_a_failure_carries_the_report() -> None:
    checks = judge_preflight(changed("prefix.locks", False), duration=1, nodes=1)
    error = failure_of(PreflightReport(backend="x", checks=checks))
    assert isinstance(error, PreflightFailed)
    copied = pickle.loads(pickle.dumps(error))
    assert [check.name for check in copied.report.failures] == ["locks"]
    assert failure_of(PreflightReport(backend="x", checks=[])) is None


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("01:00:00", 60), ("2-00:30:00", 2910), ("00:00:30", 0), ("UNLIMITED", None), ("", None)],
)
def test_time_limits_of_slurm(text: str, minutes: int | None) -> None:
    assert slurm_minutes(text) == minutes


@pytest.mark.parametrize("answering", ["0" * 64, "", None])
def test_a_function_of_another_release_is_told(answering: str | None) -> None:
    checks = judge_preflight(GOOD | {"letter": answering}, duration=1, nodes=1)
    found = [check for check in checks if check.name == "function"]
    assert [check.verdict for check in found] == [Verdict.warning]
    assert "prefect-psik functions register" in found[0].message
