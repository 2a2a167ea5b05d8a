"""Keeps one login below Globus's request limit, across all processes of this user on this machine.

A request holds a place from just before it is sent until one rate-limit window after its answer. The service
counts a request when it arrives, which lies in between, so it never counts more requests than there are places.
One small file, the ledger, holds the places of all processes. Its times are those of the monotonic clock, which
all processes share until the machine restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

#: Globus Compute allows 20 requests in 10 s for one identity; a few are left for other machines and tools.
REQUESTS_PER_WINDOW, WINDOW_SECONDS = 18, 10.1
#: No request takes longer: the HTTP time limits are shorter.
UNDER_WAY_SECONDS = 120.0
#: The longest pause that we grant when the service asks for one (Retry-After).
MOST_SILENCE_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 0.25
_LOCK_TRIES, _LOCK_PAUSE_SECONDS = 300, 0.01


class LedgerBusy(Exception):
    """Another process holds the ledger's lock."""


class Ledger:
    """The places of one login: in a file that all processes of this user share, or in this process alone.

    Args:
        path: The file; None: no sharing.
        limit: Places.
        window: Seconds for which an answered request keeps its place.
        clock: Monotonic seconds; a test gives its own.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        limit: int = REQUESTS_PER_WINDOW,
        window: float = WINDOW_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._limit = limit
        self._window = window
        self._clock = clock
        self._own: dict[str, Any] = {}
        self._mutex = threading.Lock()

    def try_take(self, place: str) -> float:
        """Occupy a place under this name: returns 0, or the seconds after which to try again.

        Raises:
            LedgerBusy: Try again at once.
        """
        with self._open(wait=False) as state:
            now = self._clock()
            if state["silent_until"] > now:
                return float(state["silent_until"] - now)
            places: dict[str, Any] = state["places"]
            if len(places) < self._limit:
                places[place] = [os.getpid(), now + UNDER_WAY_SECONDS]
                return 0.0
            # When requests under way will end is unknown; check them again soon.
            first: float = min(until for _, until in places.values()) - now
            return max(0.001, _LOOK_AGAIN_SECONDS if first > self._window else first)

    def answered(self, place: str, *, silence: float = 0.0) -> None:
        """Note that the request of this place is over; from any thread but the event loop's.

        Args:
            place: As it was taken.
            silence: Seconds for which the service asked for no requests.
        """
        with self._open(wait=True) as state:
            now = self._clock()
            state["places"][place] = [os.getpid(), now + self._window]
            state["silent_until"] = max(state["silent_until"], now + min(silence, MOST_SILENCE_SECONDS))

    @contextlib.contextmanager
    def _open(self, *, wait: bool) -> Iterator[dict[str, Any]]:
        """Lock the state and yield it; changes to it are stored."""
        if self._path is None:
            with self._mutex:
                yield self._current(self._own)
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(self._path, flags, 0o600), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise LedgerBusy from None
            try:
                known = file.read()
                state = self._current(_parsed(known))
                yield state
                # In one piece and never shorter: a process that is killed here leaves a whole file.
                os.pwrite(file.fileno(), json.dumps(state).encode().ljust(len(known)), 0)
            finally:
                # A forked child may still hold the descriptor, and with it the lock.
                fcntl.flock(file, fcntl.LOCK_UN)

    def _current(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state without expired entries and those written before the machine restarted."""
        now = self._clock()
        silent_until = float(state.get("silent_until", 0.0))
        state["silent_until"] = silent_until if silent_until <= now + MOST_SILENCE_SECONDS else 0.0
        places = {}
        for place, (pid, until) in state.get("places", {}).items():
            left = until - now
            if left > 2 * self._window and not _lives(pid):
                left = 2 * self._window  # its last request may still be on its way
            if 0 < left <= UNDER_WAY_SECONDS:
                places[place] = [pid, now + left]
        state["places"] = places
        return state


class RequestBudget:
    """Waits for places in a login's ledger, for the tasks of one event loop in the order in which they ask."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._turn = asyncio.Lock()

    async def take(self) -> str:
        """Wait until one more request may be sent; pass the returned place to `answered`."""
        place = uuid.uuid4().hex
        busy = 0
        async with self._turn:
            while True:
                try:
                    pause = self._ledger.try_take(place)
                    busy = 0
                except LedgerBusy:
                    busy += 1
                    pause = _LOCK_PAUSE_SECONDS
                except OSError:
                    busy = _LOCK_TRIES
                if busy >= _LOCK_TRIES:
                    # Nobody holds the lock that long, or the disk is full: continue without sharing.
                    self._ledger, busy = Ledger(None), 0
                    continue
                if pause <= 0:
                    return place
                await asyncio.sleep(pause)

    def answered(self, place: str, *, silence: float = 0.0) -> None:
        """See `Ledger.answered`."""
        with contextlib.suppress(OSError):
            self._ledger.answered(place, silence=silence)


@cache
def ledger_of(login: str) -> Ledger:
    """The ledger of a login, shared by all processes of this user on this machine where possible."""
    directory = _private_directory()
    name = hashlib.sha256(login.encode()).hexdigest()[:32]
    return Ledger(directory / f"requests-{name}" if directory else None)


def _private_directory() -> Path | None:
    """A directory of this user's own; below the temporary directory first, which services and logins share."""
    for parent in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR")):
        if not parent:
            continue
        path = Path(parent) / f"prefect-psik-{os.getuid()}"
        try:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            found = path.lstat()
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return path
    return None


def _parsed(text: bytes) -> dict[str, Any]:
    """The state as it was stored; empty if it is damaged."""
    try:
        state = json.loads(text)
        places = {str(place): [int(pid), float(until)] for place, (pid, until) in state["places"].items()}
        return {"silent_until": float(state["silent_until"]), "places": places}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return False
    return True
