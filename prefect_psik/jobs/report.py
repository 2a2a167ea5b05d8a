"""What people see of a job: log lines, events, and an artifact at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_table_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.events import emit_event

from prefect_psik.flow_run.report import artifact_key, in_run, run_logger
from prefect_psik.models.jobs import JobHandle, JobResult, JobState, JobStatus, PreflightReport, Verdict
from prefect_psik.outcome.reservations import lasting
from prefect_psik.plain_text import code_block, markdown, plain, plain_values
from prefect_psik.session.poller import Update

_LINE_LIMIT = 500
#: The most reasons to wait that the card shows.
MOST_WAITS = 5


class Reporter:
    """Logs the progress of one job where the waiter runs.

    Args:
        handle: The job's handle.
        waits: What the job waited for before it was submitted, for the card.
    """

    def __init__(self, handle: JobHandle, waits: Sequence[str] = ()) -> None:
        self.handle = handle
        self.waits = list(waits)
        self.logger = run_logger()
        self._state: JobState | None = None
        self._reason: str | None = None
        self._trouble: str | None = None
        self._partial: dict[str, str] = {}

    def tell(self, update: Update) -> None:
        """Log what changed: the state, the reason to wait, lost contact, new lines of the job's logs."""
        if update.trouble != self._trouble:
            if update.trouble:
                self.logger.warning("%s: no answer, still trying: %s", self.handle, update.trouble)
            else:
                self.logger.info("%s: contact restored", self.handle)
            self._trouble = update.trouble
        if update.status is None:
            return
        final = update.status.state.is_final
        for stream in ("stdout", "stderr", "console"):
            self._tell_lines(stream, update.logs.get(stream, ""), flush=final)
        self._tell_state(update.status)

    def _tell_lines(self, stream: str, text: str, *, flush: bool) -> None:
        *lines, rest = (self._partial.pop(stream, "") + text).split("\n")
        if flush and rest:
            lines.append(rest)
        elif rest:
            self._partial[stream] = rest
        name = plain(self.handle.name or self.handle.stamp)
        for line in lines:
            extra = {"psik_stream": stream, "psik_line": line}
            if line.strip() or not in_run():
                self.logger.info("%s %s | %s", name, stream, plain(line[:_LINE_LIMIT]), extra=extra)

    def _tell_state(self, status: JobStatus) -> None:
        reason = lasting(status.reason or "")
        if status.state == self._state and reason == self._reason:
            return
        self._state, self._reason = status.state, reason
        why = f" ({status.reason})" if status.reason else ""
        if status.reason and status.started is None and not status.state.is_final:
            self.waits.append(status.reason)
        if status.stuck:
            self.logger.warning("%s will not start unless something is changed%s", self.handle, why)
        elif not status.state.is_final:
            self.logger.info("%s is %s%s", self.handle, status.state.value, why)
        payload = {
            "native_id": status.handle.native_id,
            "backend": self.handle.backend,
            "cause": status.cause.value if status.cause else None,
            "exit_code": status.exit_code,
        }
        event = "stuck" if status.stuck else status.state.value
        emit_job_event(event, self.handle.stamp, self.handle.name or self.handle.stamp, payload)

    def finish(self, result: JobResult) -> None:
        """Log the end and leave a card in Prefect's UI."""
        self._log_end(result)
        if in_run():
            create_markdown_artifact(**_job_artifact(result, self.waits))

    async def afinish(self, result: JobResult) -> None:
        """Log the end and leave a card in Prefect's UI."""
        self._log_end(result)
        if in_run():
            await acreate_markdown_artifact(**_job_artifact(result, self.waits))

    def _log_end(self, result: JobResult) -> None:
        spent = f" after {in_words(result.run_seconds)}" if result.run_seconds is not None else ""
        self.logger.info("%s is %s%s", result.handle, result.state.value, spent)
        for warning in result.warnings:
            self.logger.warning("%s: %s", result.handle, warning)


def job_card(result: JobResult, waits: Sequence[str] = ()) -> str:
    """A finished job as Markdown; `waits`: what it waited for before it started."""
    handle = result.handle
    rows = {
        "state": result.state.value + (f" ({result.cause.value})" if result.cause else ""),
        "exit code": result.exit_code,
        "backend": handle.place,
        "native id": result.native_id,
        "waited for": "; ".join(waits[:MOST_WAITS]) or None,
        "queued": _optional_words(result.queue_seconds),
        "ran": _optional_words(result.run_seconds),
        "nodes": _nodes(result),
        "node-hours": result.node_hours and f"{result.node_hours:.3g}",
        "peak memory": result.peak_memory and f"{result.peak_memory / 1024**2:,.0f} MiB",
        "CPU efficiency": None if result.cpu_efficiency is None else f"{result.cpu_efficiency:.0%}",
        "directory": handle.path,
    }
    table = "\n".join(f"| {name} | {markdown(value)} |" for name, value in rows.items() if value is not None)
    logs = "".join(
        f"\n\n**{stream}** (last lines)\n\n{code_block(text.strip()[-2000:])}"
        for stream, text in (("stdout", result.stdout), ("stderr", result.stderr), ("console", result.console))
        if text.strip()
    )
    warnings = "".join(f"- {markdown(warning)}\n" for warning in result.warnings)
    notes = f"\n**Warnings**\n\n{warnings}" if warnings else ""
    title = f"## Job {markdown(handle.name or handle.stamp)}"
    return f"{title}\n\n{markdown(result.message)}\n{notes}\n| | |\n|---|---|\n{table}{logs}\n"


def _nodes(result: JobResult) -> str | None:
    if result.nodes is None:
        return None
    return f"{result.nodes} ({result.node_list})" if result.node_list else str(result.nodes)


def emit_job_event(event: str, stamp: str, name: str, payload: dict[str, Any]) -> None:
    """Emit an event `psik.job.EVENT` for a job, if this is a flow or task run."""
    if not in_run():
        return
    emit_event(
        event=f"psik.job.{event}",
        resource={"prefect.resource.id": f"psik.job.{stamp}", "prefect.resource.name": plain(name)},
        payload={"stamp": stamp, **payload},
    )


def _job_artifact(result: JobResult, waits: Sequence[str]) -> dict[str, Any]:
    key = artifact_key(f"psik-{result.handle.name or 'job'}")
    return {"key": key, "markdown": job_card(result, waits), "description": markdown(result.message)}


def _optional_words(seconds: float | None) -> str | None:
    return None if seconds is None else in_words(seconds)


def in_words(seconds: float) -> str:
    """A measured time, as a person reads it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def tell_preflight(report: PreflightReport) -> None:
    """Log the checks that are not ok, and put all of them into a table artifact."""
    _log_checks(report)
    if in_run():
        create_table_artifact(**_preflight_table(report))


async def atell_preflight(report: PreflightReport) -> None:
    """Async twin of `tell_preflight`."""
    _log_checks(report)
    if in_run():
        await acreate_table_artifact(**_preflight_table(report))


def _log_checks(report: PreflightReport) -> None:
    for check in report.checks:
        if check.verdict is not Verdict.ok:
            run_logger().warning("preflight of %s, %s: %s", report.backend, check.name, check.message)


def _preflight_table(report: PreflightReport) -> dict[str, Any]:
    return {
        "table": plain_values([check.model_dump(mode="json") for check in report.checks]),
        "key": artifact_key(f"preflight-{report.backend}"),
        "description": f"Preflight of {report.backend}: {'ok' if report.ok else 'failed'}",
    }
