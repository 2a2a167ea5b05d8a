"""Fixtures of the tests that need a facility, Globus alone, or Prefect as processes of their own."""

from tests.integration.prefect_services import alone, block, new_database, prefect_server, server, services
from tests.testbed.fixtures import emulator, facility, globus

__all__ = [
    "alone",
    "block",
    "emulator",
    "facility",
    "globus",
    "new_database",
    "prefect_server",
    "server",
    "services",
]
