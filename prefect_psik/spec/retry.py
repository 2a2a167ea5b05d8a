"""Whether a failed job is run again, and with how much more walltime or memory; pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from prefect_psik.exceptions import SpecError
from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobResult
from prefect_psik.models.single import Single

_UNITS = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}


class Growth(Single, BaseModel):
    """How much more the next run gets of the resource that ran out: walltime or memory.

    Example:
        ```python
        from prefect_psik import Growth

        growth = Growth(factor=1.5, max_duration=120, max_memory="128G")
        ```
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: float = Field(default=1.5, gt=1.0, description="The next run gets this many times as much.")
    max_duration: int | None = Field(default=None, ge=1, description="Upper limit of the walltime, in minutes.")
    max_memory: str | None = Field(
        default=None, pattern=r"^[0-9]+[KMGT]?$", description="Upper limit of the memory per node, such as 128G."
    )


@dataclass(frozen=True)
class RetryRule:
    """Which failures lead to another run of the same job.

    Args:
        causes: Failure causes to retry: the job is run again for these.
        growth: For `walltime` and `out_of_memory`; None: the next run gets the same.
        max_runs: Total number of runs within one call.
    """

    causes: frozenset[FailureCause] = field(default_factory=frozenset)
    growth: Growth | None = None
    max_runs: int = 3

    @classmethod
    def of(cls, causes: Collection[FailureCause | str], growth: Growth | None, max_runs: int) -> RetryRule:
        """Check the arguments of a caller.

        Raises:
            SpecError: A cause does not exist or cannot be retried, or `max_runs` is below 1.
        """
        try:
            chosen = frozenset(FailureCause(cause) for cause in causes)
        except ValueError as err:
            raise SpecError(f"retry_on: {err}. The causes are {', '.join(FailureCause)}.") from None
        if never := chosen & {FailureCause.canceled_by_us, FailureCause.canceled_outside, FailureCause.rejected}:
            raise SpecError(
                f"{', '.join(sorted(never))} cannot be retried: this is a decision, not a failure. Remove it "
                "from retry_on."
            )
        if max_runs < 1:
            raise SpecError(f"max_runs is {max_runs}: it must be at least 1.")
        return cls(chosen, growth, max_runs)

    def next_run(self, result: JobResult, runs: int) -> Asked | None:
        """What the next run asks for, or None if there is none.

        Args:
            result: The result of the run that ended.
            runs: The number of runs so far within this call.
        """
        if result.cause not in self.causes or runs >= self.max_runs:
            return None
        asked = Asked(result.handle.duration, result.handle.memory)
        if self.growth is None or result.to_be_continued:  # the next run has less left to do
            return asked
        if result.cause is FailureCause.walltime:
            return _longer(asked, self.growth)
        if result.cause is FailureCause.out_of_memory:
            return _larger(asked, self.growth)
        return asked


@dataclass(frozen=True)
class Asked:
    """What a run asked for: minutes, and memory per node as sbatch spells it; None: the backend's default."""

    duration: int | None
    memory: str | None


def _longer(asked: Asked, growth: Growth) -> Asked | None:
    if asked.duration is None:
        return asked
    duration = math.ceil(asked.duration * growth.factor)
    if growth.max_duration is not None:
        duration = min(duration, growth.max_duration)
    return Asked(duration, asked.memory) if duration > asked.duration else None


def _larger(asked: Asked, growth: Growth) -> Asked | None:
    """More memory; None if the run asked for none, so that there is nothing to raise."""
    if asked.memory is None:
        return None
    before = _kibibytes(asked.memory)
    memory = math.ceil(before * growth.factor)
    if growth.max_memory is not None:
        memory = min(memory, _kibibytes(growth.max_memory))
    return Asked(asked.duration, f"{memory}K") if memory > before else None


def _kibibytes(memory: str) -> int:
    found = re.fullmatch(r"([0-9]+)([KMGT]?)", memory)
    if found is None:
        raise SpecError(f"The memory {memory!r} is not written as for sbatch's --mem, such as 16G.")
    return int(found.group(1)) * _UNITS[found.group(2) or "M"]
