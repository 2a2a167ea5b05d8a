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
    call may or may not have been executed. Implementations are used from one event loop and are picklable by
    nobody: a block makes them.
    """

    @property
    def key(self) -> str:
        """Two transports of equal keys reach the same place as the same user."""

    @property
    def place(self) -> str:
        """The place as a person would say it, for messages."""

    @property
    def poll_floor_seconds(self) -> float:
        """The shortest allowed time between two looks."""

    @property
    def gather_seconds(self) -> float:
        """How long submits and cancels wait for others, to travel in one call."""

    async def call(self, name: str, payload: dict[str, Any], *, timeout: float = CALL_SECONDS) -> dict[str, Any]:
        """Execute one operation at the facility.

        Args:
            name: Operation of `prefect_psik.remote`.
            payload: JSON.
            timeout: Seconds after which nobody waits for the answer any more.

        Raises:
            FacilityTimeout: No answer in time.
            PayloadTooLarge: The call is too large, and was not sent; or its answer is, and did not come.
            FacilityError: Any other trouble on the way or there; `transient` says whether to try again.
            RemoteCodeError: The remote code failed; carries its traceback.
        """

    async def endpoint_status(self) -> str:
        """What is known of the place without going there: `online`, `offline`, or the service's own word.

        Raises:
            FacilityError: Nobody knows it, or the service does not answer.
        """

    async def aclose(self) -> None:
        """Let go of connections; a later call opens them again."""
