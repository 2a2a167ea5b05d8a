"""A call under way through Globus Compute, and when to ask for its result."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

#: When to ask for a call's result: seconds after it was sent and its work could be done. On the testbed a warm
#: answer takes 0.3 s (decision record 5).
ASK_AFTER_SECONDS = (0.4, 0.55, 0.8, 1.2, 1.8, 2.7, 4.0)
ASK_EVERY_SECONDS = 2.5


@dataclass
class Way:
    """A call under way: its Compute task, its answer, the earliest time for it, and the current trouble."""

    task_id: str = ""
    future: asyncio.Future[dict[str, Any]] | None = None
    earliest: float = 0.0
    trouble: str | None = None

    def until_next_look(self) -> float:
        """Seconds until its result should be asked for again."""
        age = time.monotonic() - self.earliest
        following = next((seconds for seconds in ASK_AFTER_SECONDS if seconds > age + 0.02), None)
        return ASK_EVERY_SECONDS if following is None else following - age
