"""The cases of psik at the facility: missing, too old, of another patch version.

Missing and too old are real: an environment without psik, and the releases 3.0.1 and 3.1.0. The next patch version
is not out, so there it is the installed code under edited metadata: it shows that the version is not refused, not
that its code works.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest import mock
from uuid import UUID

from prefect_psik.blocks import PsikBackend
from prefect_psik.jobs.preflight import preflight_payload
from prefect_psik.models.jobs import Verdict
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.transport.base import Transport
from tests.conformance.case import CALL_SECONDS, Case, Place, case
from tests.testbed.endpoint import Endpoint
from tests.testbed.facility import Facility
from tests.unit.reports import judge_preflight

#: A release that is not out: the installed code, whose metadata say that it is it.
NEXT_PATCH = "3.1.2"


class OtherEndpoint(Endpoint):
    """An endpoint of the facility's user with another Python environment, daemon `psik-endpoint`."""

    daemon = "psik-endpoint"


def environment_with(psik: str | None, like: Path, directory: Path) -> Path:
    """Make an environment that has what another has, but this version of psik, or none.

    Args:
        psik: A release of psik, or `NEXT_PATCH`.
        like: `bin` directory of the other environment.
        directory: Of the new one.

    Returns:
        The new one's `bin` directory.
    """
    new = directory / "bin"
    is_release = psik not in (None, NEXT_PATCH)
    _run(str(like / "python"), "-m", "venv", *([] if is_release else ["--without-pip"]), str(directory))
    if is_release:
        _run(str(new / "python"), "-m", "pip", "install", "--quiet", "--no-deps", f"psik=={psik}")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    old_site, site = (Path(_run(str(bin_ / "python"), "-c", where).strip()) for bin_ in (like, new))
    for entry in old_site.iterdir():
        if not entry.name.startswith(("psik", "__pycache__")) and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    if psik == NEXT_PATCH:
        (site / "psik").symlink_to(old_site / "psik")
        [known] = old_site.glob("psik-*.dist-info")
        described = (known / "METADATA").read_text().replace(f"Version: {known.stem[5:]}", f"Version: {psik}", 1)
        (site / f"psik-{psik}.dist-info").mkdir()
        (site / f"psik-{psik}.dist-info" / "METADATA").write_text(described)
    for script in like.iterdir():
        if script.is_file() and not (new / script.name).exists() and script.read_bytes().startswith(b"#!"):
            shutil.copy(script, new)
            (new / script.name).write_bytes(script.read_bytes().replace(bytes(like), bytes(new)))
    return new


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"`{' '.join(command)}` failed: {done.stderr[-500:]}"
    return done.stdout


@asynccontextmanager
async def _place_with(place: Place, psik: str | None) -> AsyncIterator[Transport]:
    """Have a transport to a place with this version of psik."""
    if place.facility is None:
        with tempfile.TemporaryDirectory() as directory:
            new = await asyncio.to_thread(environment_with, psik, Path(sys.executable).parent, Path(directory))
            with mock.patch("prefect_psik.transport.local.sys.executable", str(new / "python")):
                yield place.transport()
        return
    facility: Facility = place.facility
    directory = str(facility.state.root / f"psik-{psik}-{time.time_ns()}")
    endpoint = OtherEndpoint(facility.state, facility.daemons, facility.globus)
    endpoint.bin = await asyncio.to_thread(environment_with, psik, endpoint.bin, Path(directory))
    try:
        await asyncio.to_thread(endpoint.start, {**facility.globus.env("owner"), **facility.slurm.env})
        yield place.transport(endpoint_id=UUID(endpoint.endpoint_id))
    finally:
        await asyncio.to_thread(endpoint.stop)
        shutil.rmtree(directory)


async def _verdict(transport: Transport, block: PsikBackend) -> tuple[Verdict, str]:
    """What the preflight says of psik there."""
    payload = preflight_payload(block, JobSpec(script="true\n"))
    answer = await transport.call("preflight", payload, timeout=CALL_SECONDS)
    [check] = [check for check in judge_preflight(answer, duration=1, nodes=1) if check.name == "psik"]
    return check.verdict, check.message


def _refusing(psik: str | None, *words: str) -> Case:
    async def refuses(place: Place) -> None:
        block = PsikBackend(prefix=place.prefix)
        async with _place_with(place, psik) as transport:
            verdict, message = await _verdict(transport, block)
            assert verdict is Verdict.failed, message
            error = (await place.submit(transport, block, JobSpec(script="true\n")))["error"]
            assert error["kind"] == "setup", error
            for text in (message, error["message"]):
                assert "pip install 'psik>=3.1.1'" in text, text
            assert all(word in error["message"] for word in words), error

    return refuses


case("psik is missing at the facility")(_refusing(None, "psik cannot be imported"))
case("psik is too old at the facility")(_refusing("3.0.1", "psik 3.0.1", "too old"))
case("psik is of the patch version before")(_refusing("3.1.0", "psik 3.1.0", "too old"))


@case("psik is of the next patch version")
async def _(place: Place) -> None:
    block = PsikBackend(prefix=place.prefix)
    async with _place_with(place, NEXT_PATCH) as transport:
        assert await _verdict(transport, block) == (Verdict.ok, f"psik {NEXT_PATCH} is installed.")
        answer = await place.submit(transport, block, JobSpec(script="true\n"))
        assert answer.get("created") is True, answer
