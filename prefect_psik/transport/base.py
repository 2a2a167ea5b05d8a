"""What every transport guarantees."""

from __future__ import annotations

from typing import Any, Protocol

from prefect_psik.exceptions import (
    FacilityError,
    FacilitySetupError,
    KeyConflict,
    PrefectPsikError,
    RemoteCodeError,
    SpecError,
    SubmitRejected,
)
from prefect_psik.plain_text import plain

#: Globus Compute takes 10 MB each way; we stay well below, for the envelope and its encoding.
MAX_CALL_BYTES = 5_000_000
CALL_SECONDS = 60.0


class QueueFull(SubmitRejected):
    """The queue takes no more jobs of this account for now; whoever submits waits for a place.

    Args:
        message: What sbatch said.
        limit: The limit that is reached, as Slurm calls it.
    """

    def __init__(self, message: str, *, transient: bool = False, limit: str = "") -> None:
        super().__init__(message, transient=transient)
        self.limit = limit


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


def error_from(answer: dict[str, Any], place: str) -> PrefectPsikError:
    """Convert an answer's `{"kind", "message"}` to the error that a caller acts upon."""
    kind, message = answer["kind"], answer["message"]
    text = f"{message} (said by {place})"
    match kind:
        case "busy":
            return FacilityError(text, transient=True)
        case "setup":
            return FacilitySetupError(text)
        case "spec":
            return SpecError(text)
        case "rejected":
            return SubmitRejected(text)
        case "full":
            return QueueFull(text, limit=plain(str(answer.get("limit", ""))))
        case "conflict":
            return KeyConflict(text, stored=answer.get("canonical", ""))
        case "payload":
            return RemoteCodeError(text, remote_traceback=answer.get("traceback", ""))
        case _:
            return FacilityError(text)
