"""Two and three prunes that rely on each other, in any order of their steps: no content is lost everywhere.

In the model the steps are the calls of Transfer, and each file that it deletes: between a look and the deletion
that follows anything may happen, also after the process that asked for it was killed. On real directories they are
the calls of the carrier, and each file's proof and deletion. A prune that is killed leaves its marks.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from pathlib import Path
from unittest import mock
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_psik import (
    GlobusCollection,
    SpecError,
    TransferError,
    TransferState,
)
from prefect_psik.data import wait as transfer_waits
from prefect_psik.data.carriers.local import LocalCarrier
from prefect_psik.data.marks import Mark, deactivate
from prefect_psik.data.proof import claim as prune_claim
from prefect_psik.data.proof import local as prune_local
from prefect_psik.data.proof import look as prune_look
from prefect_psik.data.proof.plan import Prune
from prefect_psik.models.prunes import PruneFile
from prefect_psik.models.transfers import FileEntry, Order, TransferStatus
from prefect_psik.transport.daemon_thread import in_daemon_thread
from tests.integration.transfer_places import local
from tests.unit.memory_transfer import Transfer
from tests.unit.test_prune_plan import CARRIERS

FILES = ("rec/1", "rec/2", "rec/sub/3")
Pattern = tuple[tuple[int, int], ...]
CROSSWISE, RING = ((0, 1), (1, 0)), ((0, 1), (1, 2), (2, 0))
#: Who prunes whom with which check.
PATTERNS: tuple[Pattern, ...] = (
    CROSSWISE,
    RING,
    ((0, 1), (1, 0), (1, 0)),
    ((0, 1), (1, 2), (0, 1)),
    ((0, 1), (0, 2), (1, 0)),
    ((0, 1), (1, 2), (2, 1)),
)
#: Whose turn it is: 0 to 2 a prune, 3 the service; -1 to -3 kills a prune, -4 to -6 interrupts it.
ORDERS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 20)).map(lambda part: [part[0]] * part[1])
    | st.integers(-6, 3).map(lambda step: [step]),
    max_size=40,
).map(lambda parts: [step for part in parts for step in part])
_number: ContextVar[int] = ContextVar("number")


class Turns:
    """Gives the prunes their turns. When the order that was drawn is used up, everybody gets one in a circle."""

    def __init__(self, order: Sequence[int], prunes: int, serve: Callable[[], bool] = lambda: False) -> None:
        self.loop: asyncio.AbstractEventLoop
        self._order, self._prunes, self._serve = order, prunes, serve
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {number: deque() for number in range(prunes)}
        self._is_over = False
        self.killed: set[int] = set()
        #: The part of a prune that an interrupt ends.
        self.working: dict[int, asyncio.Task[None]] = {}

    async def mine(self, number: int | None = None) -> None:
        """Wait for a turn of the prune that this call belongs to; one that was killed waits for ever."""
        if self._is_over:
            raise asyncio.CancelledError
        turn = asyncio.get_running_loop().create_future()
        self._waiting[_number.get() if number is None else number].append(turn)
        await turn

    async def lead(self, runs: list[asyncio.Task[None]], on_kill: Callable[[int], None]) -> None:
        """Give turns until all prunes have ended or were killed, and the service has nothing to do."""
        self.loop, most = asyncio.get_running_loop(), len(RING)
        for step in itertools.chain(self._order, itertools.cycle(range(self._prunes + 1))):
            await self._all_wait(runs)
            busy = [number for number, run in enumerate(runs) if not run.done() and number not in self.killed]
            if step < -most:
                if -1 - most - step in busy and (working := self.working.get(-1 - most - step)):
                    working.cancel()
            elif step < 0:
                if -1 - step in busy:
                    self.killed.add(-1 - step)
                    on_kill(-1 - step)
            elif step >= self._prunes:
                served = self._serve()
                if not busy and not served:
                    return
            elif step in busy and self._waiting[step]:
                turn = self._waiting[step].popleft()
                if not turn.done():  # else its prune was interrupted
                    turn.set_result(None)

    async def clear(self) -> None:
        """End what is left of those that were killed; none of it does a step any more."""
        self._is_over = True
        while left := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in left:
                task.cancel()
            await asyncio.wait(left)

    async def _all_wait(self, runs: list[asyncio.Task[None]]) -> None:
        """Let all prunes come to their next step."""
        while not all(
            run.done() or any(not turn.done() for turn in self._waiting[number]) for number, run in enumerate(runs)
        ):
            await asyncio.sleep(0)


async def drive(prunes: list[Prune], turns: Turns, on_kill: Callable[[int], None] = lambda _: None) -> None:
    """Run prunes by turns; those that were killed are left where they are."""

    async def work(prune: Prune) -> None:
        await prune.make_plan()
        await prune.carry_out()

    async def run(number: int, prune: Prune) -> None:
        _number.set(number)
        turns.working[number] = working = asyncio.create_task(work(prune))
        await asyncio.wait([working])
        if not working.cancelled() and (error := working.exception()):
            assert isinstance(error, SpecError | TransferError), error
        await prune.let_go()

    runs = [asyncio.create_task(run(number, prune)) for number, prune in enumerate(prunes)]
    await turns.lead(runs, on_kill)
    for number, task in enumerate(runs):
        if number not in turns.killed:
            task.result()
    await turns.clear()


class Service(Transfer):
    """Transfer, whose calls wait for a turn, and which deletes a file each time that it has a turn of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: Turns | None = None
        self._deletions: dict[str, deque[str]] = {}

    async def turn(self, call: str) -> None:
        if self.turns:
            await self.turns.mine()

    async def submit(self, order: Order, submission_id: str) -> tuple[str, bool]:
        if order.destination is not None:
            return await super().submit(order, submission_id)
        await self.turn("delete" if not order.recursive else "clear")
        self.orders.append(order)
        self._moved.append(set())
        task_id = str(len(self.orders) - 1)
        self._deletions[task_id] = deque(path for path, _ in order.items)
        return task_id, True

    async def cancel(self, task_id: str) -> None:
        """Nothing: whoever was killed cancels nothing."""

    async def look(self, task_id: str) -> TransferStatus:
        if self._deletions.get(task_id):
            await self.turn("poll")
            return TransferStatus(state=TransferState.active)
        return await super().look(task_id)

    def serve(self) -> bool:
        """Delete one file; returns whether there was one to delete."""
        for task_id, left in reversed(self._deletions.items()):  # tasks do not wait for earlier ones
            if left:
                self._delete(self.orders[int(task_id)], left.popleft())
                return True
        return False


