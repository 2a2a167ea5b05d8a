"""What a run of chaos does, drawn from its seed: scenarios of flows and jobs, and the order of the faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")

JOBS_PER_FAULT = 3
#: The flows, and how many jobs each has: those that take their jobs one after the other have few.
FLOWS = {
    "direct": (2, 3),
    "nested": (2, 4),
    "retried": (2, 3),
    "gathered": (5, 12),
    "mapped": (5, 12),
    "split": (5, 12),
}
#: How a job ends: well, well with a small output file, with an exit code, or without the file that it promised.
#: Or it writes PARTS files, all of them or dying half-way; a later run of that one writes the other half alone, so
#: that half of what is there is old.
ENDS = ("well", "output", "output", "parts", "parts", "torn", "code", "missing")
#: One flow run in so many is cancelled.
CANCELLED_PART = 5
#: Of these, so many are cancelled before a job of theirs is sure to run.
EARLY_PART = 0.25
#: A job that is to be canceled would run longer than any cancel may take.
LONG_SECONDS = 280
#: The work directory's file that `output` writes and `missing` does not.
OUTPUT = "result.txt"
WRITE_FAILED = 74
#: The files that `parts` and `torn` write, each with the name of the job, its native id and a number.
PARTS = 12
PART = "part-{}"
TORN_CODE = 7

_SCRIPT = """\
#!/bin/bash
line() {{ echo "$1 {name} $SLURM_JOB_ID $jobndx $(date +%s.%N) $2" >> {lines}; }}
line start
sleep {seconds}
code={code}
{output}
line end $code
exit $code
"""


@dataclass(frozen=True)
class Job:
    """One job of a scenario."""

    name: str
    seconds: float
    end: str
    code: int = 0

    def script(self, lines: Path) -> str:
        """Bash that tells `lines` when it begins and when it ends, and how."""
        return _SCRIPT.format(
            name=self.name,
            lines=lines,
            seconds=self.seconds,
            code=self.code,
            output={"output": self._write(OUTPUT, ""), "parts": self._parts("1", PARTS), "torn": self._torn()}.get(
                self.end, ":"
            ),
        )

    def _write(self, name: str, more: str) -> str:
        return f'echo "{self.name} $SLURM_JOB_ID{more}" > {name} || code={WRITE_FAILED}'

    def _parts(self, first: str, last: int) -> str:
        return f"for n in $(seq {first} {last}); do {self._write(PART.format('$n'), ' $n')}; sleep 0.1; done"

    def _torn(self) -> str:
        half = PARTS // 2
        first = f"{self._parts('1', half)}; [ $code = 0 ] && code={TORN_CODE}"
        return f"if [ $jobndx = 1 ]; then {first}; else {self._parts(str(half + 1), PARTS)}; fi"

    def promise(self) -> dict[str, Any]:
        """Return what its spec names as results."""
        parts = {"expect": [{"path": PART.format("*"), "count": PARTS}]}
        promised: dict[str, dict[str, Any]] = {
            "output": {"outputs": [OUTPUT]},
            "missing": {"expect": [OUTPUT]},
            "parts": parts,
            "torn": parts,
        }
        return promised.get(self.end, {})

    def parts_of(self, native_id: str) -> dict[str, str]:
        """Return the files that a run of `parts` leaves, with their contents."""
        return {PART.format(n): f"{self.name} {native_id} {n}" for n in range(1, PARTS + 1)}


@dataclass(frozen=True)
class Scenario:
    """One flow run and its jobs.

    Attributes:
        name: Of the flow run.
        flow: Name of the flow in `flows.py`.
        jobs: Its jobs.
        cancel_after: Seconds to the cancel; None: it is not cancelled.
        cancel_early: They begin with the flow run itself, else with the first of its jobs that runs.
    """

    name: str
    flow: str
    jobs: tuple[Job, ...]
    cancel_after: float | None = None
    cancel_early: bool = False

    def parameters(self) -> dict[str, Any]:
        """Parameters of the flow run."""
        return {"jobs": [asdict(job) for job in self.jobs]}


def scenarios(dice: Random, jobs: int) -> list[Scenario]:
    """Draw scenarios with at least so many jobs."""
    found: list[Scenario] = []
    while sum(len(scenario.jobs) for scenario in found) < jobs:
        number = len(found)
        name = f"s{number:03d}"
        # The first of each flow is not cancelled, so that a short run has all of them.
        flow = list(FLOWS)[number] if number < len(FLOWS) else dice.choice(list(FLOWS))
        cancelled = number >= len(FLOWS) // 2 and number % CANCELLED_PART == CANCELLED_PART - 2
        own = tuple(_job(dice, f"{name}-{n}", cancelled=cancelled) for n in range(dice.randint(*FLOWS[flow])))
        cancel_after, early = dice.uniform(0, 20), dice.random() < EARLY_PART
        found.append(Scenario(name, flow, own, cancel_after if cancelled else None, cancelled and early))
    return found


def _job(dice: Random, name: str, *, cancelled: bool) -> Job:
    if cancelled:
        return Job(name, LONG_SECONDS, "well")
    end = dice.choice(ENDS)
    code = dice.randint(1, 8) if end == "code" else 0
    return Job(name, round(dice.uniform(1, 8), 1), end, code)


def rounds(dice: Random, items: Sequence[T], number: int) -> list[T]:
    """Draw so many items, each of them once before any of them comes again."""
    found: list[T] = []
    while len(found) < number:
        found += dice.sample(items, len(items))
    return found[:number]
