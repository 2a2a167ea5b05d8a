"""The cases in which the service, the login or the endpoint as a whole goes away, and comes back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import FacilitySetupError, FacilityTimeout
from tests.conformance.case import CALL_SECONDS, Place, case, refused
from tests.testbed.facility import Facility
from tests.testbed.multi_user import pinned_endpoint

AWAY_SECONDS = 4.0


@asynccontextmanager
async def _in_order_again(place: Place) -> AsyncIterator[Facility]:
    """Start whatever the block stopped, and see that calls get through."""
    assert place.facility is not None
    try:
        yield place.facility
    finally:
        await asyncio.to_thread(place.facility.endpoint.stop)
        await asyncio.to_thread(place.facility.start)
    await place.look(place.transport())


@case("the service goes away and comes back", globus=True)
async def _(place: Place) -> None:
    transport = place.transport()
    await place.look(transport)
    place.fault("away", seconds=AWAY_SECONDS)
    await place.look(transport)


@case("the service refuses connections and comes back", globus=True)
async def _(place: Place) -> None:
    assert place.facility is not None
    globus = place.facility.globus
    transport = place.transport()
    await place.look(transport)
    await asyncio.to_thread(globus.stop)
    call = asyncio.ensure_future(place.look(transport))
    await asyncio.sleep(AWAY_SECONDS / 2)
    await asyncio.to_thread(globus.start)
    await call


@case("a secret that is revoked, and given back", globus=True)
async def _(place: Place) -> None:
    assert place.facility is not None
    globus = place.facility.globus
    client_id, secret = globus.login("client")
    login = GlobusCredentials.model_validate({"client_id": client_id, "client_secret": secret})
    transport = place.transport(credentials=login)
    await place.look(transport)
    globus.change_secret("client", "another")
    try:
        err = await refused(place.look(transport), FacilitySetupError, client_id, "client_secret")
        assert secret not in str(err), "the secret is not told"
    finally:
        globus.change_secret("client", secret)
    await place.look(transport)


@case("a function that the endpoint does not allow", globus=True)
async def _(place: Place) -> None:
    assert place.facility is not None
    with pinned_endpoint(place.facility, str(uuid4())) as endpoint:
        transport = place.transport(endpoint_id=UUID(endpoint.endpoint_id))
        await refused(place.look(transport), FacilitySetupError, "not permitted", "function_id")


@case("an endpoint that is offline", globus=True)
async def _(place: Place) -> None:
    async with _in_order_again(place) as facility:
        await asyncio.to_thread(facility.endpoint.stop)
        facility.globus.forget_online(facility.endpoint_id)
        transport = place.transport()
        await refused(
            place.look(transport, timeout=5), FacilityTimeout, "offline", "globus-compute-endpoint start"
        )


@case("an endpoint that comes back within the limit", globus=True)
async def _(place: Place) -> None:
    async with _in_order_again(place) as facility:
        await asyncio.to_thread(facility.endpoint.stop)
        call = asyncio.ensure_future(place.look(place.transport()))
        await asyncio.sleep(1)
        await asyncio.to_thread(facility.start)
        await call


@case("an endpoint that is restarted in the middle of a call", globus=True)
async def _(place: Place) -> None:
    function = await place.register(
        "import time\n\ndef call(name, payload):\n    time.sleep(6)\n    return {'done': payload['x']}\n"
    )
    async with _in_order_again(place) as facility:
        transport = place.transport(function_id=function)
        call = asyncio.ensure_future(transport.call("hello", {"x": 7}, timeout=CALL_SECONDS))
        await asyncio.sleep(4)
        await asyncio.to_thread(facility.daemons.signal, "endpoint", signal.SIGKILL)
        await asyncio.to_thread(facility.start)
        assert await call == {"done": 7}


@case("an endpoint that is deleted", globus=True)
async def _(place: Place) -> None:
    async with _in_order_again(place) as facility:
        transport = place.transport()
        await place.look(transport)
        facility.globus.delete_endpoint(facility.endpoint_id)
        await refused(place.look(transport), FacilitySetupError, facility.endpoint_id, "not known")
