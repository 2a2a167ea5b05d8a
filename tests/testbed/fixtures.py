"""The pytest fixture `facility`: a running testbed, started for the session if none is up."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.testbed import packages
from tests.testbed.facility import Facility

REQUIRE_VARIABLE = "PREFECT_PSIK_REQUIRE_FACILITY"


@pytest.fixture(scope="session")
def facility() -> Iterator[Facility]:
    """Yield the facility: the one that `up` left running, else one of this session, stopped at its end.

    Where it cannot run (no Debian, not root, something not installed) the tests are skipped with the reason.
    With `PREFECT_PSIK_REQUIRE_FACILITY=1` what is missing is installed, and what cannot be had is an error.
    """
    found = Facility.at()
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        packages.install()
    elif reason := packages.why_not():
        pytest.skip(f"no facility: {reason}")
    was_down = not found.daemons.alive()
    try:
        found.start()
        yield found
    finally:
        if was_down:
            found.stop()
