"""The cases in which the service, the login or the endpoint as a whole goes away, and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import FacilityError, FacilitySetupError, FacilityTimeout
from prefect_psik.transport.globus.transport import REASON_SECONDS
from tests.conformance.case import SLACK_SECONDS, SUBMIT, Place, case, ends_at_its_limit, refused
from tests.testbed.endpoint import ENGINE_VARIABLE
from tests.testbed.facility import Facility
from tests.testbed.multi_user import pinned_endpoint

AWAY_SECONDS = 4.0
_KILLED_SECONDS = 40.0


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
    begin = time.monotonic()
    with place.fault("away", match=SUBMIT, seconds=AWAY_SECONDS):
        await place.look(transport)
    assert time.monotonic() - begin >= AWAY_SECONDS


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
        look = place.look(transport, timeout=5)
        await ends_at_its_limit(look, 5, FacilityTimeout, "offline", "globus-compute-endpoint start")


@case("an endpoint that comes back within the limit", globus=True)
async def _(place: Place) -> None:
    async with _in_order_again(place) as facility:
        await asyncio.to_thread(facility.endpoint.stop)
        call = asyncio.ensure_future(place.look(place.transport()))
        await asyncio.sleep(1)
        await asyncio.to_thread(facility.start)
        await call


_SLOW = "import time\n\ndef call(name, payload):\n    time.sleep(6)\n    return {'done': payload['x']}\n"


async def _done_or_clear(place: Place, harm: Callable[[], Awaitable[object]], *, may_fail: bool) -> None:
    """A call to which harm comes brings its result, or, where that may be, one clear error; within the limit."""
    async with place.running(_SLOW) as transport:
        begin = time.monotonic()
        call = asyncio.ensure_future(transport.call("hello", {"x": 7}, timeout=_KILLED_SECONDS))
        await asyncio.sleep(4)
        assert not call.done()
        await harm()
        outcome = (await asyncio.gather(call, return_exceptions=True))[0]
        if may_fail and isinstance(outcome, FacilityError):
            assert str(outcome).rstrip().endswith("."), f"no sentence: {outcome}"
            assert outcome.transient, f"it passes by itself, but is told as lasting: {outcome}"
        else:
            assert outcome == {"done": 7}, repr(outcome)
        seconds = time.monotonic() - begin
        assert seconds < _KILLED_SECONDS + REASON_SECONDS + SLACK_SECONDS, f"{seconds:.1f} s"


@case("an endpoint that is restarted in the middle of a call", globus=True)
async def _(place: Place) -> None:
    """The thread and process engines finish the call, Parsl drops it; the next one gets through on all of them."""
    async with _in_order_again(place) as facility:

        async def restart() -> None:
            await asyncio.to_thread(facility.daemons.signal, "endpoint", signal.SIGKILL)
            await asyncio.to_thread(facility.start)

        await _done_or_clear(place, restart, may_fail=os.environ.get(ENGINE_VARIABLE) == "GlobusComputeEngine")
        await place.look(place.transport())


@case("a user endpoint that is killed in the middle of a call", globus=True)
async def _(place: Place) -> None:
    async with _in_order_again(place) as facility:

        async def kill() -> None:
            assert await asyncio.to_thread(facility.endpoint.kill_user_endpoint) > 0

        await _done_or_clear(place, kill, may_fail=True)


@case("an endpoint that is deleted", globus=True)
async def _(place: Place) -> None:
    async with _in_order_again(place) as facility:
        transport = place.transport()
        await place.look(transport)
        facility.globus.delete_endpoint(facility.endpoint_id)
        await refused(place.look(transport), FacilitySetupError, facility.endpoint_id, "not known")
