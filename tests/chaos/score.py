"""What was told of the jobs, compared with the truth: a pure function of the evidence."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.plan import Job, Scenario
from tests.chaos.truth import Fault, Run, Told

#: A cancel under faults may take as long as the longest of them, a round of reconciling, and Slurm's own time for
#: a job's end.
FREE_SECONDS = 180.0
#: Where nothing is in its way: Prefect's 30 s, the hook after that, and a machine that is busy.
PROMPT_SECONDS = 90.0
#: So long a worker sees to the cancel of a flow run.
CARE_SECONDS = 30.0
#: Prefect gives a flow run 30 s to end, then calls its hook.
HOOK_SECONDS = 60.0
#: An end is told by then: accounting that has forgotten a job is asked for 10 min, and faults cost time, too.
TOLD_SECONDS = 900.0
#: What a fault did is felt so long after it was mended.
LINGER_SECONDS = 15.0
#: Where the facility is out of reach of a cancel meanwhile.
AWAY = frozenset(
    [
        "endpoint killed",
        "user endpoint killed",
        "RabbitMQ killed",
        "emulator killed",
        "slurmctld killed",
        "slurmctld hangs",
    ]
)
#: What can make Slurm, or the job's directory, forget a job.
FORGETFUL = frozenset(["disk full", "slurmctld killed", "slurmctld hangs", "slurmd killed"])
#: What can hide from a submission that an earlier one of the same job arrived.
HIDING = frozenset(["disk full", "slurmctld killed", "slurmctld hangs"])
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
    flow_run: str = ""
    begin: float = 0.0


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
        seen: When a process of a job was seen last, by its name.
        faults: Those that happened.
        intended: How many runs of a job were to be submitted, by its name.
        helped: Who canceled a job that its own flow run did not cancel, by its name.
        parts: What lies in the directory of each job, by its name: files of several and their contents.
        losses: Files that are nowhere, and changed bytes, of the faults that move and prune data.
        records: What the facility wrote of each job, by its name, for whoever looks into a problem.
    """

    scenarios: Sequence[Scenario]
    ended: Mapping[str, Ended]
    runs: Mapping[str, Sequence[Run]]
    told: Mapping[str, Sequence[Told]]
    slurm: Mapping[str, SlurmJob]
    alive: frozenset[str] = frozenset()
    seen: Mapping[str, float] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    intended: Mapping[str, int] = field(default_factory=dict)
    helped: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    losses: Sequence[str] = ()
    records: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass
