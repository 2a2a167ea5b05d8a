"""The cases: what `Transport` promises, each a coroutine that fails with a sentence or returns."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import (
    FacilityError,
    FacilitySetupError,
    FacilityTimeout,
    PayloadTooLarge,
    RemoteCodeError,
)
from prefect_psik.transport.base import Transport
from prefect_psik.transport.limiter import RequestBudget, ledger_of
from tests.testbed.facility import Facility

#: A call that runs, on a machine as busy as one that runs several facilities.
CALL_SECONDS = 90.0
#: For the end of an interpreter that has calls under way, beyond what it takes to begin.
EXIT_SECONDS = 2.0

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


def names() -> list[str]:
    """All cases, in order."""
    return list(_CASES)


async def _refused(awaitable: Awaitable[Any], kind: type[BaseException], *words: str) -> BaseException:
    """Wait for an error of a kind that is a sentence with these words."""
    try:
        found = await awaitable
    except kind as err:
        text = str(err)
        assert text.rstrip().endswith("."), f"no sentence: {text}"
        assert all(word in text for word in words), f"{words} are not in: {text}"
        return err
    raise AssertionError(f"no {kind.__name__}, but {found!r}")


@case("a result")
async def _(place: Place) -> None:
    answer = await place.transport().call("hello", {}, timeout=CALL_SECONDS)
    assert answer["protocol"] == 1
    assert answer["now"] > 0


@case("20 calls at once, each its own result")
async def _(place: Place) -> None:
    transport = place.transport()
    count = 20 if place.is_globus else 6  # each of these is a process of its own
    await asyncio.gather(*(place.look(transport, str(n)) for n in range(1, count + 1)))


@case("what the remote code refuses is a sentence")
async def _(place: Place) -> None:
    answer = await place.transport().call("status", {"prefix": place.prefix, "jobs": 5}, timeout=CALL_SECONDS)
    assert "no list of objects" in answer["error"]["message"]


@case("a time limit, and usable again")
async def _(place: Place) -> None:
    transport = place.transport()
    err = await _refused(place.look(transport, timeout=0.01), FacilityTimeout, "within 0 s")
    assert isinstance(err, FacilityTimeout)
    assert err.transient
    await place.look(transport)


@case("too large an argument is not sent")
async def _(place: Place) -> None:
    transport = place.transport()
    await _refused(transport.call("hello", {"x": "y" * 6_000_000}), PayloadTooLarge, "Globus Transfer")
    await place.look(transport)


@case("too large a result is told", globus=True)
async def _(place: Place) -> None:
    function = await place.register("def call(name, payload):\n    return {'x': 'y' * 11_000_000}\n")
    await _refused(place.transport(function_id=function).call("hello", {}), FacilityError, "larger than")
    await place.look(place.transport())


@case("an exception with its remote traceback", globus=True)
async def _(place: Place) -> None:
    function = await place.register("def call(name, payload):\n    raise ValueError('what happened')\n")
    err = await _refused(place.transport(function_id=function).call("hello", {}), RemoteCodeError, "what happened")
    assert isinstance(err, RemoteCodeError)
    assert "Traceback" in err.remote_traceback


@case("an answer that is no object", globus=True)
async def _(place: Place) -> None:
    function = await place.register("def call(name, payload):\n    return 5\n")
    await _refused(place.transport(function_id=function).call("hello", {}), RemoteCodeError, "not an object")


@case("a lost reply", globus=True)
async def _(place: Place) -> None:
    place.fault("drop_reply", match=SUBMIT)
    await place.look(place.transport())


@case("a task delivered twice", globus=True)
async def _(place: Place) -> None:
    place.fault("duplicate_task")
    await place.look(place.transport())


@case("a slow service", globus=True)
async def _(place: Place) -> None:
    place.fault("delay", match=SUBMIT, seconds=2.0)
    await place.look(place.transport())


@case("a lost result ends at the time limit", globus=True)
async def _(place: Place) -> None:
    transport = place.transport()
    await place.look(transport)
    place.fault("lose_result")
    await _refused(place.look(transport, timeout=5), FacilityTimeout, "within 5 s")
    await place.look(transport)


def _passing(status: int) -> Case:
    async def passes(place: Place) -> None:
        place.fault("error", match=SUBMIT, status=status, times=2)
        await place.look(place.transport())

    return passes


for _status in (429, 500, 503):
    case(f"{_status} twice passes", globus=True)(_passing(_status))


@case("401 once: the token is fetched anew", globus=True)
async def _(place: Place) -> None:
    place.fault("error", match=SUBMIT, status=401)
    await place.look(place.transport())


def _lasting(status: int, kind: type[FacilityError]) -> Case:
    async def lasts(place: Place) -> None:
        transport = place.transport()
        place.fault("error", match=SUBMIT, status=status)
        await _refused(place.look(transport), kind)
        await place.look(transport)

    return lasts


for _status, _kind in ((403, FacilitySetupError), (413, PayloadTooLarge), (422, FacilitySetupError)):
    case(f"{_status} is told, and usable again", globus=True)(_lasting(_status, _kind))


@case("an endpoint that does not exist", globus=True)
async def _(place: Place) -> None:
    await _refused(place.look(place.transport(endpoint_id=uuid4())), FacilitySetupError, "not known")


@case("a wrong secret", globus=True)
async def _(place: Place) -> None:
    assert place.facility is not None
    wrong = GlobusCredentials(client_id=UUID(place.facility.client_id), client_secret="wrong")
    err = await _refused(place.look(place.transport(credentials=wrong)), FacilitySetupError, "client_secret")
    assert "wrong" not in str(err).replace("wrong secret", ""), "the secret is not told"


@case("a function that does not exist", globus=True)
async def _(place: Place) -> None:
    await _refused(place.look(place.transport(function_id=uuid4())), FacilitySetupError, "not know")


@case("two client processes at once")
async def _(place: Place) -> None:
    text = (
        "import asyncio, sys\n"
        "from tests.conformance.cases import Place\n"
        "from tests.conformance.client import place_of\n"
        "place = place_of(sys.argv[1])\n"
        "async def main():\n"
        "    transport = place.transport()\n"
        "    await asyncio.gather(*(place.look(transport, str(n)) for n in range(1, 6)))\n"
        "asyncio.run(main())\n"
    )
    children = [await _python(text, place) for _ in range(2)]
    for child in children:
        _, said = await asyncio.wait_for(child.communicate(), CALL_SECONDS)
        assert child.returncode == 0, said.decode()[-500:]


@case("the interpreter ends with calls outstanding")
async def _(place: Place) -> None:
    text = (
        "import asyncio, sys, time\n"
        "from tests.conformance.client import place_of\n"
        "place = place_of(sys.argv[1])\n"
        "async def main():\n"
        "    transport = place.transport()\n"
        "    calls = [asyncio.ensure_future(place.look(transport, str(n))) for n in range(1, 6)]\n"
        "    await asyncio.sleep(0.5)\n"
        "    print(time.time(), flush=True)\n"
        "asyncio.run(main())\n"
    )
    child = await _python(text, place)
    out, said = await asyncio.wait_for(child.communicate(), CALL_SECONDS)
    ended = time.time()
    assert child.returncode == 0, said.decode()[-500:]
    assert ended - float(out) < EXIT_SECONDS, f"it took {ended - float(out):.1f} s to end"


async def _python(text: str, place: Place) -> asyncio.subprocess.Process:
    where = json.dumps({"globus": place.is_globus, "prefix": place.prefix})
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", text, where),
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
