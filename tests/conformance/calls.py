"""The cases of single calls: each a coroutine that fails with a sentence or returns."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from uuid import UUID, uuid4

from prefect_psik.blocks import BackendAttributes, PsikBackend
from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import (
    FacilityError,
    FacilitySetupError,
    FacilityTimeout,
    PayloadTooLarge,
    RemoteCodeError,
)
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.resources import ResourceSpec
from tests.conformance.case import CALL_SECONDS, SUBMIT, Case, Place, case, ends_at_its_limit, refused
from tests.integration.local import wait_until
from tests.integration.slurm_view import accounted

#: For the end of an interpreter that has calls under way, beyond what one without takes.
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
    assert "not a list of objects" in answer["error"]["message"]


@case("a time limit, and usable again")
async def _(place: Place) -> None:
    transport = place.transport()
    err = await ends_at_its_limit(place.look(transport, timeout=0.01), 0.01, FacilityTimeout, "within 0 s")
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
    async with place.running("def call(name, payload):\n    return {'x': 'y' * 11_000_000}\n") as transport:
        await refused(transport.call("hello", {}, timeout=CALL_SECONDS), PayloadTooLarge, "larger than")
    await place.look(place.transport())


@case("an exception with its remote traceback")
async def _(place: Place) -> None:
    async with place.running("def call(name, payload):\n    raise ValueError('what happened')\n") as transport:
        err = await refused(transport.call("hello", {}, timeout=CALL_SECONDS), RemoteCodeError, "what happened")
    assert isinstance(err, RemoteCodeError)
    assert not err.transient
    for words in ("Traceback", "in call", "ValueError: what happened"):
        assert words in err.remote_traceback, err.remote_traceback


@case("an answer that is no object", globus=True)
async def _(place: Place) -> None:
    async with place.running("def call(name, payload):\n    return 5\n") as transport:
        await refused(transport.call("hello", {}, timeout=CALL_SECONDS), RemoteCodeError, "not an object")


@case("a lost reply", globus=True)
async def _(place: Place) -> None:
    with place.fault("drop_reply", match=SUBMIT):
        await place.look(place.transport())


@case("a task delivered twice submits one job", globus=True)
async def _(place: Place) -> None:
    assert place.facility is not None
    globus, stamp = place.facility.globus, str(time.time_ns())
    begin = time.time()
    with place.fault("duplicate_task"):
        answer = await place.submit(place.transport(), _slurm(place), _job(f"twice-{stamp}"), stamp)
    assert "error" not in answer, answer

    def both_have_answered() -> bool:
        results = [message for message in globus.messages() if message.kind == "result" and message.at >= begin]
        return sum(stamp.encode() in message.body for message in results) == 2

    await asyncio.to_thread(wait_until, both_have_answered)
    jobs = await asyncio.to_thread(accounted, place.facility, f"twice-{stamp}")
    assert list(jobs) == [answer["native_id"]], f"{jobs} are not {answer['native_id']} alone"


def _slurm(place: Place) -> PsikBackend:
    attributes = BackendAttributes(type="slurm", queue_name="debug", project_name="proj1")
    return PsikBackend(prefix=place.prefix, attributes=attributes)


def _job(name: str) -> JobSpec:
    return JobSpec(name=name, script="true\n", resources=ResourceSpec(duration=1, exclusive_node_use=False))


@case("a slow service", globus=True)
async def _(place: Place) -> None:
    begin = time.monotonic()
    with place.fault("delay", match=SUBMIT, seconds=2.0):
        await place.look(place.transport())
    assert time.monotonic() - begin >= 2.0


@case("a lost result ends at the time limit", globus=True)
async def _(place: Place) -> None:
    transport = place.transport()
    await place.look(transport)
    with place.fault("lose_result"):
        await ends_at_its_limit(place.look(transport, timeout=5), 5, FacilityTimeout, "within 5 s")
    await place.look(transport)


def _passing(status: int) -> Case:
    async def passes(place: Place) -> None:
        with place.fault("error", match=SUBMIT, status=status, times=2):
            await place.look(place.transport())

    return passes


for _status in (429, 500, 503):
    case(f"{_status} twice passes", globus=True)(_passing(_status))


@case("401 once: the token is fetched anew", globus=True)
async def _(place: Place) -> None:
    with place.fault("error", match=SUBMIT, status=401):
        await place.look(place.transport())


def _lasting(status: int, kind: type[FacilityError]) -> Case:
    async def lasts(place: Place) -> None:
        transport = place.transport()
        with place.fault("error", match=SUBMIT, status=status):
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


#: Code whose calls are under way for longer than an interpreter may take to end.
_SLOW = "import time\ndef call(name, payload):\n    time.sleep(6)\n    return {}\n"


@case("the interpreter ends with calls outstanding")
async def _(place: Place) -> None:
    text = (
        "import asyncio, sys, time\n"
        "from tests.conformance.client import place_of\n"
        "place = place_of(sys.argv[1])\n"
        "async def main():\n"
        f"    async with place.running({_SLOW!r}) as transport:\n"
        "        calls = [asyncio.ensure_future(place.look(transport, str(n))) for n in range(1, 6)]\n"
        "        await asyncio.sleep(3)\n"
        "        assert not any(call.done() for call in calls), calls\n"
        "        print(time.time(), flush=True)\n"
        "asyncio.run(main())\n"
    )
    await _ends_soon(text, place)


@case("the interpreter ends with results lost", globus=True)
async def _(place: Place) -> None:
    text = (
        "import asyncio, sys, time\n"
        "from tests.conformance.client import place_of\n"
        "place = place_of(sys.argv[1])\n"
        "async def main():\n"
        "    transport = place.transport()\n"
        "    await place.look(transport)\n"
        "    with place.fault('lose_result', times=5) as lost:\n"
        "        calls = [asyncio.ensure_future(place.look(transport, str(n))) for n in range(1, 6)]\n"
        "        await asyncio.to_thread(lost)\n"
        "    assert not any(call.done() for call in calls), calls\n"
        "    print(time.time(), flush=True)\n"
        "asyncio.run(main())\n"
    )
    await _ends_soon(text, place)


@case("the interpreter ends while a job is submitted")
async def _(place: Place) -> None:
    """Through the session: its thread has the call, and the submitter waits in another."""
    text = (
        "import sys, threading, time\n"
        "from contextlib import ExitStack\n"
        "from unittest import mock\n"
        "from uuid import UUID\n"
        "from prefect_psik import JobSpec, PsikBackend, submit_job\n"
        "from tests.conformance.client import place_of\n"
        "place = place_of(sys.argv[1])\n"
        "endpoint_id = UUID(place.facility.endpoint_id) if place.is_globus else None\n"
        "backend = PsikBackend(endpoint_id=endpoint_id, prefix=place.prefix)\n"
        "submit = lambda: submit_job.fn(backend, JobSpec(name='at the end', script='true'))\n"
        "submitter = threading.Thread(target=submit, daemon=True)\n"
        "with ExitStack() as stack:\n"
        "    if place.is_globus:\n"
        "        waits = stack.enter_context(place.fault('lose_result'))\n"
        "    else:\n"
        f"        slow = mock.patch('prefect_psik.transport.local.letter', return_value={_SLOW!r})\n"
        "        stack.enter_context(slow)\n"
        "        waits = lambda: time.sleep(3)\n"
        "    submitter.start()\n"
        "    waits()\n"
        "assert submitter.is_alive()\n"
        "print(time.time(), flush=True)\n"
    )
    await _ends_soon(text, place)


#: Code that has made its call, and has nothing under way.
_IDLE = (
    "import asyncio, sys, time\n"
    "from tests.conformance.client import place_of\n"
    "place = place_of(sys.argv[1])\n"
    "asyncio.run(place.look(place.transport()))\n"
    "print(time.time(), flush=True)\n"
)


async def _ends_soon(text: str, place: Place) -> None:
    """A program prints when nothing but its calls keeps it from ending: they add no more than that to its end."""
    for _ in range(3):  # a busy machine may be late once, what waits for calls is late each time
        took, idle = await _seconds_to_end(text, place), await _seconds_to_end(_IDLE, place)
        if 0 < took < EXIT_SECONDS + idle:
            return
    raise AssertionError(f"it took {took:.1f} s to end, without calls {idle:.1f} s")


async def _seconds_to_end(text: str, place: Place) -> float:
    child = await _python(text, place)
    out, said = await asyncio.wait_for(child.communicate(), CALL_SECONDS)
    ended = time.time()
    assert child.returncode == 0, said.decode()[-500:]
    return ended - float(out)


async def _python(text: str, place: Place) -> asyncio.subprocess.Process:
    where = json.dumps({"globus": place.is_globus, "prefix": place.prefix})
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", text, where),
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
