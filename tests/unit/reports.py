"""Reports of `remote.check` as the unit tests need them, and facts as they arrive."""

from __future__ import annotations

from typing import Any

from prefect_psik.jobs import preflight
from prefect_psik.models.jobs import Check, JobHandle, JobStatus
from prefect_psik.outcome import judge as outcome
from prefect_psik.outcome.answers import Facts
from prefect_psik.outcome.arrival import read
from prefect_psik.outcome.preflight_facts import PreflightAnswer


def report(path: str, good: int, **more: Any) -> dict[str, Any]:
    """Return what the facility says of an entry with so many matches that count."""
    known: dict[str, Any] = {"expanded": path, "count": None, "at_least": 1, "matches": good, "good": good}
    return {"path": path, **known, "wrong": [], "unread": 0, "trouble": None, **more}


def read_facts(facts: dict[str, Any]) -> Facts:
    """Read facts of one job as they arrive."""
    return read(Facts, facts, what="a job", place="here")


def judge(facts: dict[str, Any], handle: JobHandle) -> JobStatus:
    """Judge facts of one job."""
    return outcome.judge(read_facts(facts), handle)


def judge_preflight(facts: dict[str, Any], *, duration: int, nodes: int) -> list[Check]:
    """Judge the facts of a preflight."""
    read_facts = read(PreflightAnswer, facts, what="the preflight", place="here")
    return preflight.judge_preflight(read_facts, duration=duration, nodes=nodes)
