"""One Prefect server for all checks, on the database that the environment names."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.integration.prefect_services import Services


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Prefect services whose processes have a home of their own, where the jobs are."""
    home = tmp_path_factory.mktemp("home")
    started = Services(tmp_path_factory.mktemp("prefect"), {**os.environ, "HOME": str(home)})
    try:
        started.start()
        yield started
    finally:
        started.stop()
