"""What a run of chaos prints at its end."""

from __future__ import annotations

from collections import Counter

from tests.chaos.plan import JOBS_PER_FAULT
from tests.chaos.score import ZERO, Ended, Evidence, Score

#: A run of fewer kinds shows nothing.
KINDS_AT_LEAST = 10


def show(faults: Counter[str], by_hand: Counter[str], problems: list[str], found: Score, seconds: float) -> None:
    """Print the faults by kind, what was done by hand, what went wrong, and the counts."""
    print("\nfaults by kind")
    for name, number in sorted(faults.items()):
        print(f"  {number:4} {name}")
    print("done by others than the flows")
    for name, number in sorted(by_hand.items()):
        print(f"  {number:4} {name}")
    for problem in problems:
        print(f"PROBLEM  {problem}")
    figures = {
        "faults": faults.total(),
        "kinds": len(faults),
        "jobs": found.jobs,
        **{what: getattr(found, name) for name, what in ZERO.items()},
        "reported as lost": found.known_lost,
        "submitted twice, ran once": found.known_doubled,
        "flow runs cancelled and Crashed with their worker": found.known_crashed,
        "of flow runs cancelled": found.cancelled,
        "of these canceled by others": found.helped,
        "longest stall": f"{found.stall:.0f} s",
    }
    print(f"{seconds:.0f} s")
    print("; ".join(f"{name}: {value}" for name, value in figures.items()))


def show_job(name: str, evidence: Evidence) -> None:
    """Print all that is known of a job, and the faults beside it."""
    print(f"\nall of {name}: {evidence.ended.get(name.rsplit('-', 1)[0])}")
    told = [f"told {line}" for line in evidence.told.get(name, ())]
    ran = [f"ran {run}" for run in evidence.runs.get(name, ())]
    slurm = [f"Slurm {number} {job}" for number, job in evidence.slurm.items() if job.name == name]
    begin = evidence.ended.get(name.rsplit("-", 1)[0], Ended("")).begin
    faults = [f"fault {fault}" for fault in evidence.faults if fault.end >= begin]
    for line in [*told, *ran, *slurm, *faults, *evidence.records.get(name, ())]:
        print(f"  {line}")


def lacking(asked: int, faults: Counter[str], found: Score, *, cut_short: bool) -> list[str]:
    """Say what keeps a run from showing anything: too few faults, kinds of them, or jobs."""
    sentences = []
    number, kinds = faults.total(), min(KINDS_AT_LEAST, asked)
    if number < asked and not cut_short:
        sentences.append(f"Only {number} of {asked} faults happened: the others did not bite.")
    if len(faults) < kinds:
        sentences.append(f"Only {len(faults)} kinds of fault happened, and {kinds} are needed.")
    if found.jobs < JOBS_PER_FAULT * number:
        sentences.append(f"Only {found.jobs} jobs ran beside {number} faults: too few.")
    return sentences
