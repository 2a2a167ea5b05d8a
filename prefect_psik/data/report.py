"""What people see of a transfer: log lines and a progress artifact."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    acreate_progress_artifact,
    aupdate_progress_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from prefect_psik.flow_run.report import artifact_key, in_run, run_logger
from prefect_psik.models.transfers import TransferHandle, TransferStatus, TransferUpdate
from prefect_psik.plain_text import plain

#: Log the progress this often while nothing else changes.
LINE_SECONDS = 30.0


class TransferReporter:
    """Reports the progress of one transfer where the waiter runs."""

    def __init__(self, handle: TransferHandle) -> None:
        self.handle = handle
        self.logger = run_logger()
        self._artifact: UUID | None = None
        self._trouble: str | None = None
        self._told: tuple[object, ...] = ()
        self._at = 0.0

    def tell(self, update: TransferUpdate) -> None:
        """Log what changed, and update the artifact."""
        if not self._is_news(update) or update.status is None or not in_run():
            return
        if self._artifact is None:
            created = create_progress_artifact(**self._new(update.status))
            assert isinstance(created, UUID)  # noqa: S101 - Prefect types it for both worlds
            self._artifact = created
        else:
            update_progress_artifact(self._artifact, **_fields(update.status))

    async def atell(self, update: TransferUpdate) -> None:
        """Async twin of `tell`."""
        if not self._is_news(update) or update.status is None or not in_run():
            return
        if self._artifact is None:
            self._artifact = await acreate_progress_artifact(**self._new(update.status))
        else:
            await aupdate_progress_artifact(self._artifact, **_fields(update.status))

    def _is_news(self, update: TransferUpdate) -> bool:
        if update.trouble != self._trouble:
            if update.trouble:
                self.logger.warning("%s: no news, still trying: %s", self.handle, update.trouble)
            else:
                self.logger.info("%s: in touch again", self.handle)
            self._trouble = update.trouble
        status = update.status
        if status is None:
            return False
        told = (status.state, status.nice_status, status.is_ok)
        if told == self._told and time.monotonic() < self._at + LINE_SECONDS:
            return False
        self._told, self._at = told, time.monotonic()
        is_whole = status.is_ok and not (status.state.is_final and status.left_out)
        tell = self.logger.info if is_whole else self.logger.warning
        tell("%s: %s", self.handle, describe(status))
        return True

    def _new(self, status: TransferStatus) -> dict[str, Any]:
        return {"key": artifact_key(f"transfer-{self.handle.source}"), **_fields(status)}


def describe(status: TransferStatus) -> str:
    """A status in one line: state, what holds it up, files, bytes, rate, faults, and what was left out."""
    held = (
        ""
        if status.nice_status in (None, "OK")
        else plain(f" ({status.nice_status}: {status.detail or 'no details'})")
    )
    skipped = f", {status.files_skipped} already there" if status.files_skipped else ""
    faults = f", {status.faults} faults" if status.faults else ""
    left_out = f", left out: {', '.join(map(str, status.left_out))}" if status.left_out else ""
    return (
        f"{status.state.value}{held}, {status.files_transferred} of {status.files} files moved{skipped}, "
        f"{amount(status.bytes_transferred)}, {amount(status.bytes_per_second)}/s{faults}{left_out}"
    )


def amount(size: float) -> str:
    """Bytes as people write them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _fields(status: TransferStatus) -> dict[str, Any]:
    return {"progress": status.progress, "description": describe(status)}
