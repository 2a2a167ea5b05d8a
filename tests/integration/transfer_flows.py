"""Flows that move data, served by a process of their own, which tests cancel and kill.

`python transfer_flows.py SOURCE DESTINATION BASE` serves them; the first two are UUIDs of collections.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from uuid import UUID

from prefect import flow, serve

from prefect_psik import GlobusCollection, cancel_psik_jobs, run_transfer, submit_transfer


@flow
def moves(source: UUID, destination: UUID, base: str) -> None:
    """Move a directory, and wait for it."""
    run_transfer(_at(source, base), _at(destination, base), "rec")


@flow(on_cancellation=[cancel_psik_jobs])
def submits(source: UUID, destination: UUID, base: str) -> None:
    """Begin to move a directory, and do something else that no cancel gets through to."""
    import time

    submit_transfer(_at(source, base), _at(destination, base), "rec")
    try:
        time.sleep(600)
    finally:
        time.sleep(600)


@flow
def dies(root: Path) -> None:
    """Copy a file on this machine, delete it where it was, and be killed; a second try goes to its end."""
    home, away = (GlobusCollection(base_path=str(root / name)) for name in ("home", "away"))
    run_transfer(home, away, "raw")
    (root / "home" / "raw").unlink(missing_ok=True)
    if not (root / "died").exists():
        (root / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _at(collection: UUID, base: str) -> GlobusCollection:
    return GlobusCollection(collection_id=collection, base_path=f"/{base}")


if __name__ == "__main__":
    ends = {"source": sys.argv[1], "destination": sys.argv[2], "base": sys.argv[3]}
    serve(
        moves.to_deployment("served", parameters=ends),  # type: ignore[arg-type]
        dies.to_deployment("served"),  # type: ignore[arg-type]
        submits.to_deployment("served", parameters=ends),  # type: ignore[arg-type]
    )
