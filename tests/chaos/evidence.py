"""Gathers the evidence of a run: the files of lines, Slurm's accounting and queue, and what still lives."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from tests.chaos.driver import Driver
from tests.chaos.faults import Field
from tests.chaos.plan import PART
from tests.chaos.score import ENDED, Evidence, SlurmJob
from tests.chaos.truth import read_told

_LOOK_SECONDS = 3.0


def gather(field: Field, driver: Driver, deadline: float) -> Evidence:
    """Wait until Slurm has nothing left that was cancelled, or until the deadline, and gather.

    A controller that was killed may believe for minutes that a job runs which has ended.
    """
    lives = driver.lives
    names = {job.name for life in lives for job in life.scenario.jobs}
    cancelled = {job.name for life in lives if life.cancelled_at for job in life.scenario.jobs}
    slurm = _slurm_jobs(field, names)
    while time.time() < deadline and any(
        job.name in cancelled and job.state not in ENDED for job in slurm.values()
    ):
        time.sleep(_LOOK_SECONDS)
        driver.see()
        slurm = _slurm_jobs(field, names)
    told = field.services.place / "told"
    return Evidence(
        scenarios=[life.scenario for life in lives],
        ended=driver.ended,
        runs=field.services.runs(),
        told=read_told(told.read_text().splitlines(keepends=True) if told.exists() else []),
        slurm=slurm,
        alive=frozenset(driver.see() & names),
        seen=driver.seen,
        faults=field.faults,
        intended=_intended(field.prefix),
        helped=_helped(field.prefix, {str(life.id) for life in lives}),
        parts=_parts(field.prefix),
        losses=field.losses,
        records=_records(field.prefix),
    )


def _names(prefix: Path) -> dict[str, str]:
    """Names of jobs, by their stamps."""
    return {
        path.parent.parent.name: json.loads(path.read_text())["name"] for path in prefix.glob("*/prefect/job.json")
    }


def _intended(prefix: Path) -> dict[str, int]:
    """How many runs of each job were to be submitted: each leaves an intent."""
    return {name: len(list(prefix.glob(f"{stamp}/prefect/intent.*"))) for stamp, name in _names(prefix).items()}


def _helped(prefix: Path, flow_runs: set[str]) -> dict[str, str]:
    """Who canceled a job that its own flow run did not cancel, by its name: the facility's record knows."""
    names, record = _names(prefix), prefix / "audit.jsonl"
    found = {}
    for line in record.read_text().splitlines() if record.exists() else []:
        with suppress(ValueError):  # a full disk may cut a line
            entry = json.loads(line)
            if entry["operation"] == "cancel":
                owner = entry["owner"] or {}
                if owner.get("root_flow_run") in flow_runs:
                    continue
                by = "the command line" if owner.get("flow_run") in flow_runs else "flows/reconcile.py"
                found[names.get(entry["stamp"], "?")] = by
    return found


def _parts(prefix: Path) -> dict[str, dict[str, str]]:
    """The files of jobs that write several, by the name of the job."""
    return {
        name: {path.name: path.read_text().strip() for path in (prefix / stamp / "work").glob(PART.format("*"))}
        for stamp, name in _names(prefix).items()
    }


def _records(prefix: Path) -> dict[str, list[str]]:
    """What the facility wrote of each job, by its name: the audit, psik's record, and the files beside it."""
    record, found = prefix / "audit.jsonl", {}
    audit = record.read_text(errors="replace").splitlines() if record.exists() else []
    for stamp, name in _names(prefix).items():
        base = prefix / stamp
        lines = [f"audit {line}" for line in audit if f'"{stamp}"' in line]
        lines += [f"status {line}" for line in (base / "status.csv").read_text(errors="replace").splitlines()]
        for path in sorted((base / "prefect").iterdir(), key=lambda path: path.lstat().st_mtime):
            text = path.readlink() if path.is_symlink() else path.read_text(errors="replace")[:200]
            known = path.name in ("script", "job.json", "launcher")
            lines.append(f"{path.name} {path.lstat().st_mtime:.3f} {'' if known else text}".rstrip())
        found[name] = lines
    return found


def _slurm_jobs(field: Field, names: set[str]) -> dict[str, SlurmJob]:
    """All jobs of these names: as accounting has them, and over that as the queue has them."""
    user = f"--user={field.facility.user}"
    fields = "JobID,State,End,JobName,WorkDir"
    environment = "SLURM_TIME_FORMAT=%s"
    rows = field.facility.slurm.ask("env", environment, "sacct", "-nPX", user, "-S", "now-1day", "-o", fields)
    found = {}
    for line in rows.splitlines():
        native_id, state, end, name, directory = line.split("|", 4)
        if name in names and directory.startswith(f"{field.prefix}/"):
            found[native_id] = SlurmJob(name, state.split()[0], float(end) if end.isdigit() else None)
    for line in field.facility.squeue("-h", user, "-o", "%i|%T|%j|%Z").splitlines():
        native_id, state, name, directory = line.split("|", 3)
        if name in names and directory.startswith(f"{field.prefix}/") and state not in ENDED:
            found[native_id] = SlurmJob(name, state, None)
    return found
