"""Counts requests and bytes of each identity, and holds everyone to the documented rate."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from tests.testbed.emulator.messages import Json, Refusal

LIMIT = 20
WINDOW_SECONDS = 10.0


@dataclass(frozen=True)
class Entry:
    """One request as it was answered."""

    at: float
    route: str
    status: int
    bytes_in: int
    bytes_out: int


def most_in_window(times: Sequence[float], window: float = WINDOW_SECONDS) -> int:
    """Return the largest number of these moments (in order) that lie within any window of that length."""
    most = first = 0
    for last, moment in enumerate(times):
        while moment - times[first] >= window:
            first += 1
        most = max(most, last - first + 1)
    return most


class Meter:
    """The log of requests to the compute service, kept in memory."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._entries: dict[str, list[Entry]] = defaultdict(list)
        self._admitted: dict[str, deque[float]] = defaultdict(deque)

    def admit(self, identity: str) -> None:
        """Let a request in, unless this identity has had its share.

        Raises:
            Refusal: 429, with the seconds to wait. A refused request uses up nothing.
        """
        now = time.monotonic()
        with self._mutex:
            recent = self._admitted[identity]
            while recent and now - recent[0] >= WINDOW_SECONDS:
                recent.popleft()
            if len(recent) >= LIMIT:
                wait = max(1, math.ceil(WINDOW_SECONDS - (now - recent[0])))
                raise Refusal(
                    429,
                    "TOO_MANY_REQUESTS",
                    f"More than {LIMIT} requests in {WINDOW_SECONDS:g} s. Wait {wait} s.",
                    headers={"Retry-After": str(wait)},
                )
            recent.append(now)

    def record(self, identity: str, entry: Entry) -> None:
        """Note an answered request, admitted or not."""
        with self._mutex:
            self._entries[identity].append(entry)

    def report(self) -> Json:
        """Return the sums since the last reset, by identity."""
        with self._mutex:
            return {identity: _sums(entries) for identity, entries in self._entries.items()}

    def reset(self) -> None:
        """Forget the log. What counts towards the limit is not forgotten."""
        with self._mutex:
            self._entries.clear()


def _sums(entries: Sequence[Entry]) -> Json:
    return {
        "requests": len(entries),
        "most_in_10_s": most_in_window(sorted(entry.at for entry in entries)),
        "bytes_in": sum(entry.bytes_in for entry in entries),
        "bytes_out": sum(entry.bytes_out for entry in entries),
        "statuses": dict(Counter(str(entry.status) for entry in entries)),
        "routes": dict(Counter(entry.route for entry in entries)),
    }
