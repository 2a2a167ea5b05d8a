"""Tests of identity: equal submissions get equal keys, intended twins get different ones, retries their own."""

from __future__ import annotations

import re
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.context import FlowRunContext, TaskRunContext

from prefect_psik.exceptions import SpecError
from prefect_psik.flow_run.identity import Caller, Ordinals, Run, current_caller, enclosing_flow_runs, identify
from prefect_psik.spec.identity import STAMP_DIGITS, Identity, stamp_of
from prefect_psik.spec.jobspec import JobSpec

PSIK_STAMP = re.compile(r"^[0-9]+(\.[0-9]+)?$")
SPEC = JobSpec(script="true")


def in_task(*runs: tuple[str, int]) -> Caller:
    return Caller(tuple(Run(*run) for run in runs), in_task=True)


def in_flow(*runs: tuple[str, int]) -> Caller:
    return Caller(tuple(Run(*run) for run in runs))


def identity(
    caller: Caller,
    *,
    key: str | None = None,
    spec: JobSpec = SPEC,
    endpoint: str = "local",
    prefix: str = "/psik",
) -> Identity:
    return identify(spec, endpoint=endpoint, prefix=prefix, key=key, caller=caller)


@pytest.fixture
def ordinals() -> Ordinals:
    return Ordinals()


# --------------------------------------------------------------------------------------------------- stamps


@given(st.text(max_size=50))
def test_every_stamp_is_one_of_psiks(key: str) -> None:
    stamp = stamp_of(key)
    assert PSIK_STAMP.fullmatch(stamp)
    assert len(stamp) == STAMP_DIGITS
    assert stamp == stamp_of(key)


def test_stamps_of_many_keys_differ() -> None:
    assert len({stamp_of(f"scan-{number}") for number in range(5000)}) == 5000


def test_stamp_of_a_key_stays_the_same_from_release_to_release() -> None:
    assert stamp_of("scan-7") == "05726842539014817554"


# ------------------------------------------------------------------------------------------------- ordinals


def test_twins_get_numbers_of_their_own(ordinals: Ordinals) -> None:
    taken = [ordinals.take(in_task(("flow", 1), (task, 1)), "w") for task in ("t1", "t2", "t3")]
    assert taken == [0, 1, 2]


def test_same_task_run_gets_its_number_again(ordinals: Ordinals) -> None:
    for task, attempt, number in [("t1", 1, 0), ("t2", 1, 1), ("t1", 1, 0), ("t1", 2, 0), ("t2", 3, 1)]:
        assert ordinals.take(in_task(("flow", 1), (task, attempt)), "w") == number


def test_different_specs_and_flows_do_not_count_for_each_other(ordinals: Ordinals) -> None:
    assert ordinals.take(in_task(("flow", 1), ("t1", 1)), "one") == 0
    assert ordinals.take(in_task(("flow", 1), ("t2", 1)), "other") == 0
    assert ordinals.take(in_task(("another flow", 1), ("t3", 1)), "one") == 0


def test_retried_outer_task_gets_its_numbers_from_the_beginning(ordinals: Ordinals) -> None:
    for attempt in (1, 2, 3):
        # Prefect gives the inner task runs new ids at each attempt.
        taken = [
            ordinals.take(in_task(("flow", 1), ("outer", attempt), (f"inner {n} of {attempt}", 1)), "w")
            for n in range(3)
        ]
        assert taken == [0, 1, 2]


def test_retried_outer_task_gets_its_own_numbers_while_its_sibling_keeps_its_own(ordinals: Ordinals) -> None:
    def take(outer: str, attempt: int, inner: str) -> int:
        return ordinals.take(in_task(("flow", 1), (outer, attempt), (inner, 1)), "w")

    assert [take("a", 1, "a1"), take("b", 1, "b1"), take("a", 1, "a2")] == [0, 1, 2]
    assert take("b", 2, "b1 again") == 1
    assert [take("a", 2, "a1 again"), take("a", 2, "a2 again")] == [0, 2]
    assert take("b", 2, "b1 again") == 1


def test_three_levels_of_nesting_count_as_one(ordinals: Ordinals) -> None:
    def take(outer: int, middle: int, leaf: str) -> int:
        chain = in_task(("flow", 1), ("outer", outer), (f"middle of {outer}", middle), (leaf, 1))
        return ordinals.take(chain, "w")

    assert [take(1, 1, "x"), take(1, 1, "y")] == [0, 1]
    assert [take(1, 2, "x again"), take(1, 2, "y again")] == [0, 1]
    assert [take(2, 1, "x 3"), take(2, 1, "y 3")] == [0, 1]