ENDS = [GlobusCollection(collection_id=UUID(int=n + 1), base_path=f"/{n + 1}") for n in range(3)]


@contextmanager
def patched(*changes: tuple[object, str, object]) -> Iterator[None]:
    """Change attributes for a while; hypothesis wants no fixtures of one example's life."""
    with ExitStack() as stack:
        for module, name, value in changes:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def at_globus(pattern: Pattern, order: Sequence[int], service: Service) -> tuple[Service, set[int]]:
    """Run prunes of a pattern on the model; returns it and which prunes were killed."""
    ends = {end for pair in pattern for end in pair}
    for end in ends:
        for file in FILES:
            service.write(ENDS[end], file, file.encode())
    pauses = (transfer_waits, "PAUSES_SECONDS", (0.0, 0.0))
    with patched(*((module, name, lambda _: service) for module, name in CARRIERS), pauses):
        prunes = [Prune(ENDS[source], ENDS[check], "rec") for source, check in pattern]
        service.turns = turns = Turns(order, len(pattern), service.serve)
        asyncio.run(drive(prunes, turns))
    return service, turns.killed


def contents(service: Service) -> set[bytes]:
    """What exists somewhere under its own name: a room is not a place to keep data."""
    return {content for (_, path), (content, _) in service.files.items() if "/.prefect" not in path}


@given(st.sampled_from(PATTERNS), ORDERS)
@settings(max_examples=200)
def test_nothing_is_lost_at_globus_whatever_the_order(pattern: Pattern, order: list[int]) -> None:
    service, killed = at_globus(pattern, order, Service())
    assert contents(service) == {file.encode() for file in FILES}
    if not killed:
        assert not service.directories, "the marks are gone"


def test_nothing_is_lost_at_globus_in_a_ring_of_which_each_pauses_once() -> None:
    """The longest way to a loss: two prunes have looked, the third comes and goes before they delete."""
    outcomes = set()
    for cuts in itertools.product((0, 2, 4, 6), repeat=3):
        for first, then in itertools.product(itertools.permutations(range(3)), repeat=2):
            if first[0] != 0:
                continue  # the same ring, turned
            order = [prune for prune in first for _ in range(cuts[prune])]
            order += [prune for prune in then for _ in range(6 - cuts[prune])]
            service, _ = at_globus(RING, order, Coarse())
            assert contents(service) == {file.encode() for file in FILES}
            outcomes.add(len(service.files))
    assert outcomes == {len(FILES), 2 * len(FILES)}


def test_marks_stay_until_the_deletion_of_an_interrupted_prune_has_ended() -> None:
    """Transfer goes on with a task that it was asked to stop, while the other prune does all that it may."""
    for begun, served in itertools.product(range(10, 40), (4, 5)):  # as many as there are marks, and one more
        order = [0] * begun + [-4] + [0] * 20 + [3] * served + [0] * 10 + [1] * 100
        service, _ = at_globus(CROSSWISE, order, Service())
        assert contents(service) == {file.encode() for file in FILES}, begun
        assert not service.directories


