"""Limits of a wait with a clock of our own, and which failures are worth another run."""

from __future__ import annotations

import pickle
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_psik.exceptions import ContactLost, QueueLimitReached, RunLimitReached, SpecError, WaitLimitReached
from prefect_psik.jobs.limits import LimitWatch, WaitLimits
from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobHandle, JobResult, JobState, JobStatus
from prefect_psik.session.poller import Update
from prefect_psik.spec.retry import Asked, Growth, RetryRule

HANDLE = JobHandle(prefix="/p", stamp="1", key="k", duration=10, memory="4G", native_id="7", type="slurm")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def watch(**limits: float) -> tuple[LimitWatch, Clock]:
    clock = Clock()
    given = {name: timedelta(seconds=seconds) for name, seconds in limits.items()}
    return LimitWatch(WaitLimits(**given), HANDLE, clock), clock


def seen(state: JobState, *, now: float, **times: float) -> Update:
    return Update(status=JobStatus(handle=HANDLE, state=state, **times), now=now)


def test_without_limits_nothing_ends() -> None:
    found, clock = watch()
    clock.now += 1e9
    assert found.left() is None
    assert found.reached() is None


def test_the_queue_counts_from_the_submission_by_the_facilitys_clock() -> None:
    found, clock = watch(queue=100)
    found.note(seen(JobState.queued, now=5060.0, submitted=5000.0))
    assert found.left() == pytest.approx(40)
    clock.now += 39
    assert found.reached() is None
    clock.now += 2
    error = found.reached()
    assert isinstance(error, QueueLimitReached)
    assert error.handle == HANDLE
    assert "in the queue for more than 1 min 40 s." in str(error)
    assert pickle.loads(pickle.dumps(error)).handle == HANDLE


def test_the_wait_for_a_place_counts_as_queued() -> None:
    clock = Clock()
    limits = WaitLimits(queue=timedelta(seconds=100), run=timedelta(seconds=100))
    found = LimitWatch(limits, HANDLE, clock, ahead=70)
    assert found.left() == pytest.approx(30)
    found.note(seen(JobState.queued, now=5010.0, submitted=5000.0))
    assert found.left() == pytest.approx(20)
    found.note(seen(JobState.active, now=5010.0, submitted=5000.0, started=5000.0))
    assert found.left() == pytest.approx(90)


def test_running_has_its_own_limit() -> None:
    found, clock = watch(queue=100, run=50)
    found.note(seen(JobState.queued, now=5090.0, submitted=5000.0))
    found.note(seen(JobState.active, now=5095.0, submitted=5000.0, started=5091.0))
    clock.now += 45
    assert found.reached() is None, "the queue's limit no longer counts"
    clock.now += 2
    assert isinstance(found.reached(), RunLimitReached)


def test_trouble_counts_from_its_beginning_and_ends_with_news() -> None:
    found, clock = watch(trouble=60)
    assert found.left() is None
    found.note(Update(trouble="offline"))
    clock.now += 59
    found.note(Update(trouble="still offline"))
    assert found.reached() is None
    found.note(Update())
    clock.now += 10
    assert found.reached() is None
    found.note(Update(trouble="offline again"))
    clock.now += 61
    error = found.reached()
    assert isinstance(error, ContactLost)
    assert str(error).endswith(" for more than 1 min. Last error: offline again")


def test_a_job_without_times_counts_from_the_wait() -> None:
    found, clock = watch(queue=10)
    found.note(Update(status=JobStatus(handle=HANDLE, state=JobState.new)))
    clock.now += 11
    assert isinstance(found.reached(), WaitLimitReached)


@pytest.mark.parametrize("field", ["queue", "run", "trouble"])
def test_a_limit_must_be_positive(field: str) -> None:
    with pytest.raises(ValidationError, match="longer than 0 s"):
        WaitLimits.model_validate({field: 0})


# -------------------------------------------------------------------------------------------------- retry


def ended(cause: FailureCause | None, **handle: object) -> JobResult:
    return JobResult(handle=HANDLE.model_copy(update=handle), state=JobState.failed, cause=cause)


def test_only_the_chosen_causes_are_retried_and_not_for_ever() -> None:
    rule = RetryRule.of({FailureCause.node_failure, "preempted"}, None, 3)
    assert rule.next_run(ended(FailureCause.node_failure), 1) == Asked(10, "4G")
    assert rule.next_run(ended(FailureCause.preempted), 2) == Asked(10, "4G")
    assert rule.next_run(ended(FailureCause.preempted), 3) is None
    assert rule.next_run(ended(FailureCause.script), 1) is None
    assert RetryRule.of((), None, 3).next_run(ended(FailureCause.node_failure), 1) is None


def test_what_was_too_little_grows_up_to_its_cap() -> None:
    rule = RetryRule.of({"walltime", "out_of_memory"}, Growth(max_duration=20, max_memory="5G"), 9)
    assert rule.next_run(ended(FailureCause.walltime), 1) == Asked(15, "4G")
    assert rule.next_run(ended(FailureCause.walltime, duration=15), 2) == Asked(20, "4G")
    assert rule.next_run(ended(FailureCause.walltime, duration=20), 3) is None, "the same again would fail again"
    assert rule.next_run(ended(FailureCause.out_of_memory), 1) == Asked(10, f"{5 * 1024**2}K")
    assert rule.next_run(ended(FailureCause.out_of_memory, memory=None), 1) is None


@given(st.integers(1, 10_000), st.floats(1.001, 10), st.integers(1, 20_000))
def test_growth_never_passes_its_cap_nor_shrinks(duration: int, factor: float, cap: int) -> None:
    rule = RetryRule.of({"walltime"}, Growth(factor=factor, max_duration=cap), 9)
    following = rule.next_run(ended(FailureCause.walltime, duration=duration), 1)
    assert following is None or duration < (following.duration or 0) <= cap


@pytest.mark.parametrize(
    ("causes", "runs", "words"),
    [
        ({"nodefail"}, 3, "The causes are script, walltime"),
        ({"canceled_by_us"}, 3, "is a decision, not a failure"),
        ({"walltime"}, 0, "at least 1"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(causes: set[str], runs: int, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        RetryRule.of(causes, None, runs)
