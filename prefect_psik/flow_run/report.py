"""How the flow or task run around us is told something: its logger, and the keys of its artifacts."""

from __future__ import annotations

import logging
import re
from typing import Any

from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger


def run_logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    """The logger of the present flow or task run, or this package's outside of a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("prefect_psik")


def in_run() -> bool:
    """Whether a flow or task run is there to show something in."""
    return TaskRunContext.get() is not None or FlowRunContext.get() is not None


def artifact_key(text: str) -> str:
    """What Prefect takes for an artifact's key."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