class Score:
    """The counts; those of `ZERO` have to be 0, and `problems` says which jobs and flow runs they are.

    Attributes:
        jobs: How many there were.
        lost: Nothing became of it, and nobody was told.
        twice: Ran twice.
        wrong: Told otherwise than it was.
        incomplete: Told as completed without all its files, or with bytes that its last run did not write.
        data: Files that existed and are nowhere, or whose bytes nobody wrote.
        late: Told too long after its end.
        running: Runs on although its flow run was cancelled.
        not_freed: Canceled too late.
        uncancelled: A flow run that was cancelled, and ended in another way or not at all.
        unhelped: Canceled by others than its flow run, which nothing kept from doing it.
        doubled: Submitted twice without a reason; only the last net kept it from running twice.
        cancelled: Jobs of flow runs that were cancelled.
        helped: Of these, those that others canceled, since the flow run could not.
        known_lost: Told as lost, or as never begun, for a reason.
        known_doubled: Submitted twice for a reason, ran once.
        known_crashed: Flow runs that were cancelled, and that Prefect's engine called Crashed: it ends a process
            that logs and whose worker was killed. What their jobs did counts all the same.
        stall: Longest time from the end of a job to the first word of it, in seconds.
        suspects: The names that problems are of, some more than once.
    """

    jobs: int = 0
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    incomplete: int = 0
    data: int = 0
    late: int = 0
    running: int = 0
    not_freed: int = 0
    uncancelled: int = 0
    unhelped: int = 0
    doubled: int = 0
    cancelled: int = 0
    helped: int = 0
    known_lost: int = 0
    known_doubled: int = 0
    known_crashed: int = 0
    stall: float = 0.0
    problems: list[str] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether all is as it has to be."""
        return not any(getattr(self, name) for name in ZERO)


#: The counts that have to be 0, and what they are called.
ZERO = {
    "lost": "lost and not reported as lost",
    "twice": "run twice",
    "doubled": "submitted twice without a reason",
    "wrong": "wrong outcomes",
    "incomplete": "green without all files of its last run",
    "data": "files lost or spoilt",
    "late": f"told more than {TOLD_SECONDS / 60:.0f} min late",
    "running": "running although cancelled",
    "not_freed": "cancels that did not free the node",
    "uncancelled": "flow runs cancelled and not Cancelled",
    "unhelped": "canceled by others without a reason",
}


def score(evidence: Evidence) -> Score:
    """Count what went wrong."""
    found = Score()
    for scenario in evidence.scenarios:
        ended = evidence.ended.get(scenario.name, Ended("missing"))
        # One that had completed before the cancel took hold has told of its jobs.
        was_cancelled = ended.cancelled_at is not None and ended.state != "Completed"
        if was_cancelled and _crashed_with_its_worker(ended, evidence):
            found.known_crashed += 1
        elif was_cancelled and ended.state != "Cancelled":
            _count(found, "uncancelled", scenario.name, f"cancelled, and it is {ended.state}")
        for job in scenario.jobs:
            found.jobs += 1
            _count(found, "twice", job.name, _twice(job, evidence))
            _count_doubled(found, job, ended, evidence)
            if was_cancelled:
                found.cancelled += 1
                _count(found, "running", job.name, _runs_on(job, evidence))
                _count(found, "not_freed", job.name, _not_freed(job, ended, evidence))
                _count_helped(found, job, ended, evidence)
            else:
                _count(found, "lost", job.name, _lost(job, ended, evidence))
                _count(found, "wrong", job.name, _wrong(job, ended, evidence))
                _count(found, "incomplete", job.name, _incomplete(job, evidence))
                found.known_lost += any(told.cause in UNKNOWN for told in evidence.told.get(job.name, ())[-1:])
                stall = _stall(job, evidence)
                found.stall = max(found.stall, stall)
                late = f"told {stall:.0f} s after its end" if stall > TOLD_SECONDS else None
                _count(found, "late", job.name, late)
    for loss in evidence.losses:
        _count(found, "data", "data", loss)
    return found


def _count(found: Score, what: str, name: str, problem: str | None) -> None:
    if problem:
        setattr(found, what, getattr(found, what) + 1)
        found.problems.append(f"{what}: {name}: {problem}")
        found.suspects.append(name)


def _beside(evidence: Evidence, names: Container[str], begin: float, end: float) -> bool:
    """Whether such a fault happened, or was still felt, in a span of time."""
    return any(
        fault.name in names and fault.begin <= end and begin <= fault.end + LINGER_SECONDS
        for fault in evidence.faults
    )


def _crashed_with_its_worker(ended: Ended, evidence: Evidence) -> bool:
    until = (ended.cancelled_at or 0.0) + CARE_SECONDS
    return ended.state == "Crashed" and _beside(evidence, {"worker killed"}, ended.begin, until)


def _count_doubled(found: Score, job: Job, ended: Ended, evidence: Evidence) -> None:
    """Slurm has more jobs than were meant: those that the guard refused, or that ended before it saw them."""
    rows, intended = len(_slurm_jobs(job, evidence)), evidence.intended.get(job.name, 0)
    if rows <= max(intended, 1):
        return
    if _beside(evidence, HIDING, ended.begin, _last_time(job, evidence)):
        found.known_doubled += 1
    else:
        _count(found, "doubled", job.name, f"{rows} Slurm jobs for {intended} runs")


def _count_helped(found: Score, job: Job, ended: Ended, evidence: Evidence) -> None:
    """A job that others canceled: only where its own flow run was kept from it."""
    by = evidence.helped.get(job.name)
    if by is None:
        return
    if _was_kept(job, ended, evidence):
        found.helped += 1
    else:
        _count(
            found, "unhelped", job.name, f"canceled by {by}; its flow run was cancelled at {ended.cancelled_at}"
        )


def _was_kept(job: Job, ended: Ended, evidence: Evidence) -> bool:
    """Whether a cancelled flow run had lost its process or its runner, or had no way to the facility."""
    freed, cancelled_at = _last_time(job, evidence), ended.cancelled_at or 0.0
    killed = any(
        fault.name == "worker killed" or fault.flow_run == ended.flow_run
        for fault in evidence.faults
        if fault.begin <= freed and ended.begin <= fault.end
    )
    return killed or _beside(evidence, AWAY, cancelled_at, cancelled_at + HOOK_SECONDS)


def _last_time(job: Job, evidence: Evidence) -> float:
    """When the last was heard of a job: its end, or what was told."""
    ends = [row.end for row in _slurm_jobs(job, evidence)] + [run.end for run in evidence.runs.get(job.name, ())]
    told = [told.time for told in evidence.told.get(job.name, ())]
    return max([end for end in ends if end is not None] + told, default=float("inf"))


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
    return run.code != 0 or job.end in ("missing", "torn")


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


def _wrong(job: Job, ended: Ended, evidence: Evidence) -> str | None:
    """The last that was told of the last run is not what happened.

    A flow run that Prefect calls crashed once more after it was begun again has two processes for a while, and the
    older one may be the last to tell, of the run that it waited for.
    """
    tellings = evidence.told.get(job.name, ())
    if not tellings:
        return None  # counted as lost
    run = (evidence.runs.get(job.name, ()) or (None,))[-1]
    told = ([one for one in tellings if run and one.native_id == run.native_id] or tellings)[-1]
    slurm = evidence.slurm.get(told.native_id or "")
    says = (told.state, told.cause, told.exit_code)
    why = f"{says} was told ({told.message}); truth {run}, Slurm {slurm}"
    if told.cause == "node_failure":
        return None if slurm and slurm.state == "NODE_FAIL" else why
    ended_itself = run is not None and run.end is not None
    if told.cause == "canceled_outside" and not ended_itself:
        # A controller that was killed may give the id of a job that it forgot to another, and end that for it.
        forgot = _beside(evidence, {"slurmctld killed"}, ended.begin, told.time)
        return None if slurm and slurm.state == "CANCELLED" and forgot else why
    if told.cause in UNKNOWN:
        # The end of a job that told it itself can only be hidden by its directory.
        names = {"disk full"} if ended_itself else FORGETFUL
        return None if _beside(evidence, names, run.begin if run else ended.begin, told.time) else why
    if run is None or run.end is None:
        return why
    if says != _right(job, run) or told.native_id != run.native_id:
        return why
    wanted = f"{job.name} {run.native_id}" if job.end == "output" and told.state == "completed" else ""
    return None if told.output == wanted else f"its output is {told.output!r}, not {wanted!r}"


def _right(job: Job, run: Run) -> tuple[str, str | None, int | None]:
    """State, cause and exit code of a run that ended by itself."""
    if run.code:
        return "failed", "script", run.code
    return ("failed", "missing_output", 0) if job.end in ("missing", "torn") else ("completed", None, 0)


def _incomplete(job: Job, evidence: Evidence) -> str | None:
    """A job that was told as completed has all its files, with the bytes of the run that completed it."""
    told = evidence.told.get(job.name, ())[-1:]
    if job.end not in ("parts", "torn") or not told or told[0].state != "completed":
        return None
    there, right = evidence.parts.get(job.name, {}), job.parts_of(told[0].native_id or "")
    return None if there == right else f"{told[0]} was told, and there are {dict(there)}"


def _slurm_jobs(job: Job, evidence: Evidence) -> list[SlurmJob]:
    return [row for row in evidence.slurm.values() if row.name == job.name]


def _runs_on(job: Job, evidence: Evidence) -> str | None:
    if job.name in evidence.alive:
        return "its processes are alive"
    left = [row for row in _slurm_jobs(job, evidence) if row.state not in ENDED]
    return f"Slurm has it as {left[0].state}" if left else None


def _not_freed(job: Job, ended: Ended, evidence: Evidence) -> str | None:
    cancelled_at = ended.cancelled_at or 0.0
    within = FREE_SECONDS if _was_kept(job, ended, evidence) else PROMPT_SECONDS
    late = [
        row
        for row in _slurm_jobs(job, evidence)
        if row.state not in ENDED or _freed(job, row, cancelled_at, evidence) > cancelled_at + within
    ]
    return f"cancelled at {cancelled_at:.0f}, and Slurm says {late[0]}" if late else None


def _freed(job: Job, row: SlurmJob, cancelled_at: float, evidence: Evidence) -> float:
    """When a job that was canceled ended.

    A controller that is killed behind a cancel may believe afterwards, for minutes, that the job runs.
    """
    end, seen = row.end or 0.0, evidence.seen.get(job.name)
    forgot = _beside(evidence, {"slurmctld killed"}, cancelled_at, end)
    return seen if forgot and seen is not None else end


def _stall(job: Job, evidence: Evidence) -> float:
    """Seconds from the end of its last run to the first word of that."""
    runs = [run for run in evidence.runs.get(job.name, ()) if run.end is not None]
    if not runs:
        return 0.0
    last = runs[-1]
    words = [told.time for told in evidence.told.get(job.name, ()) if told.native_id == last.native_id]
    return min(words) - last.end if words and last.end is not None else 0.0
