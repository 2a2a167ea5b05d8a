"""A place where cases run: a Slurm, the block that leads there, and what tests do with it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect_psik import (
    JobError,
    JobHandle,
    JobResult,
    JobSpec,
    JobStatus,
    PrefectPsikError,
    PsikBackend,
    ResourceSpec,
    SubmitRejected,
    cancel_job,
    poll_job,
    submit_job,
    wait_for_job,
)
from tests.outcomes.case import Seen
from tests.testbed.slurm import Slurm
from tests.testbed.state import TestbedError

LOOK_SECONDS = 2.0
#: Slurm's accounting may be behind by some seconds.
ACCOUNTING_SECONDS = 30.0
SMALL = ResourceSpec(duration=5, exclusive_node_use=False)


@dataclass
class Site:
    """One Slurm and the way there.

    Attributes:
        slurm: To provoke what shall happen, and to hear what Slurm alone says.
        backend: The block that all cases submit through; they change single attributes.
        data: A directory that jobs may write to.
        accounting: Whether this Slurm has a database.
        chosen: Names of the cases that run here.
        together: Where cases wait for each other to share one event.
    """

    slurm: Slurm
    backend: PsikBackend
    data: Path
    accounting: bool = True
    chosen: frozenset[str] = frozenset()
    together: dict[str, threading.Barrier] = field(default_factory=dict)
    handles: list[JobHandle] = field(default_factory=list)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def at(self, *, prefix: str | None = None, **attributes: Any) -> PsikBackend:
        """The block with other attributes; options are added to those it has, None removes them."""
        own = self.backend.attributes
        if "options" in attributes:
            more = attributes["options"]
            attributes["options"] = {} if more is None else own.options | more
        changes: dict[str, Any] = {"attributes": own.model_copy(update=attributes)}
        if prefix is not None:
            changes["prefix"] = prefix
        return self.backend.model_copy(update=changes)

    def submit(self, script: str, *, at: PsikBackend | None = None, **fields: Any) -> JobHandle:
        """Submit a small job of a few lines of bash, or of what its shebang says."""
        text = script if script.startswith("#!") else f"#!/bin/bash\n{script}\n"
        spec = JobSpec.model_validate({"name": "outcome", "script": text, "resources": SMALL, **fields})
        handle = submit_job.fn(at or self.backend, spec)
        self.handles.append(handle)
        return handle

    def run(self, script: str, *, at: PsikBackend | None = None, **fields: Any) -> Seen:
        """Submit a job and wait for its end."""
        return self.end(self.submit(script, at=at, **fields))

    def refused(self, script: str, *, at: PsikBackend | None = None, **fields: Any) -> Seen:
        """Submit a job that must be refused; it then never was more than new."""
        try:
            handle = self.submit(script, at=at, **fields)
        except SubmitRejected as err:
            return Seen("new", err.cause.value, message=str(err), psik="new", slurm="nothing")
        except PrefectPsikError as err:
            return Seen("new", type(err).__name__, message=str(err))
        return self.seen(self.poll(handle))

    def wait(self, handle: JobHandle) -> JobResult:
        """Wait for the end of a job."""
        try:
            return wait_for_job.fn(handle, backend=self.backend)
        except JobError as err:
            ended, text = err.result, str(err)
        assert ended is not None
        assert ended.message in text, text
        return ended

    def end(self, handle: JobHandle) -> Seen:
        """Wait for the end of a job, and tell it."""
        return self.seen(self.wait(handle))

    def poll(self, handle: JobHandle) -> JobStatus:
        """Look once."""
        return poll_job.fn(handle, backend=self.backend)

    def until(
        self, handle: JobHandle, condition: Callable[[JobStatus], object], seconds: float = 120
    ) -> JobStatus:
        """Look until a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition(status := self.poll(handle)):
            assert time.monotonic() < deadline, f"still {status}"
            time.sleep(LOOK_SECONDS)
        return status

    def active(self, handle: JobHandle) -> JobHandle:
        """Wait until a job runs."""
        self.until(handle, lambda status: status.state.value == "active")
        return handle

    def waiting(self, handle: JobHandle) -> JobStatus:
        """Look until there is a reason why a job has not started."""
        return self.until(handle, lambda status: status.reason, seconds=60)

    def cancel(self, handle: JobHandle) -> JobStatus:
        """Cancel a job."""
        return cancel_job.fn(handle, backend=self.backend)

    def seen(self, told: JobResult | JobStatus, *, now: bool = False) -> Seen:
        """What was told of a job, and what psik alone and Slurm alone say; `now`: of one that has not ended."""
        handle = told.handle
        return Seen(
            state=told.state.value,
            cause=told.cause.value if told.cause else None,
            exit_code=told.exit_code,
            message=told.message or getattr(told, "reason", None) or "",
            psik=self.psik_says(handle),
            slurm=self.slurm_says(handle, ended=not now),
            notes=list(told.warnings),
        )

    def psik_says(self, handle: JobHandle) -> str:
        """The state in the last line of status.csv, and its code."""
        try:
            lines = (Path(handle.path) / "status.csv").read_text().splitlines()
        except FileNotFoundError:
            return "no record"
        _, _, state, info = lines[-1].split(",", 3)
        return f"{state} {info}".strip() if state == "failed" else state

    def slurm_says(self, handle: JobHandle, *, ended: bool) -> str:
        """The state of a job in accounting, and its exit code."""
        if handle.type != "slurm":
            return "–"
        deadline = time.monotonic() + ACCOUNTING_SECONDS
        state = "nothing"
        while time.monotonic() < deadline:
            state = self._accounted(handle) if self.accounting else self._queued(handle)
            if state != "nothing" and (not ended or not state.startswith(("PENDING", "RUNNING", "COMPLETING"))):
                break
            if state == "nothing" and not self.accounting:
                break
            time.sleep(LOOK_SECONDS)
        return state

    def _accounted(self, handle: JobHandle) -> str:
        fields = ("-n", "-P", "-X", "-j", str(handle.native_id), "-o", "State,ExitCode")
        rows = self.slurm.run("sacct", *fields).stdout.splitlines()
        return rows[-1].replace("|", " ") if rows else "nothing"

    def _queued(self, handle: JobHandle) -> str:
        which = ("-h", "-t", "all", "-j", f"{handle.native_id},999999", "-o", "%i|%T")
        rows = [line.strip().split("|") for line in self.slurm.run("squeue", *which).stdout.splitlines()]
        return next((state for native_id, state in rows if native_id == handle.native_id), "nothing")

    def ask(self, *command: str) -> str:
        """Run one of Slurm's commands."""
        return self.slurm.ask(*command)

    def forgotten(self, handle: JobHandle, seconds: float = 240) -> None:
        """Wait until squeue no longer knows a job."""
        deadline = time.monotonic() + seconds
        which = ("-h", "-t", "all", "-j", f"{handle.native_id},999999", "-o", "%i")
        while handle.native_id in self.slurm.run("squeue", *which).stdout.split():
            assert time.monotonic() < deadline, "squeue still knows it"
            time.sleep(LOOK_SECONDS)

    def forget_snapshots(self) -> None:
        """Have the facility ask Slurm anew at the next look."""
        for path in (Path(self.backend.prefix) / ".locks").glob("squeue*.json"):
            path.unlink(missing_ok=True)

    def meet(self, name: str, cases: tuple[str, ...], action: Callable[[], None]) -> None:
        """Wait until all of these cases are here, as far as they were chosen; the action is done once."""
        with self._mutex:
            parties = len(self.chosen.intersection(cases))
            barrier = self.together.setdefault(name, threading.Barrier(parties, action, timeout=120))
        barrier.wait()

    def end_children(self) -> None:
        """End the processes that cases started, with all that descend from them."""
        while self.children:
            child = self.children.pop()
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def tidy(self) -> None:
        """Cancel what is left."""
        self.end_children()
        left = [str(handle.native_id) for handle in self.handles if handle.type == "slurm" and handle.native_id]
        try:
            self.slurm.run("scancel", "--quiet", *left)
        except (OSError, TestbedError) as err:
            print(f"not tidied: {err}")
