"""What every transport guarantees."""

from __future__ import annotations

from typing import Any, Protocol

#: Globus Compute takes 10 MB each way; we stay well below, for the envelope and its encoding.
MAX_CALL_BYTES = 5_000_000
CALL_SECONDS = 60.0


class Transport(Protocol):
    """Carries calls of `remote.call` to a facility and their answers back, as JSON.

    A normal return is the answer of exactly one execution of this very call, but the call may have been
    executed more than once: every operation of `prefect_psik.remote` is safe to repeat. After an error the
    call may or may not have been executed. Implementations are used from one event loop and are not picklable;
    create them from a block.
    """

    @property
    def key(self) -> str:
        """Two transports with equal keys reach the same facility as the same user."""

    @property
    def place(self) -> str:
        """What messages call the facility."""

    @property
    def poll_floor_seconds(self) -> float:
        """The shortest allowed polling interval."""

    @property
    def gather_seconds(self) -> float:
        """How long to collect submits and cancels, so that they travel in one call."""

    async def call(self, name: str, payload: dict[str, Any], *, timeout: float = CALL_SECONDS) -> dict[str, Any]:
        """Execute one operation at the facility.

        Args:
            name: Operation of `prefect_psik.remote`.
            payload: JSON.
            timeout: Seconds to wait for the answer.

        Raises:
            FacilityTimeout: No answer in time.
            PayloadTooLarge: The call was too large to send, or its answer was too large to return.
            FacilityError: Any other problem on the way or at the facility; `transient` says whether to try again.
            RemoteCodeError: The remote code failed; carries its traceback.
        """

    async def endpoint_status(self) -> str:
        """The endpoint's status, without a call to it: `online`, `offline`, or the service's own word.

        Raises:
            FacilityError: The status is unknown, or the service does not answer.
        """

    async def aclose(self) -> None:
        """Close the connections; a later call reopens them."""
