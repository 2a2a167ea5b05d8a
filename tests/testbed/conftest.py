"""Fixtures of the testbed's own tests: the facility, and the real SDK set up for source text and JSON."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from globus_compute_sdk import Client
from globus_compute_sdk.serialize import ComputeSerializer, JSONData, PureSourceTextInspect
from globus_sdk import ClientApp, GlobusAppConfig

from tests.testbed.facility import Facility
from tests.testbed.fixtures import emulator, facility, globus
from tests.testbed.state import wait_until

__all__ = ["client", "emulator", "facility", "globus"]

#: What one test may find sent already, to stay below 20 requests in 10 s with its own.
_FEW_REQUESTS = 4


@pytest.fixture(autouse=True)
def within_the_rate(request: pytest.FixtureRequest) -> None:
    """Wait until the login that the tests of a facility share has sent little of late."""
    if "facility" in request.fixturenames:
        globus = request.getfixturevalue("facility").globus
        wait_until(lambda: globus.recent("probe") <= _FEW_REQUESTS, seconds=120, what="few requests")


@pytest.fixture
def client(facility: Facility) -> Iterator[Client]:
    """The SDK itself, with tokens in memory and nothing pickled; its requests are not those of our transport."""
    client_id, secret = facility.globus.login("probe")
    with facility.client():
        config = GlobusAppConfig(token_storage="memory")
        app = ClientApp("tests", client_id=client_id, client_secret=secret, config=config)
        made = Client(app=app)
        made.fx_serializer = ComputeSerializer(
            strategy_code=PureSourceTextInspect,
            strategy_data=JSONData,
            allowed_deserializer_types=[PureSourceTextInspect, JSONData],
        )
        yield made
