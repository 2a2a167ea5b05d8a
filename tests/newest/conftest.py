"""One Prefect server for all checks, on the database that the environment names."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.integration.prefect_services import Services, running_server, services_beside


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Prefect services whose processes have a home of their own, where the jobs are."""
    home, directory = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("prefect")
    environment = {**os.environ, "HOME": str(home)}
    with running_server(directory) as server, services_beside(server, directory, environment) as services:
        yield services
