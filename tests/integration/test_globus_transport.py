"""The transport through Globus Compute when something is wrong: each trouble is one clear error, or passes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from prefect_psik import (
    FacilityError,
    FacilitySetupError,
    FacilityTimeout,
    GlobusCredentials,
    PayloadTooLarge,
    RemoteCodeError,
)
from prefect_psik.transport.globus.errors import task_error
from prefect_psik.transport.globus.transport import GlobusTransport
from tests.integration.local import wait_until
from tests.testbed.facility import Facility


@pytest.fixture(autouse=True)
def client(facility: Facility) -> Iterator[None]:
    """Be a client of the facility, with the worker's own login unless a test gives one."""
    with facility.client():
        yield
    facility.globus.clear_faults()


def call(transport: GlobusTransport, name: str = "hello", payload: Any = None, *, timeout: float = 60) -> Any:
    """One call in a loop of its own."""

    async def once() -> Any:
        try:
            return await transport.call(name, payload or {}, timeout=timeout)
        finally:
            await transport.aclose()

    return asyncio.run(once())


def test_an_answer_comes_from_the_endpoints_user(facility: Facility) -> None:
    def threads() -> set[threading.Thread]:
        # Not the SDK's own, which it begins when it is first used and keeps.
        return {thread for thread in threading.enumerate() if thread.name == "prefect-psik"}

    before = threads()
    answer = call(GlobusTransport(UUID(facility.endpoint_id)))
    assert answer["user"] == facility.user
    wait_until(lambda: threads() <= before)


def test_a_wrong_secret_is_named_and_not_shown(facility: Facility) -> None:
    wrong = GlobusCredentials(client_id=UUID(facility.client_id), client_secret="wrong-secret-123")
    with pytest.raises(
        FacilitySetupError, match=rf"(?s)refused the client {facility.client_id}.*client_secret"
    ) as err:
        call(GlobusTransport(UUID(facility.endpoint_id), credentials=wrong))
    assert "wrong-secret-123" not in str(err.value)
    assert err.value.__cause__ is None


def test_half_a_login_is_refused(facility: Facility) -> None:
    half = GlobusCredentials(client_id=UUID(facility.client_id))
    with pytest.raises((FacilitySetupError, ValueError), match="client_id and client_secret"):
        call(GlobusTransport(UUID(facility.endpoint_id), credentials=half))


def test_an_unknown_endpoint_is_named() -> None:
    unknown = uuid4()
    with pytest.raises(FacilitySetupError, match=str(unknown)):
        call(GlobusTransport(unknown))


def test_an_unknown_function_is_told(facility: Facility) -> None:
    with pytest.raises(FacilitySetupError, match=r"Function .* is not known"):
        call(GlobusTransport(UUID(facility.endpoint_id), function_id=uuid4()))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_error_of_the_service_is_passed_over(facility: Facility, status: int) -> None:
    facility.globus.order_fault("error", match="POST /v3/endpoints/*/submit", status=status, times=2)
    assert call(GlobusTransport(UUID(facility.endpoint_id)))["user"] == facility.user


def test_an_error_of_the_service_that_lasts_is_told_at_the_time_limit(facility: Facility) -> None:
    transport = GlobusTransport(UUID(facility.endpoint_id))
    facility.globus.order_fault("error", match="POST /v3/endpoints/*/submit", status=503, times=100)
    with pytest.raises(FacilityTimeout, match=r"within 8 s.*Globus answered 503") as err:
        call(transport, timeout=8)
    assert err.value.transient
    facility.globus.clear_faults()
    assert call(transport)["user"] == facility.user, "usable again"


def test_a_revoked_token_is_fetched_anew(facility: Facility) -> None:
    transport = GlobusTransport(UUID(facility.endpoint_id))
    facility.globus.order_fault("error", match="POST /v3/endpoints/*/submit", status=401)
    assert call(transport)["user"] == facility.user


def test_a_function_that_the_service_has_forgotten_is_registered_anew(facility: Facility) -> None:
    transport = GlobusTransport(UUID(facility.endpoint_id))
    call(transport)
    facility.globus.forget_functions()
    assert call(transport)["user"] == facility.user


def test_a_result_that_is_lost_ends_at_the_time_limit(facility: Facility) -> None:
    transport = GlobusTransport(UUID(facility.endpoint_id))
    call(transport)
    facility.globus.order_fault("lose_result", times=5)  # also of calls that earlier tests gave up
    with pytest.raises(FacilityTimeout, match="within 10 s; its status is online"):
        call(transport, timeout=10)
    facility.globus.clear_faults()
    assert call(transport)["user"] == facility.user


def test_too_large_a_call_is_not_sent(facility: Facility) -> None:
    facility.globus.reset_meter()
    with pytest.raises(PayloadTooLarge, match="Globus Transfer"):
        call(GlobusTransport(UUID(facility.endpoint_id)), "hello", {"x": "y" * 6_000_000})
    assert facility.meter()["requests"] == 0


def test_a_defect_comes_with_its_sentence_and_traceback(facility: Facility) -> None:
    answer = call(
        GlobusTransport(UUID(facility.endpoint_id)), "status", {"prefix": str(facility.prefix), "jobs": 5}
    )
    assert "not a list" in answer["error"]["message"]
    trace = "Traceback (most recent call last):\n  boom\nValueError: what happened"
    error = task_error("hello", trace, f"endpoint {facility.endpoint_id}", "the client")
    assert isinstance(error, RemoteCodeError)
    assert "ValueError: what happened" in str(error)
    assert "boom" in error.remote_traceback
    assert not error.transient


def test_a_user_endpoint_that_was_killed_is_worth_another_try() -> None:
    said = "Another instance of this endpoint is running.  (Perhaps on another login node?)  Refusing to start."
    error = task_error("status", f"User endpoint failed to start: {said}", "endpoint e", "the client")
    assert error.transient


def test_closing_ends_the_calls_under_way(facility: Facility) -> None:
    facility.globus.order_fault("lose_result")

    async def close_while_calling() -> None:
        transport = GlobusTransport(UUID(facility.endpoint_id))
        calling = asyncio.create_task(transport.call("hello", {}, timeout=60))
        while not facility.meter()["routes"].get("POST /v2/batch_status"):
            await asyncio.sleep(0.1)
        await transport.aclose()
        with pytest.raises(FacilityError, match="was closed"):
            await calling

    facility.globus.reset_meter()
    asyncio.run(close_while_calling())


def test_an_endpoint_that_is_away_is_said_to_be_offline(facility: Facility) -> None:
    facility.endpoint.stop()
    try:
        facility.globus.forget_online(facility.endpoint_id)
        with pytest.raises(FacilityTimeout, match="status is offline"):
            call(GlobusTransport(UUID(facility.endpoint_id)), timeout=10)
    finally:
        facility.start()
    assert call(GlobusTransport(UUID(facility.endpoint_id)), timeout=60)["user"] == facility.user
