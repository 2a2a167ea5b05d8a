"""The transport to this machine: the same source text and JSON in a fresh interpreter, without Globus.

Answers come through a file: psik's local backend forks, and its jobs inherit open file descriptors, so
a pipe would stay open until the job ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from prefect_psik.exceptions import (
    FacilityError,
    FacilitySetupError,
    FacilityTimeout,
    PayloadTooLarge,
    RemoteCodeError,
)
from prefect_psik.remote import letter
from prefect_psik.transport.base import CALL_SECONDS, MAX_CALL_BYTES

#: Variables that jobs inherit from this process, as from a login shell: a job that relied on others would fail
#: at a facility, and this process holds secrets (PREFECT_API_KEY, GLOBUS_COMPUTE_CLIENT_SECRET).
_PASSED_ON = re.compile(
    r"HOME|USER|LOGNAME|SHELL|PATH|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR|LD_LIBRARY_PATH|SLURM_CONF"
    r"|VIRTUAL_ENV|CONDA_[A-Z_]+|MODULEPATH|SCRATCH|PSCRATCH"
)

_BOOT = """\
import json, os, sys
request, answer = sys.argv[1:]
with open(request) as file:
    document = json.load(file)
names = {"__name__": "prefect_psik_remote"}
exec(compile(document["source"], "<prefect_psik.remote>", "exec"), names)
result = json.dumps(names["call"](document["name"], document["payload"]))
with open(answer + ".part", "w") as file:
    file.write(result)
os.replace(answer + ".part", answer)
"""


class LocalTransport:
    """Runs calls in a fresh interpreter on this machine; see `Transport` for what it guarantees."""

    key = "local"
    place = "this machine"
    poll_floor_seconds = 0.2
    gather_seconds = 0.02

    async def call(self, name: str, payload: dict[str, Any], *, timeout: float = CALL_SECONDS) -> dict[str, Any]:
        """Execute one operation in a new process on this machine."""
        request = json.dumps({"source": letter(), "name": name, "payload": payload})
        if len(request) > MAX_CALL_BYTES:
            raise PayloadTooLarge(
                f"The call {name!r} is too large: {len(request):,} bytes, and the limit is {MAX_CALL_BYTES:,}. "
                "Use Globus Transfer for large inputs."
            )
        try:
            with tempfile.TemporaryDirectory(prefix="prefect-psik-") as directory:
                return await self._run(Path(directory), name, request, timeout)
        except OSError as err:
            raise FacilityError(
                f"The call {name!r} could not be made on this machine: {err}. Free space for temporary files, or "
                "set TMPDIR to a writable directory.",
                transient=err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE),
            ) from err

    async def _run(self, directory: Path, name: str, request: str, timeout: float) -> dict[str, Any]:
        question, answer, errors = directory / "request.json", directory / "answer.json", directory / "errors"
        question.write_text(request, encoding="utf-8")
        environment = {key: value for key, value in os.environ.items() if _PASSED_ON.fullmatch(key)}
        with errors.open("wb") as output:
            process = await self._start(
                *(sys.executable, "-P", "-c", _BOOT, str(question), str(answer)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd="/",
                # Ctrl-C in a terminal goes to its whole process group; a submission must not be cut in two.
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(timeout):
                code = await process.wait()
        except TimeoutError:
            raise FacilityTimeout(f"No answer to {name!r} on this machine within {timeout:.0f} s.") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
        if not answer.exists():
            text = errors.read_text(encoding="utf-8", errors="replace").strip()
            last = text.splitlines()[-1] if text else f"exit code {code}"
            raise RemoteCodeError(
                f"The call {name!r} failed on this machine: {last}. Either the Python interpreter could not start "
                "or this is a defect in prefect-psik; the traceback is in `remote_traceback`.",
                remote_traceback=text,
            )
        try:
            result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as err:
            raise RemoteCodeError(
                f"The answer to {name!r} from this machine is not valid JSON: {err}. Something has changed the "
                "records of jobs: check the job directories below the prefix."
            ) from None
        return result

    @staticmethod
    async def _start(*command: str, **options: Any) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(*command, **options)
        except OSError as err:
            raise FacilitySetupError(
                f"The Python interpreter {command[0]} on this machine cannot be started: {err.strerror}. Its "
                "environment may have been removed or rebuilt; restart this process."
            ) from None

    async def endpoint_status(self) -> str:
        """This machine is always online."""
        return "online"

    async def aclose(self) -> None:
        """Nothing is kept open."""
