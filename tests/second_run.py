"""A test of real processes may run a second time; whatever needed that is listed, kept, and limited in number.

Tests that drive daemons, processes or a Prefect server meet the rare events of a busy machine. Such a test is
run again, once, with fresh fixtures (pytest-rerunfailures). What it said the first time stands at the end of
the output and in `.cache/reruns.txt`, which `make test` begins. The sixth of them in one test run has no second
run, and fails. Other tests never have one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

RECORD = Path(".cache", "reruns.txt")
#: A test that asks for one of these drives real processes, and so does every one outside `tests/unit`.
_REAL_FIXTURES = {"prefect_server", "prefix", "facility", "emulator", "services"}
_UNIT = Path(__file__).parent / "unit"


class Recorder:
    """Keeps the texts of first failures in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Append one that is followed by a second run."""
        if str(report.outcome) == "rerun":
            self._file.parent.mkdir(exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"===== {report.nodeid}, {report.when}\n{report.longreprtext}\n")
                file.writelines(f"----- {title}\n{text}\n" for title, text in report.sections)


def pytest_configure(config: pytest.Config) -> None:
    """Record in the process that hears of all tests."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config.rootpath / RECORD))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what may be run again; nothing while somebody debugs."""
    for item in items:
        if is_real(item.path, getattr(item, "fixturenames", ())) and not config.getoption("usepdb"):
            item.add_marker(pytest.mark.flaky(reruns=1))


def is_real(path: Path, fixtures: Iterable[str]) -> bool:
    """Say whether a test drives real processes."""
    return not path.is_relative_to(_UNIT) or not _REAL_FIXTURES.isdisjoint(fixtures)


def is_second(node: pytest.Item) -> bool:
    """Say whether this is the second run of a test."""
    return getattr(node, "execution_count", 1) > 1


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """End the fixtures of the module before a second run: it has its own. pytest has no public way for that.

    The session of the process goes, too: a second run has connections of its own.
    """
    if is_second(item) and isinstance(item, pytest.Function):
        from prefect_psik.session.session import Session  # not before conftest.py has set the environment

        Session._current = None
        for name in item.fixturenames:
            for fixture in item._fixtureinfo.name2fixturedefs.get(name, ()):
                if fixture.scope in ("class", "module", "package"):
                    fixture.finish(item._request)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def facility_for_second_run(request: pytest.FixtureRequest) -> None:
    """Before a second run, start what is dead of the facility, and empty its queue."""
    if is_second(request.node) and "facility" in request.fixturenames:
        facility = request.getfixturevalue("facility")
        facility.start()
        facility.globus.clear_faults()
        facility.slurm.ask("scancel", "-u", facility.user)