def test_retried_subflow_gets_its_number_back_while_its_sibling_keeps_its_own(ordinals: Ordinals) -> None:
    def take(subflow: str, attempt: int, task: str) -> int:
        return ordinals.take(in_task(("root", 1), (subflow, attempt), (task, 1)), "w")

    assert [take("s1", 1, "t"), take("s2", 1, "u")] == [0, 1]
    assert take("s1", 2, "t again") == 0
    assert take("s2", 1, "u") == 1
    assert take("s2", 2, "u again") == 1
    assert take("s1", 2, "t again") == 0


def test_retried_flow_begins_anew_although_all_ids_below_are_new(ordinals: Ordinals) -> None:
    for attempt in (1, 2):
        taken = [
            ordinals.take(
                in_task(("root", attempt), (f"sub {n} of {attempt}", 1), (f"t {n} of {attempt}", 1)), "w"
            )
            for n in range(3)
        ]
        assert taken == [0, 1, 2]


def test_late_word_of_an_older_attempt_takes_no_number_of_the_present_one(ordinals: Ordinals) -> None:
    assert ordinals.take(in_task(("flow", 2), ("new", 1)), "w") == 0
    assert ordinals.take(in_task(("flow", 1), ("old", 1)), "w") != 0
    assert ordinals.take(in_task(("flow", 2), ("new", 1)), "w") == 0


def test_late_word_of_an_older_attempt_leaves_no_gap_in_the_numbers(ordinals: Ordinals) -> None:
    def take(*runs: tuple[str, int]) -> int:
        return ordinals.take(in_task(("flow", 1), *runs), "w")

    assert take(("outer", 2), ("new", 1)) == 0
    take(("outer", 1), ("late", 1))
    assert take(("other", 1), ("sibling", 1)) == 1, "a retry, without late words, gives it 1 again"


def test_task_run_of_a_retried_flow_gets_the_lowest_number_although_it_held_another(ordinals: Ordinals) -> None:
    assert [ordinals.take(in_task(("flow", 1), (task, 1)), "w") for task in ("t1", "t2")] == [0, 1]
    # What t1 did is cached now, so it does not come again.
    assert ordinals.take(in_task(("flow", 2), ("t2", 2)), "w") == 0


def test_submissions_of_a_flow_itself_are_twins_of_each_other(ordinals: Ordinals) -> None:
    assert [ordinals.take(in_flow(("flow", 1)), "w") for _ in range(3)] == [0, 1, 2]
    assert [ordinals.take(in_flow(("flow", 2)), "w") for _ in range(3)] == [0, 1, 2]


def test_outside_of_runs_there_is_nothing_to_count(ordinals: Ordinals) -> None:
    assert [ordinals.take(Caller(), "w") for _ in range(3)] == [0, 0, 0]


def test_many_threads_never_get_the_same_number(ordinals: Ordinals) -> None:
    barrier = threading.Barrier(16)

    def take(number: int) -> int:
        barrier.wait()
        return ordinals.take(in_task(("flow", 1), (f"t{number}", 1)), "w")

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(take, range(16))) == list(range(16))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_numbers_of_one_attempt_are_different_and_each_attempt_uses_the_same_ones(
    calls: list[tuple[int, int]],
) -> None:
    counter = Ordinals()
    seen: list[set[int]] = []
    for attempt in (1, 2):
        numbers: dict[str, int] = {}
        for outer, inner in calls:
            task = f"{attempt} {outer} {inner}"
            chain = in_task(("flow", attempt), (f"outer {attempt} {outer}", 1), (task, 1))
            number = counter.take(chain, "w")
            assert numbers.setdefault(task, number) == number
        assert sorted(numbers.values()) == list(range(len(numbers)))
        seen.append(set(numbers.values()))
    assert seen[0] == seen[1]


# ------------------------------------------------------------------------------------------------- attempts


def test_attempt_is_the_run_counts_along_the_chain() -> None:
    assert in_task(("flow", 2), ("outer", 1), ("inner", 3)).attempt == [2, 1, 3]
    assert Caller().attempt == []


def test_attempts_are_compared_from_the_root() -> None:
    ordered = [[1], [1, 1], [1, 2], [1, 2, 1], [2], [2, 1, 1], [2, 1, 2], [10, 1]]
    callers = [in_task(*((f"r{n}", count) for n, count in enumerate(counts))) for counts in ordered]
    attempts = [identity(caller, key="k").attempt for caller in callers]
    assert attempts == ordered
    assert sorted(attempts) == ordered


def test_scope_is_the_root_run() -> None:
    assert in_task(("root", 1), ("sub", 1), ("task", 1)).scope == "root"
    assert Caller().scope is None


# ----------------------------------------------------------------------------------------------------- keys


def test_key_stays_the_same_from_release_to_release() -> None:
    caller = in_task(("00000000-0000-0000-0000-000000000001", 1), ("00000000-0000-0000-0000-000000000002", 1))
    found = identity(caller)
    assert found.key == "026526d4ee6ee8dd74d654c834a924afb0d743bd2ce36c2aa886eedd754cc6d0"
    assert found.stamp == "06050342250759307594"
    assert found.attempt == [1, 1]


