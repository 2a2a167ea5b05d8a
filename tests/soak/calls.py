"""The calls of a soak: each must bring its own result or one clear error, within its limit."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

import psutil

from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import PrefectPsikError, RemoteCodeError
from prefect_psik.transport.globus.transport import REASON_SECONDS, GlobusTransport
from tests.soak.trouble import Trouble
from tests.testbed.facility import Facility
from tests.testbed.globus import SOAK_LOGINS

#: Time limit of each call; what takes longer, with the look for the reason and some for a busy machine, hangs.
CALL_SECONDS = 60.0
HANG_SECONDS = CALL_SECONDS + REASON_SECONDS + 10.0
#: Calls of one login that are under way at the same time.
AT_ONCE = 8
#: Calls after which memory is looked at for the first time: imports, the first connection and buffers are in it.
#: It is looked at while no call is under way and all connections are open, then and after the last call.
WARM_UP = 0.1
#: What memory may grow by in 1,000 calls. Threads, file descriptors and sockets must be as at the beginning.
#: One answer that is kept takes 13 blocks of Python's memory, so 13,000 in 1,000 calls. What happens for the first
#: time after the warm-up (a kind of error, a module) took 1,700 in a soak of 300 and 950 to 1,100 in three of
#: 1,000, so it does not grow with the calls. Bytes are those of the process: they tell of buffers outside of
#: Python (2 to 3 MB were seen), and swing by what the allocator gives back.
MORE_BYTES = 10_000_000
MORE_BLOCKS = 3_000
#: In a shorter soak, or under pytest, which keeps log records, growth is not told from what is made once.
CALLS_FOR_MEMORY = 1_000
#: Of all calls, so many must bring their result: the weather ends fewer than 2 in 100 for good, and the drills
#: those that meet a deleted endpoint or wait too long.
LEAST_OK = 0.8
#: Before whoever got an error makes its next call: while the endpoint is deleted, errors come at once.
PAUSE_SECONDS = 4.0
#: Clear errors, told apart by their words; any other is wrong. Each of the first three is the answer to one call,
#: so there are as many of them as there were such answers.
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
    blocks: int
    """Of memory that Python's allocator has given out: what is kept of a call is one at least."""

    @classmethod
    def now(cls) -> Footprint:
        """Look, after what nobody refers to any more is gone."""
        gc.collect()
        process = psutil.Process()
        descriptors = len(os.listdir("/proc/self/fd")) - 1  # but that of the listing
        sockets = len(process.net_connections("all"))
        memory, blocks = process.memory_info().rss, sys.getallocatedblocks()
        return cls(threading.active_count(), descriptors, sockets, memory, blocks)

    def exceeds(self, begin: Footprint) -> bool:
        """Say whether threads, descriptors or sockets are more than at the beginning."""
        here = (self.threads, self.descriptors, self.sockets)
        there = (begin.threads, begin.descriptors, begin.sockets)
        return any(now > then for now, then in zip(here, there, strict=True))


NOTHING = Footprint(0, 0, 0, 0, 0)


@dataclass
class Tally:
    """How the calls ended."""

    ok: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Clear errors, by their titles."""
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
    cool: Footprint = NOTHING
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
        first = int(self.count * WARM_UP)
        transports = [self._transport(name) for name in SOAK_LOGINS]
        try:
            async with self.trouble.while_it_lasts(with_drills=self.with_drills):
                self.warm = await self._work_together(transports, iter(range(1, first + 1)))
                self.cool = await self._work_together(transports, iter(range(first + 1, self.count + 1)))
        finally:
            for transport in transports:
                await transport.aclose()

    async def _work_together(self, transports: list[GlobusTransport], numbers: Iterator[int]) -> Footprint:
        """Make these calls, many at once; returns what is held when the last one has ended."""
        await asyncio.gather(*(self._work(way, numbers) for way in transports for _ in range(AT_ONCE)))
        return Footprint.now()

    def problems(self) -> list[str]:
        """What must not be, in sentences."""
        found = [f"wrong: {text}" for text in self.tally.wrong]
        if self.tally.hung:
            found.append(f"{self.tally.hung} calls took longer than {HANG_SECONDS:.0f} s.")
        if self.tally.ended != self.count:
            found.append(f"{self.tally.ended} calls of {self.count} ended.")
        if self.tally.ok < LEAST_OK * self.count:
            found.append(f"Only {self.tally.ok} calls of {self.count} brought their result.")
        for title in ("error 403", "error 413", "error 422"):
            told, happened = self.tally.errors[title], self.trouble.happened[title]
            # Where a call's time is up, its answer may come too late to be told.
            if not happened - self.tally.errors["no answer in time"] <= told <= happened:
                found.append(f"{title} happened {happened} times and was told {told} times.")
        if self.end.exceeds(self.begin):
            found.append(f"Threads, descriptors or sockets are left: {self.begin} became {self.end}.")
        thousands = self.count * (1 - WARM_UP) / 1_000
        for what, limit in (("memory", MORE_BYTES), ("blocks", MORE_BLOCKS)):
            growth = getattr(self.cool, what) - getattr(self.warm, what)
            if self.count >= CALLS_FOR_MEMORY and growth > limit * thousands:
                found.append(f"The {what} grew by {growth:,} after the warm-up.")
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
            text, title = str(err), _title_of(err)
            if title is not None and text.rstrip().endswith(".") and "Traceback" not in text:
                self.tally.errors[title] += 1
            else:
                self.tally.wrong.append(f"call {stamp}: no clear error: {type(err).__name__}: {text!r}")
        except Exception as err:  # noqa: BLE001 - any other error is what a soak looks for
            self.tally.wrong.append(f"call {stamp}: {err!r}")
        else:
            if list(answer.get("jobs", ())) == [stamp]:
                self.tally.ok += 1
                return True
            self.tally.wrong.append(f"call {stamp}: the answer is {answer!r}")
        return False


def _title_of(err: PrefectPsikError) -> str | None:
    """Which of the clear errors this is; None: none of them."""
    if isinstance(err, RemoteCodeError):
        return "ended with what ran it" if err.transient else None
    return next((title for title, words in ENDS.items() if words in str(err)), None)
