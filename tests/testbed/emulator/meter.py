"""Counts requests and bytes of each identity, and holds everyone to the documented rate."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from tests.testbed.emulator.messages import Json, Refusal
from tests.testbed.emulator.store import Store

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
    """The log of requests to the compute service, kept in memory; what the peaks are made of is on disk."""

    def __init__(self, store: Store) -> None:
        self._mutex = threading.Lock()
        self._store = store
        self._entries: dict[str, list[Entry]] = defaultdict(list)
        self._admitted: dict[str, deque[float]] = defaultdict(deque)

    def note(self, identity: str) -> None:
        """Note a request on its arrival, whatever becomes of it."""
        # The clock is one for all processes of the machine, so a restart loses nothing.
        now = time.monotonic()
        with self._mutex:
            known = self._store.get("peak", identity) or {"most": 0, "arrived": []}
            arrived = [*(moment for moment in known["arrived"] if now - moment < WINDOW_SECONDS), now]
            self._store.put("peak", identity, {"most": max(known["most"], len(arrived)), "arrived": arrived})

    def admit(self, identity: str) -> None:
        """Let a request in, unless this identity has had its share.

        Raises:
            Refusal: 429, with the seconds to wait. A refused request uses up nothing.
        """
        now = time.monotonic()
        with self._mutex:
            recent = self._admitted[identity]
            _forget_before(recent, now)
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

    def peaks(self) -> Json:
        """Return the most requests that arrived within 10 s, by identity; no reset or restart lowers them."""
        with self._mutex:
            return {identity: peak["most"] for identity, peak in self._store.all("peak").items()}

    def recent(self, identity: str) -> int:
        """Return how many requests arrived within the last 10 s."""
        now = time.monotonic()
        arrived = (self._store.get("peak", identity) or {"arrived": []})["arrived"]
        return sum(now - moment < WINDOW_SECONDS for moment in arrived)

    def forget_peaks(self, only: str | None = None) -> None:
        """Begin the peaks anew, or that of one identity only, from the requests to come."""
        with self._mutex:
            for identity in [only] if only else self._store.all("peak"):
                self._store.delete("peak", identity)


def _forget_before(moments: deque[float], now: float) -> None:
    """Drop the moments that the window has left behind."""
    while moments and now - moments[0] >= WINDOW_SECONDS:
        moments.popleft()


def _sums(entries: Sequence[Entry]) -> Json:
    return {
        "requests": len(entries),
        "most_in_10_s": most_in_window(sorted(entry.at for entry in entries)),
        "bytes_in": sum(entry.bytes_in for entry in entries),
        "bytes_out": sum(entry.bytes_out for entry in entries),
        "statuses": dict(Counter(str(entry.status) for entry in entries)),
        "routes": dict(Counter(entry.route for entry in entries)),
    }
