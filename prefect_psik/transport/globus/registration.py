"""Registers the remote code with Globus Compute once, so that others can run it by its id."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from uuid import UUID

from globus_sdk import GlobusAPIError, NetworkError
from globus_sdk.exc import GlobusError

from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import FacilityError, FacilitySetupError, SpecError
from prefect_psik.remote import letter
from prefect_psik.transport.daemon_thread import in_daemon_thread
from prefect_psik.transport.globus.connection import GlobusConnection, function_document, login_of
from prefect_psik.transport.globus.errors import RETRY_STATUSES, silence_asked
from prefect_psik.transport.globus.request_budget import RequestBudget, ledger_of


def source_digest() -> str:
    """The SHA-256 of the remote code: what the owner of an endpoint compares before allowing it."""
    return hashlib.sha256(letter().encode()).hexdigest()


async def register_remote_code(
    credentials: GlobusCredentials | None, *, group: UUID | None = None, ha_endpoint: UUID | None = None
) -> UUID:
    """Register the remote code; each call makes a new function, which the service never changes.

    Args:
        credentials: The login that will own the function; None: the worker's own.
        group: Globus group whose members may run it too.
        ha_endpoint: The only high-assurance endpoint that may run it; cannot be combined with `group`.

    Raises:
        FacilitySetupError: There is no login, or the service refuses it or the registration.
        FacilityError: The service does not answer.
    """
    login = str(credentials.client_id) if credentials and not credentials.is_empty else None
    who = f"the client {login}" if login else "the worker's own login"
    function = function_document(
        description=f"prefect-psik {version('prefect-psik')}, SHA-256 {source_digest()}",
        **({"group": str(group)} if group else {}),
        **({"ha_endpoint_id": str(ha_endpoint)} if ha_endpoint else {}),
    )
    try:
        connection = GlobusConnection(credentials)
        budget = RequestBudget(ledger_of(login_of(credentials)))
        place = await budget.take()
        try:
            answer = await in_daemon_thread(
                lambda: connection.v3.register_function(function),
                lambda failure: budget.answered(place, silence=silence_asked(failure)),
            )
        finally:
            connection.close()
    except GlobusAPIError as err:
        raise _refusal(err, who, group, ha_endpoint) from None
    except NetworkError as err:
        raise FacilityError(f"Globus does not answer: {err}. Try again later.", transient=True) from None
    except SpecError:
        raise
    except (GlobusError, ValueError) as err:
        raise FacilitySetupError(f"Globus cannot be used as {who}: {err}") from None
    return UUID(str(answer["function_uuid"]))


def _refusal(err: GlobusAPIError, who: str, group: UUID | None, ha_endpoint: UUID | None) -> FacilityError:
    text = str(err.message or err.code or "no reason given").rstrip(".")
    if err.http_status in RETRY_STATUSES:
        return FacilityError(f"Globus answered {err.http_status}: {text}. Try again later.", transient=True)
    if err.http_status == 401:
        return FacilitySetupError(
            f"Globus refused {who}: {text}. Check client_id and client_secret of the block, or log in again."
        )
    if group or ha_endpoint:
        what = f"the group {group}" if group else f"the high-assurance endpoint {ha_endpoint}"
        return FacilitySetupError(
            f"Globus does not let {who} register a function for {what} ({err.http_status}: {text}). Check the "
            "UUID, and that this login belongs to it."
        )
    return FacilitySetupError(f"Globus does not let {who} register a function ({err.http_status}: {text}).")
