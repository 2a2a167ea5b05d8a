"""What a case is, where it is run, and which there are."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock
from uuid import UUID

from prefect_psik.blocks import PsikBackend
from prefect_psik.spec.identity import Identity
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.transport.base import Transport
from prefect_psik.transport.globus.request_budget import RequestBudget, ledger_of
from prefect_psik.transport.globus.transport import REASON_SECONDS
from tests.testbed.facility import Facility
from tests.testbed.state import wait_until

#: A call that runs, on a machine as busy as one that runs several facilities.
CALL_SECONDS = 180.0
SUBMIT = "POST /v3/endpoints/*/submit"
#: What a busy machine adds to a time limit.
SLACK_SECONDS = 30.0


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
        from prefect_psik.transport.globus.transport import GlobusTransport

        endpoint_id = changes.pop("endpoint_id", UUID(self.facility.endpoint_id))
        return GlobusTransport(endpoint_id, **changes)

    @contextmanager
    def fault(self, kind: str, *, times: int = 1, **fields: object) -> Iterator[Callable[[], None]]:
        """Have the emulated service misbehave, and see at the end of the block that it did, as often as asked.

        Yields:
            A function that waits until it did: results that are to be lost come when they come.
        """
        assert self.facility is not None
        globus = self.facility.globus
        title = f"{kind} {fields['status']}" if kind == "error" else kind
        before = globus.happened().get(title, 0)

        def happened() -> int:
            return globus.happened().get(title, 0) - before

        def wait() -> None:
            wait_until(lambda: happened() >= times, seconds=CALL_SECONDS, what=f"{times} times {title}")

        globus.order_fault(kind, times=times, **fields)
        yield wait
        wait()
        assert happened() == times, f"{title} happened {happened()} times, not {times}"

    async def look(self, transport: Transport, stamp: str = "1", *, timeout: float = CALL_SECONDS) -> None:
        """One call whose answer can only be its own."""
        payload = {"prefix": self.prefix, "jobs": [{"stamp": stamp}]}
        answer = await transport.call("status", payload, timeout=timeout)
        assert list(answer["jobs"]) == [stamp], f"the answer to {stamp} is {answer}"

    async def submit(
        self, transport: Transport, block: PsikBackend, spec: JobSpec, stamp: str | None = None
    ) -> dict[str, Any]:
        """Submit one job: the answer for it, or the error of the call."""
        stamp = stamp or str(time.time_ns())
        job = block.submission(spec, Identity(key=stamp, stamp=stamp, attempt=[1]), {})
        payload = {"prefix": block.prefix, "jobs": [job]}
        answer = await transport.call("submit", payload, timeout=CALL_SECONDS)
        found: dict[str, Any] = answer if "error" in answer else answer["jobs"][stamp]
        return found

    @asynccontextmanager
    async def running(self, source: str) -> AsyncIterator[Transport]:
        """Have a transport whose calls are carried out by other code than ours."""
        if self.facility is not None:
            yield self.transport(function_id=await self.register(source))
            return
        with mock.patch("prefect_psik.transport.local.letter", return_value=source):
            yield self.transport()

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


async def ends_at_its_limit(
    awaitable: Awaitable[Any], limit: float, kind: type[BaseException], *words: str
) -> BaseException:
    """Wait for an error as `refused` does, at the time limit of the call: not before, not much later."""
    begin = time.monotonic()
    err = await refused(awaitable, kind, *words)
    seconds = time.monotonic() - begin
    assert 0 < limit <= seconds < limit + REASON_SECONDS + SLACK_SECONDS, (
        f"{seconds:.1f} s for a limit of {limit} s"
    )
    return err
