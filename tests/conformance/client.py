"""One column of the matrix: all cases at one place, in the Python that runs this."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext

from prefect_psik.exceptions import PrefectPsikError
from tests.conformance.suite import CALL_SECONDS, Case, Place, cases
from tests.testbed.facility import Facility

#: No case may hang longer.
CASE_SECONDS = 180.0


def place_of(where: str) -> Place:
    """Read a place as the suite hands it to its processes."""
    given = json.loads(where)
    return Place(Facility.from_state() if given["globus"] else None, given["prefix"])


async def run_case(work: Case, place: Place) -> str:
    """Run one case; returns an empty text, or why it failed."""
    try:
        await asyncio.wait_for(work(place), CASE_SECONDS)
    except Exception as err:  # noqa: BLE001 - whatever it is, it is this case's failure
        return f"{type(err).__name__}: {err}" if str(err) else traceback.format_exc()
    finally:
        if place.facility is not None:
            place.facility.globus.clear_faults()
    return ""


def run_cases(place: Place) -> dict[str, tuple[float, str]]:
    """Run all cases of a place, each in an event loop of its own; seconds and failure by name."""
    found = {}
    with place.facility.client() if place.facility else nullcontext():
        for name, work in cases(place).items():
            begin = time.monotonic()
            failure = asyncio.run(run_case(work, place))
            found[name] = (round(time.monotonic() - begin, 1), failure)
    return found


def python_of(place: Place) -> str:
    """The Python at the place, as it says itself; or why it does not."""

    async def ask() -> str:
        try:
            answer = await place.transport().call("hello", {}, timeout=CALL_SECONDS)
        except PrefectPsikError as err:
            return str(err)
        return str(answer["python"])

    with place.facility.client() if place.facility else nullcontext():
        return asyncio.run(ask())


def main() -> None:
    """Print the results as JSON: the Python at the place, and seconds and failure of each case."""
    globus = sys.argv[1] == "globus"
    with tempfile.TemporaryDirectory() as directory:
        facility = Facility.from_state() if globus else None
        prefix = str(facility.prefix) if facility else directory
        place = Place(facility, prefix)
        print(json.dumps({"python": python_of(place), "cases": run_cases(place)}))


if __name__ == "__main__":
    main()
