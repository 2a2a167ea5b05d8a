"""The pytest fixtures `facility`, a running testbed, and `globus`, the emulator of Globus alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.testbed import packages
from tests.testbed.broker import Broker
from tests.testbed.daemons import Daemons
from tests.testbed.facility import Facility
from tests.testbed.globus import Globus
from tests.testbed.state import State, TestbedError

REQUIRE_VARIABLE = "PREFECT_PSIK_REQUIRE_FACILITY"


@pytest.fixture(scope="session")
def facility() -> Iterator[Facility]:
    """Yield the facility: the one that `up` left running, else one of this session, stopped at its end.

    Where it cannot run (no Debian, not root, something not installed) the tests are skipped with the reason.
    With `PREFECT_PSIK_REQUIRE_FACILITY=1`, where what is missing was installed before the tests, that is an error.
    """
    found = Facility.at()
    if reason := packages.why_not():
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            raise TestbedError(f"No facility: {reason}")
        pytest.skip(f"no facility: {reason}")
    was_down = not found.daemons.alive()
    try:
        found.start()
        found.globus.forget_peaks()
        with _no_stuck_forks(found), pytest.MonkeyPatch.context() as environment:
            # What a test leaves in the background connects here for as long as the facility runs, never elsewhere.
            for name, value in found.env.items():
                if not name.startswith("GLOBUS_COMPUTE_CLIENT_"):
                    environment.setenv(name, value)
            yield found
    finally:
        if was_down:
            found.stop()


@contextmanager
def _no_stuck_forks(found: Facility) -> Iterator[None]:
    """Help the endpoint on where its release hangs, see `Endpoint.end_stuck_forks`: about once in a few runs."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(5):
            found.endpoint.end_stuck_forks()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Globus]:
    """An emulator of Globus without a facility, enough for Transfer; it needs neither Debian nor root."""
    state = State(tmp_path_factory.mktemp("globus"))
    state.create()
    state.port("emulator")  # any: the one that the SDK wishes for is the facility's
    daemons = Daemons(state)
    found = Globus(state, daemons, Broker(state, daemons))
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def globus(emulator: Globus, monkeypatch: pytest.MonkeyPatch) -> Iterator[Globus]:
    """The emulator, with this process as its client and no fault ordered."""
    for name in [name for name in os.environ if name.startswith("GLOBUS_")]:
        monkeypatch.delenv(name)
    for name, value in emulator.env().items():
        monkeypatch.setenv(name, value)
    yield emulator
    emulator.clear_faults()
