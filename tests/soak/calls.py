"""The calls of a soak: each must bring its own result or one clear error, within its limit."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

import psutil

from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import PrefectPsikError
from prefect_psik.transport.globus import REASON_SECONDS, GlobusTransport
from tests.soak.trouble import Trouble
from tests.testbed.facility import Facility
from tests.testbed.globus import SOAK_LOGINS

#: Time limit of each call; what takes longer, with the look for the reason and some for a busy machine, hangs.
CALL_SECONDS = 60.0
HANG_SECONDS = CALL_SECONDS + REASON_SECONDS + 10.0
#: Calls of one login that are under way at the same time.
AT_ONCE = 8
#: Calls after which memory is looked at for the first time: imports, the first connection and buffers are in it.
WARM_UP = 0.1
#: What memory may have grown by at the end. Threads, file descriptors and sockets must be as at the beginning.
MORE_BYTES = 20_000_000
#: Before whoever got an error makes its next call: while the endpoint is deleted, errors come at once.
PAUSE_SECONDS = 4.0
#: Clear errors, told apart by their words. Each of the first three is the answer to one call, so there are as many
#: of them as there were such answers.
ENDS = {
    "error 403": "does not allow",
    "error 413": "refused a call",
    "error 422": "Globus answered 422",
    "error 401": "refused the client",
    "endpoint not known": "is not known",
    "no answer in time": "No answer to",
}
_SETTLE_SECONDS = 30.0


@dataclass(frozen=True)
class Footprint:
    """What this process holds."""

    threads: int
    descriptors: int
    sockets: int
    memory: int

    @classmethod
    def now(cls) -> Footprint:
        """Look, after what nobody refers to any more is gone."""
        gc.collect()
        process = psutil.Process()
        descriptors = len(os.listdir("/proc/self/fd")) - 1  # but that of the listing
        sockets = len(process.net_connections("all"))
        return cls(threading.active_count(), descriptors, sockets, process.memory_info().rss)

    def exceeds(self, begin: Footprint) -> bool:
        """Say whether threads, descriptors or sockets are more than at the beginning."""
        here = (self.threads, self.descriptors, self.sockets)
        there = (begin.threads, begin.descriptors, begin.sockets)
        return any(now > then for now, then in zip(here, there, strict=True))


NOTHING = Footprint(0, 0, 0, 0)


@dataclass
class Tally:
    """How the calls ended."""

    ok: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Clear errors, by the titles of `ENDS`, or else by class."""
    wrong: list[str] = field(default_factory=list)
    """What was neither the call's own result nor a clear error, and what a second result was."""
    hung: int = 0
    slowest: float = 0.0
    seconds: float = 0.0

    @property
    def ended(self) -> int:
        """How many calls have ended, one way or the other."""
        return self.ok + self.errors.total() + len(self.wrong) + self.hung

    def last_line(self) -> str:
        """The line that says it all."""
        return f"{self.ok} ok, {self.errors.total()} clear errors, {len(self.wrong)} wrong, {self.hung} hung"


@dataclass
class Soak:
    """One soak.

    Args:
        facility: Where.
        seed: Of the faults and of the drills.
        count: Calls.
        with_drills: Whether the endpoint and the service as a whole are stopped, killed and deleted, too.
    """

    facility: Facility
    seed: int
    count: int
    with_drills: bool = True
    tally: Tally = field(default_factory=Tally)
    begin: Footprint = NOTHING
    warm: Footprint = NOTHING
    end: Footprint = NOTHING

    def __post_init__(self) -> None:
        self.trouble = Trouble(self.facility, self.seed)

    def run(self) -> None:
        """Make the calls, and wait until nothing of them is left: neither connections nor threads."""
        self.begin = Footprint.now()
        began = time.monotonic()
        asyncio.run(self._make_calls())
        self.tally.seconds = time.monotonic() - began
        deadline = time.monotonic() + _SETTLE_SECONDS
        self.end = Footprint.now()
        while self.end.exceeds(self.begin) and time.monotonic() < deadline:
            time.sleep(0.5)
            self.end = Footprint.now()

    async def _make_calls(self) -> None:
        numbers = iter(range(1, self.count + 1))
        transports = [self._transport(name) for name in SOAK_LOGINS]
        try:
            async with self.trouble.while_it_lasts(with_drills=self.with_drills):
                await asyncio.gather(*(self._work(way, numbers) for way in transports for _ in range(AT_ONCE)))
        finally:
            for transport in transports:
                await transport.aclose()

    def problems(self) -> list[str]:
        """What must not be, in sentences."""
        found = [f"wrong: {text}" for text in self.tally.wrong]
        if self.tally.hung:
            found.append(f"{self.tally.hung} calls took longer than {HANG_SECONDS:.0f} s.")
        if self.tally.ended != self.count:
            found.append(f"{self.tally.ended} calls of {self.count} ended.")
        for title in ("error 403", "error 413", "error 422"):
            told, happened = self.tally.errors[title], self.trouble.happened[title]
            # Where a call's time is up, its answer may come too late to be told.
            if not happened - self.tally.errors["no answer in time"] <= told <= happened:
                found.append(f"{title} happened {happened} times and was told {told} times.")
        if self.end.exceeds(self.begin):
            found.append(f"Threads, descriptors or sockets are left: {self.begin} became {self.end}.")
        if self.end.memory - self.warm.memory > MORE_BYTES:
            found.append(f"Memory grew by {self.end.memory - self.warm.memory:,} bytes after the warm-up.")
        if over := self.facility.globus.over_the_limit():
            found.append(f"More than 20 requests were sent in 10 s: {over}.")
        return found

    def _transport(self, name: str) -> GlobusTransport:
        client_id, secret = self.facility.globus.login(name)
        login = GlobusCredentials.model_validate({"client_id": client_id, "client_secret": secret})
        return GlobusTransport(UUID(self.facility.endpoint_id), credentials=login)

    async def _work(self, transport: GlobusTransport, numbers: Iterator[int]) -> None:
        """Make one call after the other until all numbers are used up."""
        for number in numbers:
            begin = time.monotonic()
            is_own = await self._call(transport, str(number))
            self.tally.slowest = max(self.tally.slowest, time.monotonic() - begin)
            if self.warm is NOTHING and self.tally.ended >= self.count * WARM_UP:
                self.warm = Footprint.now()
            if not is_own:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _call(self, transport: GlobusTransport, stamp: str) -> bool:
        """Make a call whose answer can only be its own, since it carries the stamp that was asked for."""
        payload = {"prefix": str(self.facility.prefix), "jobs": [{"stamp": stamp}]}
        try:
            async with asyncio.timeout(HANG_SECONDS):
                answer = await transport.call("status", payload, timeout=CALL_SECONDS)
        except TimeoutError:
            self.tally.hung += 1
        except PrefectPsikError as err:
            text = str(err)
            if text.rstrip().endswith(".") and "Traceback" not in text:
                title = next((title for title, words in ENDS.items() if words in text), type(err).__name__)
                self.tally.errors[title] += 1
            else:
                self.tally.wrong.append(f"call {stamp}: no sentence: {text!r}")
        except Exception as err:  # noqa: BLE001 - any other error is what a soak looks for
            self.tally.wrong.append(f"call {stamp}: {err!r}")
        else:
            if list(answer.get("jobs", ())) == [stamp]:
                self.tally.ok += 1
                return True
            self.tally.wrong.append(f"call {stamp}: the answer is {answer!r}")
        return False
