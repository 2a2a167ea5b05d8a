"""The cases of single calls: each a coroutine that fails with a sentence or returns."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from uuid import UUID, uuid4

from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import (
    FacilityError,
    FacilitySetupError,
    FacilityTimeout,
    PayloadTooLarge,
    RemoteCodeError,
)
from tests.conformance.case import CALL_SECONDS, SUBMIT, Case, Place, case, refused

#: For the end of an interpreter that has calls under way, beyond what it takes to begin.
EXIT_SECONDS = 2.0


@case("a result")
async def _(place: Place) -> None:
    answer = await place.transport().call("hello", {}, timeout=CALL_SECONDS)
    assert answer["protocol"] == 1
    assert answer["now"] > 0


@case("the endpoint's Python is 3.11, whatever the client's", globus=True)
async def _(place: Place) -> None:
    answer = await place.transport().call("hello", {}, timeout=CALL_SECONDS)
    assert answer["python"].startswith("3.11."), answer["python"]


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
    err = await refused(place.look(transport, timeout=0.01), FacilityTimeout, "within 0 s")
    assert isinstance(err, FacilityTimeout)
    assert err.transient
    await place.look(transport)


@case("too large an argument is not sent")
async def _(place: Place) -> None:
    transport = place.transport()
    await refused(transport.call("hello", {"x": "y" * 6_000_000}), PayloadTooLarge, "Globus Transfer")
    await place.look(transport)


@case("too large a result is told", globus=True)
async def _(place: Place) -> None:
    function = await place.register("def call(name, payload):\n    return {'x': 'y' * 11_000_000}\n")
    await refused(place.transport(function_id=function).call("hello", {}), FacilityError, "larger than")
    await place.look(place.transport())


@case("an exception with its remote traceback", globus=True)
async def _(place: Place) -> None:
    function = await place.register("def call(name, payload):\n    raise ValueError('what happened')\n")
    err = await refused(place.transport(function_id=function).call("hello", {}), RemoteCodeError, "what happened")
    assert isinstance(err, RemoteCodeError)
    assert "Traceback" in err.remote_traceback


@case("an answer that is no object", globus=True)
async def _(place: Place) -> None:
    function = await place.register("def call(name, payload):\n    return 5\n")
    await refused(place.transport(function_id=function).call("hello", {}), RemoteCodeError, "not an object")


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
    await refused(place.look(transport, timeout=5), FacilityTimeout, "within 5 s")
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
        await refused(place.look(transport), kind)
        await place.look(transport)

    return lasts


for _status, _kind in ((403, FacilitySetupError), (413, PayloadTooLarge), (422, FacilitySetupError)):
    case(f"{_status} is told, and usable again", globus=True)(_lasting(_status, _kind))


@case("an endpoint that does not exist", globus=True)
async def _(place: Place) -> None:
    await refused(place.look(place.transport(endpoint_id=uuid4())), FacilitySetupError, "not known")


@case("a wrong secret", globus=True)
async def _(place: Place) -> None:
    assert place.facility is not None
    wrong = GlobusCredentials(client_id=UUID(place.facility.client_id), client_secret="wrong")
    err = await refused(place.look(place.transport(credentials=wrong)), FacilitySetupError, "client_secret")
    assert "wrong" not in str(err).replace("wrong secret", ""), "the secret is not told"


@case("a function that does not exist", globus=True)
async def _(place: Place) -> None:
    await refused(place.look(place.transport(function_id=uuid4())), FacilitySetupError, "not know")


@case("two client processes at once")
async def _(place: Place) -> None:
    text = (
        "import asyncio, sys\n"
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
