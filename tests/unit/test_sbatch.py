"""Tests of sbatch's options: one option by all of its names, and which settings replace each other."""

from __future__ import annotations

import pytest

from prefect_psik.spec.sbatch import FLAGS, VALUED, long_name, setting

#: Each line is one setting in all of its spellings.
SETTINGS = (
    ("exclusive_node_use", "--exclusive", "--oversubscribe", "-s", "--share"),
    ("memory", "--mem", "--mem-per-cpu", "--mem-per-gpu", "--mem-per-c"),
    ("--requeue", "--no-requeue"),
    ("process_count", "processes_per_node", "--ntasks", "-n", "--ntasks-per-node"),
    ("node_count", "--nodes", "-N"),
    ("duration", "--time", "-t"),
    ("cpu_cores_per_process", "--cpus-per-task", "-c"),
    ("gpu_cores_per_process", "--gpus-per-task"),
    ("--qos", "-q", "--qo"),
    ("--partition", "-p", "--part"),
    ("name",),
    ("--of-a-plugin",),
)


def test_one_setting_is_the_same_in_all_of_its_spellings_and_no_other() -> None:
    found = [{setting(spelling) for spelling in spellings} for spellings in SETTINGS]
    assert [len(names) for names in found] == [1] * len(SETTINGS)
    assert len(set.union(*found)) == len(SETTINGS)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("--mem", "--mem"),  # also the beginning of others
        ("--nice", "--nice"),
        ("--cpus-per-t", "--cpus-per-task"),
        ("--over", "--over"),  # of two options
        ("-H", "--hold"),
        ("-A", "--account"),
        ("--of-a-plugin", "--of-a-plugin"),
        ("-Z", "-Z"),
        ("--", "--"),
        ("node_count", "node_count"),
    ],
)
def test_option_is_known_by_its_long_name(written: str, name: str) -> None:
    assert long_name(written) == name


def test_no_short_name_stands_for_two_options() -> None:
    names = [short for short in (VALUED | FLAGS).values() if short]
    assert len(set(names)) == len(names)
    assert not VALUED.keys() & FLAGS.keys()
