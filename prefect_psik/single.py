"""What Prefect's `.map` hands to every task whole."""

from __future__ import annotations

from typing import TYPE_CHECKING


class Single:
    """A model that is one thing.

    pydantic's models iterate over their fields, so `run_job.map(block, specs)` would take the block for a list.
    """

    if not TYPE_CHECKING:  # for the type checker a subclass cannot take a method back
        __iter__ = None
