"""The life of a job from submission to result, as coroutines on the session's loop."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any

from prefect_psik.blocks import PsikBackend
from prefect_psik.exceptions import ERRORS, JobError, JobFailed, KeyConflict, PrefectPsikError, next_step
from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobHandle, JobResult, JobState, JobStatus
from prefect_psik.outcome.answers import Facts, FetchAnswer, SubmitAnswer
from prefect_psik.outcome.judge import lacking
from prefect_psik.outcome.results import brought, left_behind
from prefect_psik.outcome.slurm import Usage, odd_state, usage_of
from prefect_psik.plain_text import plain, plain_values
from prefect_psik.session.admission import Ticket, line_of
from prefect_psik.session.poller import Update
from prefect_psik.session.session import Channel
from prefect_psik.spec.identity import Identity
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.retry import Asked

#: Causes after which the same job may well succeed if it is run again.
_WORTH_ANOTHER_TRY = frozenset({FailureCause.node_failure, FailureCause.preempted})
_MESSAGE_LINES = 10


@dataclass(frozen=True)
class Again:
    """Another run of a job whose last run failed, within the same attempt of its task.

    Args:
        after: The number of the run that failed.
        number: How many runs this attempt has had.
        asked: What the next run asks for.
    """

    after: int
    number: int
    asked: Asked


@dataclass(frozen=True)
class Submitted:
    """The result of a submission: the job, whether this call started a run of it, and warnings about it."""

    handle: JobHandle
    created: bool
    warnings: list[str]


async def submit(
    channel: Channel,
    block: PsikBackend,
    spec: JobSpec,
    identity: Identity,
    *,
    rerun: bool,
    owner: dict[str, Any],
    again: Again | None = None,
    ticket: Ticket | None = None,
) -> Submitted:
    """Create or get a job; a failed or canceled one runs again for a newer attempt.

    Args:
        channel: The block's channel.
        block: The backend.
        spec: The job to run.
        identity: Key, stamp and attempt.
        rerun: Whether a newer attempt runs a failed or canceled job again.
        owner: Who submits, for the facility's records.
        again: The run that failed within this attempt, and what the next run asks for.
        ticket: The waiter's ticket, since the queue may be full.

    Raises:
        KeyConflict: The key belongs to a different job; shows the difference.
        SubmitRejected: The facility refused.
    """
    job = block.submission(spec, identity, owner, asked=again.asked if again else None)
    job |= line_of(job)
    if again is not None:
        job |= {"rerun_after": again.after, "attempt": [*identity.attempt, again.number]}
    try:
        answer = await channel.submit(job, ticket)
        handle = _handle(answer, block, job, identity)
        if again is not None:
            return Submitted(handle, answer.created, answer.warnings)
        newer = rerun and not answer.created and identity.attempt > answer.attempt
        if newer and isinstance(answer.facts, Facts):
            status = await channel.judged(answer.facts, handle)
            if status.state in (JobState.failed, JobState.canceled):
                answer = await channel.submit(job | {"rerun_after": handle.jobndx}, ticket)
                handle = _handle(answer, block, job, identity)
    except KeyConflict as err:
        raise _conflict(err, spec, identity) from None
    return Submitted(handle, answer.created, answer.warnings)


def _handle(answer: SubmitAnswer, block: PsikBackend, job: dict[str, Any], identity: Identity) -> JobHandle:
    return JobHandle(
        endpoint_id=block.endpoint_id,
        prefix=answer.prefix,
        stamp=identity.stamp,
        jobndx=answer.jobndx,
        native_id=answer.native_id,
        key=identity.key,
        type=block.attributes.type,
        name=job["spec"]["name"],
        backend=block.document_name,
        duration=answer.asked.duration,
        memory=answer.asked.memory,
    )


def _conflict(err: KeyConflict, spec: JobSpec, identity: Identity) -> KeyConflict:
    stored, given = _lines(err.stored), _lines(spec.canonical())
    difference = "\n".join(difflib.unified_diff(stored, given, "submitted before", "given now", lineterm="", n=0))
    return KeyConflict(
        f"The key {identity.key!r} already belongs to a job with a different spec. Choose another key, or submit "
        f"the same spec. {err}\n{plain(difference)}",
        stored=err.stored,
    )


def _lines(canonical: str) -> list[str]:
    """Write canonical JSON as lines that can be compared; return anything else unchanged."""
    try:
        return json.dumps(json.loads(canonical), indent=1, sort_keys=True, ensure_ascii=False).splitlines()
    except (ValueError, RecursionError):
        return canonical.splitlines()


async def finish(channel: Channel, update: Update) -> JobResult:
    """Build the result of a job from its last update, and fetch its small output files."""
    status = update.status
    if status is None:
        raise PrefectPsikError("A job without a status cannot be finished. This is a defect of prefect-psik.")
    warnings = list(status.warnings)
    outputs: dict[str, bytes] = {}
    if update.outputs and status.state is JobState.completed:
        answer = await channel.fetch(status.handle)
        gone = _unbrought(answer, update.outputs)
        if gone:
            status = lacking(status, gone)
        else:
            outputs = brought(answer, update.outputs, status.handle.place)
            warnings += left_behind(answer, status.handle.path)
    ran = _between(status.started, status.ended)
    usage = await _usage(channel, status)
    elapsed, nodes = usage.elapsed or ran, usage.nodes or status.nodes
    odd = odd_state(usage.state) if status.exit_code is not None else None
    if odd and f"{odd}." not in warnings:
        warnings.append(f"{odd}.")
    return JobResult(
        handle=status.handle,
        state=status.state,
        cause=status.cause,
        exit_code=status.exit_code,
        to_be_continued=status.to_be_continued,
        native_id=status.handle.native_id,
        queue_seconds=_between(status.submitted, status.started),
        run_seconds=ran,
        nodes=nodes,
        node_list=usage.node_list or status.node_list,
        node_hours=nodes * elapsed / 3600 if nodes and elapsed is not None else None,
        peak_memory=usage.peak_memory,
        cpu_efficiency=usage.cpu_efficiency,
        stdout=update.tails.get("stdout", ""),
        stderr=update.tails.get("stderr", ""),
        console=update.tails.get("console", ""),
        outputs=outputs,
        message=plain(status.message),
        warnings=plain_values(warnings),
    )


def _unbrought(answer: FetchAnswer, asked: list[str]) -> list[tuple[str, str]]:
    """Outputs that could not be fetched at all, each with the reason."""
    if answer.missing:
        return [(path, "its directory was removed before its outputs were fetched") for path in asked]
    if answer.trouble:
        return [
            (path, f"collecting its outputs stopped because {answer.trouble}: list fewer") for path in asked[:1]
        ]
    return [(path, f"{path} no longer matches anything") for path in asked if not answer.good.get(path)]


async def _usage(channel: Channel, status: JobStatus) -> Usage:
    """What the job used; nothing if it never ran, or ran without a scheduler."""
    if status.handle.type != "slurm" or status.started is None:
        return Usage()
    return usage_of(await channel.usage(status.handle))


def _between(begin: float | None, end: float | None) -> float | None:
    # psik's lines may be swapped if the job and its submission write at the same moment.
    return None if begin is None or end is None else max(0.0, end - begin)


def error_of(result: JobResult) -> JobError | None:
    """The error for a job that did not complete, or None if it completed."""
    if result.state is JobState.completed:
        return None
    kind = ERRORS.get(result.cause, JobFailed)
    handle = result.handle
    text = f"{str(handle)[0].upper()}{str(handle)[1:]} {result.state.value} on {handle.place}: {result.message}."
    text += "".join(f" {warning}" for warning in result.warnings)
    if step := next_step(result):
        text += f" {step}"
    for stream in ("stderr", "console", "stdout"):
        lines = getattr(result, stream).strip().splitlines()
        if lines:
            text += f" Last lines of {stream}:\n" + "\n".join(lines[-_MESSAGE_LINES:]) + "\n"
            break
    text += f" Its directory is {handle.path}." if text.endswith(".") else f"Its directory is {handle.path}."
    return kind(text, transient=result.cause in _WORTH_ANOTHER_TRY, result=result)
