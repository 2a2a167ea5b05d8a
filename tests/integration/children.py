"""The child of the dispatcher's tests: a deployment that ends as its facility says."""

from __future__ import annotations

import time
from pathlib import Path

from prefect import flow


@flow(name="child")
def child(scan: str, facility: str, key: str, marks: str) -> None:
    """Leave a mark of the key, and fail where the facility is `broken` and nobody has mended it."""
    (Path(marks) / f"{scan}.{facility}.{key.split()[-1]}").write_text(key)
    if facility == "slow":
        time.sleep(600)
    if facility == "broken" and not (Path(marks) / "mended").exists():
        raise RuntimeError("The facility is broken.")
