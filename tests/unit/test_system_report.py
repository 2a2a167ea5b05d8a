"""The report of the smoke test for the hosted Globus is printed whatever its steps meet."""

from __future__ import annotations

import logging
import sys
import time
from uuid import uuid4

import pytest

from tests.system import __main__ as system
from tests.system.steps import Run

SECRET = "a-secret-of-the-login"


def test_whatever_a_step_meets_is_a_row_without_secrets_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task_id = str(uuid4())

    def meets(error: BaseException) -> str:
        raise error

    def hangs() -> str:
        time.sleep(30)
        return "too late"

    steps = {
        "first": lambda _run: meets(KeyError(f"{SECRET} {task_id}")),
        "second": lambda _run: meets(TimeoutError("of its own")),
        "third": lambda _run: hangs(),
        "fourth": lambda _run: "seen",
    }
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_SECRET", SECRET)
    monkeypatch.setattr(sys, "argv", ["tests.system", "--endpoint", str(uuid4())])
    monkeypatch.setattr(logging, "disable", lambda _level: None)
    monkeypatch.setattr(system, "STEPS", steps)
    limits = iter([60.0, 60.0, 0.5, 0.5, 60.0])  # the third is asked twice: its report tells the limit
    monkeypatch.setattr(Run, "step_seconds", property(lambda _run: next(limits)))
    assert system.main() == 1
    said = capsys.readouterr().out
    rows = [line.split(maxsplit=4) for line in said.splitlines() if line.startswith(("ok", "FAILED"))]
    assert [(row[0], row[3]) for row in rows] == [
        ("FAILED", "first"),
        ("FAILED", "second"),
        ("FAILED", "third"),
        ("ok", "fourth"),
    ]
    assert rows[0][4] == f"KeyError: '[secret] {task_id[:8]}-…'"
    assert rows[1][4] == "TimeoutError: of its own"
    assert "did not end within" in rows[2][4]
    assert "1 ok, 3 failed, 0 left out" in said
    assert SECRET not in said
