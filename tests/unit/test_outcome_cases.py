"""Tests of the table of `make outcomes`: what it would not let pass, and that the docs have all cases."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from prefect_psik import FailureCause, JobState
from tests.outcomes.case import Expected, Seen, differences
from tests.outcomes.report import plain
from tests.outcomes.run import ordered_cases

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "outcomes.md"
WALLTIME = Expected(JobState.failed, FailureCause.walltime, None, "limit of 1 min")
TOLD = Seen("failed", "walltime", None, "Slurm stopped it at its time limit of 1 min")


def test_what_was_told_rightly_passes() -> None:
    assert differences(WALLTIME, TOLD) == []


@pytest.mark.parametrize(
    "wrong",
    [{"state": "completed"}, {"cause": "script"}, {"cause": None}, {"exit_code": 9}, {"message": "it failed"}],
)
def test_what_was_told_otherwise_does_not_pass(wrong: dict[str, object]) -> None:
    assert len(differences(WALLTIME, replace(TOLD, **wrong))) == 1  # type: ignore[arg-type]


def test_page_of_the_docs_has_every_case_in_its_order() -> None:
    names = re.findall(r"^\| (.+?) \| `", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert names == [case.name for case in ordered_cases()]


def test_every_cause_is_provoked() -> None:
    causes = {case.expected.cause for case in ordered_cases()} - {None}
    assert causes == set(FailureCause)


def test_page_has_nothing_of_the_machine_that_made_it() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"\d{20}|/tmp/|[0-9a-f]{8}-[0-9a-f]{4}-", text)
    assert plain("in /tmp/x/prefix/01234567890123456789/work at 11111111-2222-3333-4444-555555555555") == (
        "in PREFIX/STAMP/work at UUID"
    )