class Coarse(Service):
    """The same with six steps a prune: marks, look, proof, look, deletion, end."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[int, str] = {}
        self._gates: dict[int, asyncio.Future[None]] = {}

    async def submit(self, order: Order, submission_id: str) -> tuple[str, bool]:
        return await Transfer.submit(self, order, submission_id)

    async def turn(self, call: str) -> None:
        number = _number.get(-1)
        before = self._last.setdefault(number, call)
        if call != before:
            self._last[number] = call
            self._gates[number] = asyncio.ensure_future(super().turn(call))
        if number in self._gates:
            await self._gates[number]  # calls that are made at once are one step


def test_nothing_is_lost_at_globus_in_any_of_all_orders_of_two_crosswise_prunes() -> None:
    outcomes = set()
    for places in itertools.combinations(range(12), 6):
        service, _ = at_globus(CROSSWISE, [int(step in places) for step in range(12)], Coarse())
        assert contents(service) == {file.encode() for file in FILES}
        assert not service.directories
        outcomes.add(len(service.files))
    assert outcomes == {len(FILES), 2 * len(FILES)}, "some order lets one of them prune, another one none"


# ----------------------------------------------------------------------------------------- real directories


class Stepwise(LocalCarrier):
    """This machine, one call of a prune after the other."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    async def submit(self, order: Order, submission_id: str) -> tuple[str, bool]:
        await self._turns.mine()
        return await super().submit(order, submission_id)

    async def make_directory(self, collection: str, path: str) -> None:
        await self._turns.mine()
        await super().make_directory(collection, path)

    async def list(self, collection: str, path: str, *, recursive: bool) -> AsyncIterator[FileEntry]:
        await self._turns.mine()
        async for entry in super().list(collection, path, recursive=recursive):
            yield entry


def one_by_one(
    turns: Turns, work: Callable[[prune_local.LocalPrune, list[PruneFile]], Awaitable[dict[str, str]]]
) -> Callable[[prune_local.LocalPrune, list[PruneFile]], Awaitable[dict[str, str]]]:
    """Prove or delete each file in a turn of its own."""

    async def stepwise(self: prune_local.LocalPrune, files: list[PruneFile]) -> dict[str, str]:
        reasons: dict[str, str] = {}
        for file in files:
            await turns.mine()
            reasons |= await work(self, [file])
        return reasons

    return stepwise


@given(st.sampled_from(PATTERNS), ORDERS)
@settings(max_examples=100)
def test_nothing_is_lost_on_this_machine_whatever_the_order(pattern: Pattern, order: list[int]) -> None:
    turns = Turns(order, len(pattern))
    carrier = Stepwise(turns)
    marks: list[Mark] = []

    def noted(flow_run: str | None, *, by_globus: bool) -> Mark:
        marks.append(made := of(flow_run, by_globus=by_globus))
        return made

    def unlink(name: str) -> None:
        """Between a file's last look and its deletion, too, others may have their turn."""
        if (number := _number.get(None)) is not None:
            asyncio.run_coroutine_threadsafe(turns.mine(number), turns.loop).result()
        real_unlink(name)

    async def in_context(work: Callable[[], object]) -> object:
        return await in_daemon_thread(partial(copy_context().run, work))

    of, real_unlink = Mark.of, os.unlink
    with (
        tempfile.TemporaryDirectory() as top,
        patched(
            (prune_claim, "carrier_of", lambda _: carrier),
            (prune_look, "carrier_of", lambda _: carrier),
            (prune_local.LocalPrune, "prove", one_by_one(turns, prune_local.LocalPrune.prove)),
            (prune_local.LocalPrune, "delete", one_by_one(turns, prune_local.LocalPrune.delete)),
            (transfer_waits, "LOCAL_PAUSES_SECONDS", (0.001, 0.001)),
            (Mark, "of", noted),
            (prune_local, "in_daemon_thread", in_context),
            (os, "unlink", unlink),
        ),
    ):
        ends = [local(Path(top) / str(number)) for number in range(3)]
        for end in ends:
            for file in FILES:
                end.write(file, file.encode())
        prunes = [Prune(ends[source].block, ends[check].block, "rec") for source, check in pattern]
        # Others see at once that a process has ended.
        asyncio.run(drive(prunes, turns, lambda number: deactivate(marks[number].id)))
        found = {content for end in ends for content in end.files().values()}
        assert found == {file.encode() for file in FILES}
        if not turns.killed:
            assert not list(Path(top).rglob(".prefect*"))
