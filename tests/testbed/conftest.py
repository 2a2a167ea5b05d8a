"""Fixtures of the testbed's own tests: the facility, and the real SDK set up for source text and JSON."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from globus_compute_sdk import Client
from globus_compute_sdk.serialize import ComputeSerializer, JSONData, PureSourceTextInspect
from globus_sdk import ClientApp, GlobusAppConfig

from tests.testbed.facility import Facility
from tests.testbed.fixtures import emulator, facility, globus

__all__ = ["client", "emulator", "facility", "globus"]


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
