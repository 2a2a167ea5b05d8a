"""The truth: what the jobs themselves wrote and what flows told of them, from files of lines; and the faults."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One start of a job's script."""

    native_id: str
    jobndx: int
    begin: float
    end: float | None = None
    code: int | None = None


@dataclass(frozen=True)
class Told:
    """What a flow learned of a job."""

    job: str
    flow_run: str
    native_id: str | None
    state: str
    cause: str | None
    exit_code: int | None
    output: str
    message: str
    time: float


@dataclass(frozen=True)
class Fault:
    """A fault that happened; `flow_run` is the one whose process it killed."""

    name: str
    begin: float
    end: float
    flow_run: str | None = None


def read_runs(lines: Iterable[str]) -> dict[str, list[Run]]:
    """Runs by the name of the job, in the order of their starts; an end belongs to the last start of its id."""
    found: dict[str, list[Run]] = defaultdict(list)
    for line in lines:
        word, name, native_id, jobndx, at, *rest = line.split()
        runs = found[name]
        if word == "start":
            runs.append(Run(native_id, int(jobndx), float(at)))
            continue
        number = max(n for n, run in enumerate(runs) if (run.native_id, run.jobndx) == (native_id, int(jobndx)))
        runs[number] = Run(native_id, int(jobndx), runs[number].begin, float(at), int(rest[0]))
    return dict(found)


def read_told(lines: Iterable[str]) -> dict[str, list[Told]]:
    """What was told, by the name of the job, in order; a line that a kill cut off is left out."""
    found: dict[str, list[Told]] = defaultdict(list)
    for line in lines:
        if line.endswith("\n"):
            told = Told(**json.loads(line))
            found[told.job].append(told)
    return dict(found)
