"""How to report to the current flow or task run: its logger, and the keys of its artifacts."""

from __future__ import annotations

import logging
import re
from typing import Any

from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger


def run_logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    """The logger of the current flow or task run, or this package's logger outside of a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("prefect_psik")


def in_run() -> bool:
    """Whether this code runs in a flow or task run."""
    return TaskRunContext.get() is not None or FlowRunContext.get() is not None


def artifact_key(text: str) -> str:
    """Turn a text into a key that Prefect accepts for an artifact."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
