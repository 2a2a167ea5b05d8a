"""Tests of the scorecard of `make chaos`: clean evidence counts nothing, and each kind of bad evidence its own."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.chaos.data import TREE, Ring
from tests.chaos.faults import KINDS
from tests.chaos.plan import FLOWS, JOBS_PER_FAULT, Job, Scenario, rounds, scenarios
from tests.chaos.report import lacking
from tests.chaos.score import (
    FREE_SECONDS,
    PROMPT_SECONDS,
    TOLD_SECONDS,
    ZERO,
    Ended,
    Evidence,
    Score,
    SlurmJob,
    score,
)
from tests.chaos.truth import Fault, Run, Told, read_runs, read_told

JOB = Job("s0-0", 1, "well")
FAILING = Job("s0-0", 1, "code", 3)
WRITING = Job("s0-0", 1, "output")
RUN = Run("7", 1, 100.0, 110.0, 0)
TOLD = Told("s0-0", "run", "7", "completed", None, 0, "", "completed", 115.0)
ROW = SlurmJob("s0-0", "COMPLETED", 110.0)
GOOD = Evidence(
    [Scenario("s0", "direct", (JOB,))],
    {"s0": Ended("Completed")},
    {"s0-0": [RUN]},
    {"s0-0": [TOLD]},
    {"7": ROW},
    intended={"s0-0": 2},
)
CANCELLED = Evidence(
    [Scenario("s0", "direct", (JOB,), 5)],
    {"s0": Ended("Cancelled", 105.0, "run", 90.0)},
    {"s0-0": [Run("7", 1, 100.0)]},
    {},
    {"7": SlurmJob("s0-0", "CANCELLED", 108.0)},
)


def with_job(job: Job, **changes: object) -> Evidence:
    return replace(GOOD, scenarios=[Scenario("s0", "direct", (job,))], **changes)  # type: ignore[arg-type]


def counts(evidence: Evidence) -> dict[str, int]:
    found = score(evidence)
    found_wrong = {name: number for name in ZERO if (number := getattr(found, name))}
    assert len(found.problems) == sum(found_wrong.values())
    assert found.is_clean == (not found_wrong)
    return found_wrong


def test_clean_evidence_is_clean() -> None:
    found = score(GOOD)
    assert (found.is_clean, found.jobs, found.stall, found.problems) == (True, 1, 5.0, [])
    assert score(CANCELLED).is_clean


@pytest.mark.parametrize(
    "evidence",
    [
        replace(GOOD, told={}),
        replace(GOOD, ended={"s0": Ended("not final")}),
        replace(GOOD, ended={"s0": Ended("Failed")}),
        replace(GOOD, ended={}),
    ],
)
def test_a_job_of_which_nothing_was_told_is_lost(evidence: Evidence) -> None:
    assert counts(evidence) == {"lost": 1}


def test_an_end_that_is_told_too_late_is_counted() -> None:
    told = [replace(TOLD, time=RUN.begin + TOLD_SECONDS), replace(TOLD, time=RUN.begin + 5 * TOLD_SECONDS)]
    assert counts(replace(GOOD, told={"s0-0": told})) == {}, "the first word counts"
    assert counts(replace(GOOD, told={"s0-0": told[1:]})) == {"late": 1}


def test_a_job_that_never_ended_and_is_told_completed_is_lost() -> None:
    assert counts(replace(GOOD, runs={}, slurm={})) == {"lost": 1, "wrong": 1}
    assert counts(replace(GOOD, runs={"s0-0": [Run("7", 1, 100.0)]})) == {"lost": 1, "wrong": 1}


@pytest.mark.parametrize("cause", ["lost", "launch"])
def test_a_job_may_be_told_as_lost_beside_a_fault_that_explains_it_and_is_shown(cause: str) -> None:
    told = replace(TOLD, state="failed", cause=cause, exit_code=None)
    vanished = replace(
        GOOD, runs={}, slurm={}, told={"s0-0": [told]}, ended={"s0": Ended("Completed", begin=90.0)}
    )
    assert counts(vanished) == {"wrong": 1}
    for name in ("disk full", "slurmctld killed", "slurmd killed"):
        found = score(replace(vanished, faults=[Fault(name, 95.0, 99.0)]))
        assert (found.is_clean, found.known_lost) == (True, 1)
    assert counts(replace(vanished, faults=[Fault("disk full", 50.0, 60.0)])) == {"wrong": 1}, "long before"
    assert counts(replace(vanished, faults=[Fault("disk full", 120.0, 125.0)])) == {"wrong": 1}, "after it"
    assert counts(replace(vanished, faults=[Fault("emulator killed", 95.0, 99.0)])) == {"wrong": 1}


def test_the_end_that_a_job_itself_wrote_is_hidden_only_by_a_full_disk() -> None:
    told = replace(TOLD, state="failed", cause="lost", exit_code=None)
    hidden = replace(GOOD, told={"s0-0": [told]})
    assert counts(replace(hidden, faults=[Fault("disk full", 105.0, 107.0)])) == {}
    assert counts(replace(hidden, faults=[Fault("slurmctld killed", 105.0, 107.0)])) == {"wrong": 1}


@pytest.mark.parametrize(
    ("second", "state"),
    [
        (Run("8", 1, 120.0, 130.0, 0), "COMPLETED"),  # the same run again
        (Run("8", 2, 120.0, 130.0, 0), "COMPLETED"),  # after one that ended well
        (Run("8", 1, 105.0, 115.0, 0), "NODE_FAIL"),  # a double of the same run, whatever Slurm says
    ],
)
def test_a_job_that_ran_twice_is_counted(second: Run, state: str) -> None:
    told = replace(TOLD, native_id="8", time=131.0)
    slurm = {"7": replace(ROW, state=state), "8": ROW}
    assert counts(replace(GOOD, runs={"s0-0": [RUN, second]}, told={"s0-0": [told]}, slurm=slurm)) == {"twice": 1}


def test_a_job_runs_again_after_it_failed_or_its_node_did() -> None:
    first, second = replace(RUN, code=3), Run("8", 2, 120.0, 130.0, 3)
    told = replace(TOLD, native_id="8", state="failed", cause="script", exit_code=3, time=131.0)
    slurm = {"7": ROW, "8": ROW}
    again = with_job(FAILING, runs={"s0-0": [first, second]}, told={"s0-0": [told]}, slurm=slurm)
    assert counts(again) == {}
    overlapping = replace(second, begin=105.0)
    assert counts(replace(again, runs={"s0-0": [first, overlapping]})) == {"twice": 1}
    killed = {"7": replace(ROW, state="NODE_FAIL"), "8": ROW}
    assert counts(replace(again, runs={"s0-0": [replace(RUN, end=None), second]}, slurm=killed)) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"state": "failed", "cause": "script", "exit_code": 1},
        {"exit_code": 1},
        {"state": "failed", "cause": "node_failure", "exit_code": None},
        {"state": "canceled", "cause": "canceled_outside", "exit_code": None},
        {"native_id": "8"},
    ],
)
def test_what_was_told_otherwise_is_wrong(change: dict[str, object]) -> None:
    told = replace(TOLD, **change)  # type: ignore[arg-type]
    assert counts(replace(GOOD, told={"s0-0": [told]}, slurm={"7": ROW, "8": ROW})) == {"wrong": 1}


def test_a_failed_job_told_completed_is_wrong() -> None:
    assert counts(with_job(FAILING, runs={"s0-0": [replace(RUN, code=3)]})) == {"wrong": 1}


def test_a_promised_file_that_is_missing_must_be_told() -> None:
    assert counts(with_job(replace(JOB, end="missing"))) == {"wrong": 1}


def test_the_output_of_another_run_is_wrong() -> None:
    right, stale = (replace(TOLD, output=f"s0-0 {native_id}") for native_id in ("7", "6"))
    assert counts(with_job(WRITING, told={"s0-0": [right]})) == {}
    assert counts(with_job(WRITING, told={"s0-0": [stale]})) == {"wrong": 1}


def test_a_node_failure_that_slurm_confirms_is_right() -> None:
    told = replace(TOLD, state="failed", cause="node_failure", exit_code=None)
    failed = {"7": replace(ROW, state="NODE_FAIL")}
    assert counts(replace(GOOD, told={"s0-0": [told]}, slurm=failed)) == {}


def test_a_cancel_by_slurm_itself_is_right_only_if_slurm_says_so() -> None:
    # A controller that was killed may give the id of a job that it forgot to another, and end that for it.
    told = replace(TOLD, state="canceled", cause="canceled_outside", exit_code=None)
    never_ran = replace(GOOD, runs={}, told={"s0-0": [told]})
    killed = [Fault("slurmctld killed", 100.0, 110.0)]
    ended = {"7": replace(ROW, state="CANCELLED")}
    assert counts(replace(never_ran, slurm=ended, faults=killed)) == {}
    assert counts(replace(never_ran, slurm=ended)) == {"wrong": 1}
    assert counts(replace(never_ran, faults=killed)) == {"wrong": 1}


def test_a_cancelled_job_that_runs_on_is_counted() -> None:
    assert counts(replace(CANCELLED, alive=frozenset(["s0-0"]))) == {"running": 1}
    left = {"7": SlurmJob("s0-0", "RUNNING", None)}
    assert counts(replace(CANCELLED, slurm=left)) == {"running": 1, "not_freed": 1}


def test_a_cancel_that_frees_the_node_too_late_is_counted() -> None:
    killed = replace(CANCELLED, faults=[Fault("worker killed", 100.0, 106.0)])
    for evidence, seconds in ((CANCELLED, PROMPT_SECONDS), (killed, FREE_SECONDS)):
        in_time, late = ({"7": SlurmJob("s0-0", "CANCELLED", 105.0 + seconds + more)} for more in (-1, 1))
        assert counts(replace(evidence, slurm=in_time)) == {}
        assert counts(replace(evidence, slurm=late)) == {"not_freed": 1}


def test_of_two_processes_of_a_flow_run_the_older_may_tell_last() -> None:
    first, second = Run("7", 1, 100.0, 110.0, 3), Run("8", 2, 120.0, 130.0, 3)
    slurm = {"7": SlurmJob("s0-0", "FAILED", 110.0), "8": SlurmJob("s0-0", "FAILED", 130.0)}
    of_first, of_second = (
        replace(TOLD, native_id=run.native_id, state="failed", cause="script", exit_code=3)
        for run in (first, second)
    )
    both = with_job(FAILING, runs={"s0-0": [first, second]}, slurm=slurm)
    assert counts(replace(both, told={"s0-0": [of_second, of_first]})) == {}
    assert counts(replace(both, told={"s0-0": [of_first]})) == {"wrong": 1}


@pytest.mark.parametrize(
    ("killed_at", "seen_at", "found"),
    [(107.0, 108.0, {}), (107.0, 300.0, {"not_freed": 1}), (50.0, 108.0, {"not_freed": 1})],
)
def test_a_controller_that_was_killed_may_know_late_what_is_gone(
    killed_at: float, seen_at: float, found: dict[str, int]
) -> None:
    late = {"7": SlurmJob("s0-0", "NODE_FAIL", 400.0)}
    killed = [Fault("slurmctld killed", killed_at, killed_at + 5)]
    assert counts(replace(CANCELLED, slurm=late, faults=killed, seen={"s0-0": seen_at})) == found


@pytest.mark.parametrize("state", ["not final", "Crashed", "Failed"])
def test_a_flow_run_that_was_cancelled_has_to_be_cancelled(state: str) -> None:
    assert counts(replace(CANCELLED, ended={"s0": Ended(state, 105.0)})) == {"uncancelled": 1}


def test_a_flow_run_that_was_cancelled_may_crash_with_its_worker_and_is_shown() -> None:
    crashed = replace(CANCELLED, ended={"s0": Ended("Crashed", 105.0, "run", 90.0)})
    for begin in (95.0, 110.0, 134.0):
        beside = replace(crashed, faults=[Fault("worker killed", begin, begin + 5)])
        found = score(beside)
        assert (found.is_clean, found.known_crashed) == (True, 1)
        left = replace(beside, slurm={"7": SlurmJob("s0-0", "RUNNING", None)})
        assert counts(left)["running"] == 1, "its jobs count"
        assert counts(replace(beside, ended={"s0": Ended("Failed", 105.0, "run", 90.0)})) == {"uncancelled": 1}
    for fault in (Fault("worker killed", 136.0, 140.0), Fault("emulator killed", 106.0, 107.0)):
        assert counts(replace(crashed, faults=[fault])) == {"uncancelled": 1}


def test_a_cancel_that_came_too_late_is_none() -> None:
    completed = {"s0": Ended("Completed", 112.0)}
    assert counts(replace(GOOD, ended=completed)) == {}
    assert counts(replace(CANCELLED, ended=completed)) == {"lost": 1}, "it swallowed the cancel"


@pytest.mark.parametrize(
    ("fault", "explains"),
    [
        (Fault("worker killed", 95.0, 99.0), True),
        (Fault("worker killed", 80.0, 89.0), False),  # another worker started it
        (Fault("flow process killed", 95.0, 95.0, "run"), True),
        (Fault("flow process killed", 95.0, 95.0, "another"), False),
        (Fault("endpoint killed", 106.0, 110.0), True),
        (Fault("slurmctld hangs", 95.0, 104.0), True),
        (Fault("endpoint killed", 80.0, 88.0), False),  # it was long back
        (Fault("slurmdbd killed", 104.0, 110.0), False),
        (Fault("429", 104.0, 110.0), False),
    ],
)
def test_a_job_that_others_canceled_needs_a_reason(fault: Fault, explains: bool) -> None:
    helped = replace(CANCELLED, helped={"s0-0": "flows/reconcile.py"})
    assert counts(helped) == {"unhelped": 1}
    found = score(replace(helped, faults=[fault]))
    assert (found.unhelped, found.helped, found.cancelled) == (0 if explains else 1, 1 if explains else 0, 1)


def test_a_job_that_was_submitted_twice_and_ran_once_is_counted() -> None:
    refused = replace(GOOD, slurm={"7": ROW, "8": replace(ROW, state="FAILED")}, intended={"s0-0": 1})
    assert counts(refused) == {"doubled": 1}
    found = score(replace(refused, faults=[Fault("slurmctld hangs", 95.0, 105.0)]))
    assert (found.is_clean, found.known_doubled) == (True, 1)
    assert counts(replace(refused, faults=[Fault("emulator killed", 95.0, 105.0)])) == {"doubled": 1}
    assert counts(replace(refused, intended={"s0-0": 2})) == {}, "two runs"


def test_a_run_with_too_little_in_it_shows_nothing() -> None:
    kinds = Counter(f"kind {number}" for number in range(10))
    jobs = Score(jobs=36)
    assert lacking(10, kinds, jobs, cut_short=False) == []
    assert lacking(12, kinds, jobs, cut_short=True) == []
    assert lacking(12, kinds, jobs, cut_short=False) == ["Only 10 of 12 faults happened: the others did not bite."]
    assert lacking(10, kinds, Score(jobs=29), cut_short=True) == ["Only 29 jobs ran beside 10 faults: too few."]
    few = Counter({"kind": 12})
    assert lacking(12, few, jobs, cut_short=True) == ["Only 1 kinds of fault happened, and 10 are needed."]


def test_lines_of_jobs_and_flows_are_read() -> None:
    lines = ["start a 7 1 100.5 ", "start b 8 1 101 ", "end a 7 1 103 0", "start b 9 2 110 ", "end b 9 2 111 3"]
    assert read_runs(lines) == {
        "a": [Run("7", 1, 100.5, 103.0, 0)],
        "b": [Run("8", 1, 101.0), Run("9", 2, 110.0, 111.0, 3)],
    }
    assert read_told(['{"job": "a", "cut off']) == {}


def test_a_short_run_has_ten_kinds_and_the_plan_comes_from_the_seed() -> None:
    for seed in range(20):
        kinds = rounds(Random(seed), list(KINDS), 12)
        assert len(set(kinds)) == 12
        plan = scenarios(Random(seed), 12 * JOBS_PER_FAULT)
        assert plan == scenarios(Random(seed), 12 * JOBS_PER_FAULT)
        assert sum(len(scenario.jobs) for scenario in plan) >= 12 * JOBS_PER_FAULT
        assert {scenario.flow for scenario in plan} == set(FLOWS)
        assert any(scenario.cancel_after for scenario in plan)


@pytest.mark.parametrize("end", ["parts", "torn"])
def test_a_green_job_without_all_files_of_its_last_run_is_counted(end: str) -> None:
    job = replace(JOB, end=end)
    whole = job.parts_of("7")
    right = [] if end == "parts" else ["wrong"]  # one that writes half of them is never to be told as completed
    assert list(counts(with_job(job, parts={"s0-0": whole}))) == right
    spoilt: list[dict[str, str]] = [
        {},
        dict(list(whole.items())[1:]),
        {**whole, "part-1": ""},
        {**whole, "part-1": job.parts_of("6")["part-1"]},
        {**whole, "part-13": "s0-0 7 13"},
    ]
    assert all(counts(with_job(job, parts={"s0-0": parts}))["incomplete"] == 1 for parts in spoilt)
    told = replace(TOLD, state="failed", cause="missing_output", exit_code=0)
    assert "incomplete" not in counts(with_job(job, told={"s0-0": [told]}))


def test_files_that_are_nowhere_are_counted() -> None:
    assert counts(replace(GOOD, losses=["3.h5 is in none of 2 directories"])) == {"data": 1}


def test_a_ring_knows_what_is_nowhere_and_what_nobody_wrote(tmp_path: Path) -> None:
    ring = Ring(tmp_path, 3)
    for number in range(200):
        ring.write(Random(number), number)
    (ring.places[0] / TREE / "1.h5").unlink()
    assert list(ring.losses()) == []
    for place in ring.places:
        (place / TREE / "2.h5").unlink()
    (ring.places[1] / TREE / "3.h5").write_text("half")
    gone, spoilt = ring.losses()
    assert gone == "2.h5 is in none of 3 directories that pruned each other"
    assert spoilt == "place-1/3.h5 has bytes that nobody wrote: 'half'"


@pytest.mark.parametrize(("end", "runs"), [("parts", [12]), ("torn", [6, 6])])
def test_scripts_of_several_files_write_what_the_score_wants(tmp_path: Path, end: str, runs: list[int]) -> None:
    job = Job("s0-0", 0, end)
    for number, files in enumerate(runs, start=1):
        environment = {**os.environ, "SLURM_JOB_ID": f"{number}", "jobndx": f"{number}"}
        script = job.script(tmp_path / "lines")
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=False)
        assert done.returncode == (7 if end == "torn" and number == 1 else 0)
        written = [path for path in tmp_path.glob("part-*") if path.read_text().split()[1] == str(number)]
        assert len(written) == files
    found = {path.name: path.read_text().strip() for path in tmp_path.glob("part-*")}
    assert (found == job.parts_of(f"{len(runs)}")) is (end == "parts")