def test_retried_task_has_the_same_key_and_a_newer_attempt() -> None:
    first = identity(in_task(("retry flow", 1), ("t", 1)))
    second = identity(in_task(("retry flow", 1), ("t", 2)))
    assert (first.key, first.stamp) == (second.key, second.stamp)
    assert first.attempt < second.attempt


def test_retried_flow_has_the_same_key_although_its_task_runs_have_new_ids() -> None:
    first = identity(in_task(("flow to retry", 1), ("before", 1)))
    second = identity(in_task(("flow to retry", 2), ("after", 1)))
    assert first.key == second.key
    assert first.attempt < second.attempt


def test_twins_specs_places_and_flows_have_keys_of_their_own() -> None:
    found = [
        identity(in_task(("keys flow", 1), ("t1", 1))),
        identity(in_task(("keys flow", 1), ("t2", 1))),
        identity(in_task(("keys flow", 1), ("t1", 1)), spec=JobSpec(script="false")),
        identity(in_task(("keys flow", 1), ("t1", 1)), endpoint="11111111-2222-3333-4444-555555555555"),
        identity(in_task(("keys flow", 1), ("t1", 1)), prefix="/other"),
        identity(in_task(("other keys flow", 1), ("t1", 1))),
    ]
    assert all(one.is_own for one in found), "no other flow run has them"
    assert len({one.key for one in found}) == len(found)
    assert len({one.stamp for one in found}) == len(found)


def test_users_key_is_the_same_whoever_submits() -> None:
    callers = [
        Caller(),
        in_flow(("f", 1)),
        in_task(("f", 1), ("t", 1)),
        in_task(("g", 3), ("u", 1)),
        Caller((Run("dask", 1),), in_task=True, detached=True),
    ]
    found = [identity(caller, key="scan 7") for caller in callers]
    assert {(one.key, one.stamp) for one in found} == {("scan 7", stamp_of("scan 7"))}
    assert [one.attempt for one in found] == [caller.attempt for caller in callers]
    assert not any(one.is_own for one in found)


@pytest.mark.parametrize(
    "key", ["", " ", "a/b", "/", "-x", "--", "a\nb", "a\tb", "a\0b", "\x7f", " a", "a ", "\n", "x" * 201, "\ud800"]
)
def test_unusual_key_is_refused_before_anything_is_sent(key: str) -> None:
    with pytest.raises(SpecError, match="key") as caught:
        identity(Caller(), key=key)
    assert str(caught.value)[0].isupper()
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("key", ["7", "scan 7", "Größe_7", "a.b-c", "x" * 200, "..", "a=b,c"])
def test_usual_key_is_taken_as_it_is(key: str) -> None:
    assert identity(Caller(), key=key).key == key


def test_detached_task_needs_a_key_and_the_error_says_so() -> None:
    with pytest.raises(SpecError, match="key="):
        identity(Caller((Run("flow", 1), Run("task", 1)), in_task=True, detached=True))


def test_outside_of_runs_every_key_is_new() -> None:
    found = [identity(Caller()) for _ in range(50)]
    assert len({one.key for one in found}) == 50
    assert all(one.is_own for one in found)
    assert all(PSIK_STAMP.fullmatch(one.stamp) and one.attempt == [] for one in found)


def test_the_caller_is_read_from_the_contexts_of_flow_and_task() -> None:
    flow, task, child = (uuid.uuid4() for _ in range(3))
    flow_run: Any = SimpleNamespace(id=flow, run_count=3)
    task_run: Any = SimpleNamespace(id=task, run_count=2, flow_run_id=flow)
    flow_context: Any = FlowRunContext.model_construct
    task_context: Any = TaskRunContext.model_construct
    with flow_context(flow_run=flow_run, detached=False):
        assert current_caller() == Caller((Run(str(flow), 3),))
        with task_context(task_run=task_run):
            assert current_caller() == Caller((Run(str(flow), 3), Run(str(task), 2)), in_task=True)
            assert enclosing_flow_runs() == [str(flow)]
            with flow_context(flow_run=SimpleNamespace(id=child, run_count=4), detached=True):
                runs = (Run(str(flow), 3), Run(str(task), 2), Run(str(child), 4))
                assert current_caller() == Caller(runs, in_task=False, detached=True)
                assert enclosing_flow_runs() == [str(flow), str(child)]
    alone: Any = SimpleNamespace(id=task, run_count=2, flow_run_id=None)
    with task_context(task_run=alone):
        assert current_caller() == Caller((Run(str(task), 2),), in_task=True)


def test_this_test_runs_outside_of_any_run() -> None:
    assert current_caller() == Caller()
    assert enclosing_flow_runs() == []
