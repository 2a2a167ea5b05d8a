"""For the dispatcher's tests: a child that ends as its facility says, and a catalogue that takes notes."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from prefect import flow

from flows.ingest import Stored


@flow(name="child")
def child(
    scan: str,
    facility: Literal["good", "broken", "slow"],
    key: str,
    marks: str,
    store: str,
    stored: dict[str, Any],
    keep: dict[str, Any],
    hook: str | None,
    hook_required: bool,
) -> None:
    """Leave a mark of the key, and fail where the facility is `broken`."""
    (Path(marks) / f"{scan}.{facility}.{key.split()[-1]}").write_text(key)
    if facility == "slow":
        time.sleep(600)
    if facility == "broken":
        raise RuntimeError("The facility is broken.")


def catalogue(stored: Stored) -> str:
    """A hook: note what it is told, as a line of the file `$CATALOGUE`."""
    with Path(os.environ["CATALOGUE"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(stored)) + "\n")
    return f"the {stored.stage} of {stored.scan}"
