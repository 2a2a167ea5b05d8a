"""What a case is, where it is run, and which there are."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect_psik.transport.base import Transport
from prefect_psik.transport.limiter import RequestBudget, ledger_of
from tests.testbed.facility import Facility

#: A call that runs, on a machine as busy as one that runs several facilities.
CALL_SECONDS = 90.0
SUBMIT = "POST /v3/endpoints/*/submit"


@dataclass(frozen=True)
class Place:
    """Where the cases are run: through one transport."""

    facility: Facility | None
    prefix: str

    @property
    def is_globus(self) -> bool:
        """Whether calls go through Globus Compute."""
        return self.facility is not None

    def transport(self, **changes: Any) -> Transport:
        """Make a transport, as a block does."""
        if self.facility is None:
            from prefect_psik.transport.local import LocalTransport

            return LocalTransport()
        from prefect_psik.transport.globus import GlobusTransport

        endpoint_id = changes.pop("endpoint_id", UUID(self.facility.endpoint_id))
        return GlobusTransport(endpoint_id, **changes)

    def fault(self, kind: str, **fields: object) -> None:
        """Have the emulated service misbehave."""
        assert self.facility is not None
        self.facility.globus.order_fault(kind, **fields)

    async def look(self, transport: Transport, stamp: str = "1", *, timeout: float = CALL_SECONDS) -> None:
        """One call whose answer can only be its own."""
        payload = {"prefix": self.prefix, "jobs": [{"stamp": stamp}]}
        answer = await transport.call("status", payload, timeout=timeout)
        assert list(answer["jobs"]) == [stamp], f"the answer to {stamp} is {answer}"

    async def register(self, source: str) -> UUID:
        """Register a function of a test at the service, within the login's budget of requests."""
        from globus_compute_sdk import Client
        from globus_compute_sdk.serialize import ComputeSerializer, JSONData, PureSourceTextInspect

        client = Client(do_version_check=False)
        client.fx_serializer = ComputeSerializer(
            strategy_code=PureSourceTextInspect(),
            strategy_data=JSONData(),  # type: ignore[no-untyped-call]
        )
        budget = RequestBudget(ledger_of(os.environ["GLOBUS_COMPUTE_CLIENT_ID"]))
        token = await budget.take()
        try:
            return UUID(str(client.register_source_code(source, "call")))
        finally:
            budget.answered(token)


Case = Callable[[Place], Awaitable[None]]
_CASES: dict[str, tuple[Case, bool]] = {}


def case(name: str, *, globus: bool = False) -> Callable[[Case], Case]:
    """Add a case; one that only Globus Compute can show is left out elsewhere."""

    def add(work: Case) -> Case:
        _CASES[name] = (work, globus)
        return work

    return add


def cases(place: Place) -> dict[str, Case]:
    """The cases that can be shown at a place."""
    return {name: work for name, (work, globus) in _CASES.items() if place.is_globus or not globus}


def names(*, globus: bool = True) -> list[str]:
    """All cases in order, or those of this machine alone."""
    return [name for name, (_, is_only_globus) in _CASES.items() if globus or not is_only_globus]


async def refused(awaitable: Awaitable[Any], kind: type[BaseException], *words: str) -> BaseException:
    """Wait for an error of a kind that is a sentence with these words."""
    try:
        found = await awaitable
    except kind as err:
        text = str(err)
        assert text.rstrip().endswith("."), f"no sentence: {text}"
        assert all(word in text for word in words), f"{words} are not in: {text}"
        return err
    raise AssertionError(f"no {kind.__name__}, but {found!r}")
