"""Keeps one login below the number of requests that Globus allows."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable


class RequestBudget:
    """At most `limit` requests in any window of `seconds`, in the order in which they ask.

    Args:
        limit: Requests in a window.
        seconds: Length of the window.
        clock: Monotonic seconds; a test gives its own.
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._sent: deque[float] = deque(maxlen=limit)
        self._not_before = 0.0
        self._turn = asyncio.Lock()

    async def take(self) -> None:
        """Return when one more request may be sent."""
        async with self._turn:
            while (pause := self.pause()) > 0:
                await asyncio.sleep(pause)
            self._sent.append(self._clock())

    def pause(self) -> float:
        """Seconds until the next request may be sent."""
        now = self._clock()
        full = self._sent[0] + self._seconds if len(self._sent) == self._limit else 0.0
        return max(0.0, full - now, self._not_before - now)

    def hold(self, seconds: float) -> None:
        """Send nothing for a while: the service asked for it (Retry-After)."""
        self._not_before = max(self._not_before, self._clock() + seconds)
