"""Fixtures of all tests: a Prefect server when asked for, and a place for jobs that leaves nothing alive."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests.prefect_url import API_URL
from tests.testbed import packages
from tests.testbed.fixtures import REQUIRE_VARIABLE
from tests.testbed.state import STATE_VARIABLE, default_root

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# The first start of a Prefect server makes its database, slowly on a busy machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
# Prefect's SQLite cannot keep up with 200 task runs that end at once on a busy machine; the server says 500 then.
os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500")
# Prefect reads its settings once, for all threads: this process is a client of the server that the fixture
# `server` starts when a test asks for it. What tests start has an environment of its own.
os.environ["PREFECT_API_URL"] = API_URL
import_module("prefect.context")
del os.environ["PREFECT_API_URL"]
if _worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Tests stop daemons and fill queues: each process of them has a facility of its own, beside the user's.
    os.environ[STATE_VARIABLE] = f"{default_root()}-{_worker}"

#: Files of tests that take over a minute, the longest first; what `make test` prints at its end tells.
LONGEST = (
    "test_places",
    "test_kill_and_cancel",
    "test_submit_once",
    "test_slurm_jobs",
    "test_conformance",
    "test_flow_dispatcher",
    "test_new_beamline",
    "test_cli",
    "test_flow_failover",
    "test_testbed",
    "test_flow_pipeline",
    "test_splash_flows_defects",
    "test_signals",
    "test_wait_and_retry",
    "test_endpoint_guide",
    "test_local_jobs",
    "test_transfer",
    "test_transfer_crash",
    "test_full_queue",
    "test_bad_input",
    "test_identity_in_flows",
    "test_results",
    "test_flow_sweep",
    "test_flows",
    "test_records",
    "test_register_blocks",
    "test_prune",
    "test_handles",
    "test_prune_interleavings",
    "test_the_seeds_way",
    "test_flow_ingest",
    "test_remote_damaged",
    "test_reconcile",
    "test_flow_streaming",
    "test_public_scripts",
    "test_flow_flight_check",
    "test_functions",
    "test_blocks",
)

# Real daemons run beside these tests: how long an example takes says nothing about our code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# What a shell starts in the background ignores SIGINT, and so would all that tests start, and then interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Install what the facility lacks before the time of any test begins."""
    if os.environ.get(REQUIRE_VARIABLE) == "1" and not hasattr(session.config, "workerinput"):
        packages.install()


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a facility, and begin with the longest files: several processes share them."""
    for item in items:
        if "facility" in getattr(item, "fixturenames", ()):
            item.add_marker("facility")
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def within_the_rate_of_globus(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test at a facility, no login may have sent more requests than Globus allows in 10 s."""
    if "facility" not in request.fixturenames:
        yield
        return
    globus = request.getfixturevalue("facility").globus
    yield
    globus.start()
    over = globus.over_the_limit()
    if over:
        globus.forget_peaks()  # the next test is not to blame
    assert over == {}, f"a login sent more than Globus allows: {over} requests in 10 s"


def job_processes(prefix: Path) -> list[psutil.Process]:
    """Processes of jobs below a prefix: the scripts and what they started (they know their $base)."""
    found = []
    for process in psutil.process_iter():
        try:
            base = process.environ().get("base", "")
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if base.startswith(f"{prefix}/"):
            found.append(process)
    return found


@pytest.fixture
def prefix(tmp_path: Path) -> Iterator[Path]:
    """A psik prefix; processes of its jobs that a test leaves alive are ended, pass or fail."""
    place = tmp_path / "psik jobs é"
    yield place
    for process in job_processes(place):
        with suppress(psutil.NoSuchProcess):
            process.kill()
