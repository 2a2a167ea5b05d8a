"""What was told of the jobs, compared with the truth: a pure function of the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.plan import Job, Scenario
from tests.chaos.truth import Run, Told

#: A cancel under faults may take as long as the longest of them, a round of reconciling, and Slurm's own time for
#: a job's end.
FREE_SECONDS = 180.0
#: Slurm's states that end a job, and those that say that it did not end by itself.
ENDED_BADLY = frozenset(
    ["BOOT_FAIL", "CANCELLED", "DEADLINE", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"]
)
ENDED = ENDED_BADLY | {"COMPLETED", "FAILED"}
#: What a job that left no trace may honestly be called.
UNKNOWN = frozenset(["lost", "launch"])


@dataclass(frozen=True)
class SlurmJob:
    """A row of accounting, or of the queue."""

    name: str
    state: str
    end: float | None


@dataclass(frozen=True)
class Ended:
    """How a scenario's flow run ended, as Prefect says."""

    state: str
    cancelled_at: float | None = None


@dataclass(frozen=True)
class Evidence:
    """All that is known after a run of chaos.

    Attributes:
        scenarios: What was started.
        ended: Flow runs, by the name of the scenario.
        runs: What jobs wrote, by their name.
        told: What flows told, by the name of the job.
        slurm: What Slurm knows, by its id.
        alive: Names of jobs that have processes at the end.
        disk_full: When the disk at the prefix was full.
    """

    scenarios: Sequence[Scenario]
    ended: Mapping[str, Ended]
    runs: Mapping[str, Sequence[Run]]
    told: Mapping[str, Sequence[Told]]
    slurm: Mapping[str, SlurmJob]
    alive: frozenset[str] = frozenset()
    disk_full: Sequence[tuple[float, float]] = ()


@dataclass
class Score:
    """The counts; all but `jobs`, `known_lost` and `stall` have to be 0. `problems` says which jobs they are."""

    jobs: int = 0
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    running: int = 0
    not_freed: int = 0
    known_lost: int = 0
    stall: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether all is as it has to be."""
        return not (self.lost or self.twice or self.wrong or self.running or self.not_freed)


def score(evidence: Evidence) -> Score:
    """Count what went wrong."""
    found = Score()
    for scenario in evidence.scenarios:
        ended = evidence.ended.get(scenario.name, Ended("missing"))
        for job in scenario.jobs:
            found.jobs += 1
            _count(found, "twice", job, _twice(job, evidence))
            if ended.cancelled_at is not None:
                _count(found, "running", job, _runs_on(job, evidence))
                _count(found, "not_freed", job, _not_freed(job, ended.cancelled_at, evidence))
            else:
                _count(found, "lost", job, _lost(job, ended, evidence))
                _count(found, "wrong", job, _wrong(job, evidence))
                found.known_lost += any(told.cause == "lost" for told in evidence.told.get(job.name, ())[-1:])
                found.stall = max(found.stall, _stall(job, evidence))
    return found


def _count(found: Score, what: str, job: Job, problem: str | None) -> None:
    if problem:
        setattr(found, what, getattr(found, what) + 1)
        found.problems.append(f"{what}: {job.name}: {problem}")


def _twice(job: Job, evidence: Evidence) -> str | None:
    """A job runs again only after its last run ended badly, as the next run of the same job."""
    runs = evidence.runs.get(job.name, ())
    for before, after in pairwise(runs):
        slurm = evidence.slurm.get(before.native_id)
        killed = slurm is not None and slurm.state in ENDED_BADLY
        failed = before.end is not None and before.end <= after.begin and _failed(job, before)
        if after.jobndx != before.jobndx + 1 or not (killed or failed):
            return f"run {before} was followed by {after}; Slurm says {slurm}"
    return None


def _failed(job: Job, run: Run) -> bool:
    return run.code != 0 or job.end == "missing"


def _lost(job: Job, ended: Ended, evidence: Evidence) -> str | None:
    """Nothing became of it, and nobody was told."""
    told = evidence.told.get(job.name, ())
    if not told:
        return f"nothing was told of it, and its flow run is {ended.state}"
    if ended.state != "Completed":
        return f"its flow run is {ended.state}"
    if told[-1].state == "completed" and not any(run.end for run in evidence.runs.get(job.name, ())):
        return f"it never ended, and {told[-1]} was told"
    return None


def _wrong(job: Job, evidence: Evidence) -> str | None:
    """The last that was told is not what happened."""
    tellings = evidence.told.get(job.name, ())
    if not tellings:
        return None  # counted as lost
    told, run = tellings[-1], (evidence.runs.get(job.name, ()) or (None,))[-1]
    slurm = evidence.slurm.get(told.native_id or "")
    says = (told.state, told.cause, told.exit_code)
    why = f"{says} was told ({told.message}); truth {run}, Slurm {slurm}"
    if told.cause == "node_failure":
        return None if slurm and slurm.state == "NODE_FAIL" else why
    if run is None or run.end is None:
        canceled = told.cause == "canceled_outside" and slurm and slurm.state == "CANCELLED"
        return None if told.cause in UNKNOWN or canceled else why
    if told.cause in UNKNOWN:
        full = any(begin <= run.end and run.begin <= end for begin, end in evidence.disk_full)
        return None if full else why
    if says != _right(job, run) or told.native_id != run.native_id:
        return why
    wanted = f"{job.name} {run.native_id}" if job.end == "output" and told.state == "completed" else ""
    return None if told.output == wanted else f"its output is {told.output!r}, not {wanted!r}"


def _right(job: Job, run: Run) -> tuple[str, str | None, int | None]:
    """State, cause and exit code of a run that ended by itself."""
    if run.code:
        return "failed", "script", run.code
    return ("failed", "missing_output", 0) if job.end == "missing" else ("completed", None, 0)


def _slurm_jobs(job: Job, evidence: Evidence) -> list[SlurmJob]:
    return [row for row in evidence.slurm.values() if row.name == job.name]


def _runs_on(job: Job, evidence: Evidence) -> str | None:
    if job.name in evidence.alive:
        return "its processes are alive"
    left = [row for row in _slurm_jobs(job, evidence) if row.state not in ENDED]
    return f"Slurm has it as {left[0].state}" if left else None


def _not_freed(job: Job, cancelled_at: float, evidence: Evidence) -> str | None:
    late = [
        row
        for row in _slurm_jobs(job, evidence)
        if row.state not in ENDED or (row.end or 0.0) > cancelled_at + FREE_SECONDS
    ]
    return f"cancelled at {cancelled_at:.0f}, and Slurm says {late[0]}" if late else None


def _stall(job: Job, evidence: Evidence) -> float:
    """Seconds from the end of its last run to the first word of that."""
    runs = [run for run in evidence.runs.get(job.name, ()) if run.end is not None]
    if not runs:
        return 0.0
    last = runs[-1]
    words = [told.time for told in evidence.told.get(job.name, ()) if told.native_id == last.native_id]
    return min(words) - last.end if words and last.end is not None else 0.0
