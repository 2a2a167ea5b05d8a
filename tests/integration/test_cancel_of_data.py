"""A flow run that moves or prunes data is cancelled: what ends, what goes on, and what is told of it."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import get_run_context
from prefect.states import Cancelling

from prefect_psik import aprune, prune, run_transfer
from prefect_psik.flow_run import cancellation
from tests.integration.local import wait_until
from tests.integration.transfer_places import Place, emulated, local
from tests.testbed.globus import Globus

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def places(globus: Globus) -> tuple[Place, Place]:
    """Where data is, and where it goes or is held."""
    base = uuid.uuid4().hex
    return emulated(globus, "scratch", base), emulated(globus, "home", base)


def _cancelled(work: Callable[[], object], until: Callable[[], bool]) -> tuple[State[Any], State[Any]]:
    """Do work in a flow run that is cancelled in the meantime; returns its end, here and as Prefect has it."""
    runs: list[UUID] = []

    @flow
    def works() -> None:
        runs.append(get_run_context().flow_run.id)  # type: ignore[union-attr]
        work()

    def cancel() -> None:
        wait_until(until)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(runs[0], Cancelling(), force=True)

    thread = threading.Thread(target=cancel)
    thread.start()
    here = works(return_state=True)
    thread.join()
    with get_client(sync_client=True) as client:
        known = client.read_flow_run(runs[0]).state
    assert known is not None
    return here, known


def _slow_transfer(globus: Globus, places: tuple[Place, Place]) -> tuple[Callable[[], object], Callable[[], bool]]:
    """A transfer that takes 10 min, and whether it is under way."""
    one, other = places
    one.write("rec/1")
    one.write("rec/2")
    globus.order_fault("slow_path", match=f"scratch/{one.root.name}/rec/2", seconds=600)
    return lambda: run_transfer(one.block, other.block, "rec"), lambda: set(other.files()) == {"rec/1"}


def test_a_cancel_that_fails_is_not_told_as_done(
    globus: Globus, places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "STOP_SECONDS", 15.0)
    globus.order_fault("error", match="POST /v0.10/task/*/cancel", times=1000, status=403, code="NotYours")
    here, known = _cancelled(*_slow_transfer(globus, places))
    assert globus.transfers()[-1]["status"] == "ACTIVE"
    for state in (here, known):
        assert state.is_failed()
        assert "may still be running, since it could not be asked to stop" in str(state.message)
        assert "NotYours" in str(state.message)
        assert "was asked to stop" not in str(state.message)


def test_a_cancel_that_fails_at_first_is_tried_again(
    globus: Globus, places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "STOP_SECONDS", 120.0)
    globus.order_fault("error", match="POST /v0.10/task/*/cancel", times=2, status=403, code="NotYours")
    here, _ = _cancelled(*_slow_transfer(globus, places))
    # Whichever comes first: the word that it was asked to stop, or its end.
    assert re.search(r"it was asked to stop|failed \(canceled\)", str(here.message))
    wait_until(lambda: globus.transfers()[-1]["status"] == "FAILED")


def _slow_prune(globus: Globus, places: tuple[Place, Place]) -> Callable[[], bool]:
    """Have the deletion of the second of three files take 10 min; returns whether it has come to that."""
    away, _ = places
    for number in range(3):
        for place in places:
            place.write(f"rec/{number}", bytes([number]))
    # Transfer looks at it twice to compare it.
    globus.order_fault("slow_path", match=f"scratch/{away.root.name}/rec/1", after=2, seconds=600)
    return lambda: set(away.files("rec")) == {"1", "2"}


def _ended(globus: Globus) -> list[str]:
    """How the deletion ended, and then the removal of the marks at both ends."""
    return [task["status"] for task in globus.transfers()[-3:]]


def test_a_cancel_ends_a_prune_in_another_thread(globus: Globus, places: tuple[Place, Place]) -> None:
    away, home = places
    until = _slow_prune(globus, places)
    here, _ = _cancelled(lambda: prune.submit(away.block, "rec", check=home.block).result(), until)
    assert re.search("while waiting for prune of .*; it was asked to stop", str(here.message))
    wait_until(lambda: _ended(globus) == ["FAILED", "SUCCEEDED", "SUCCEEDED"])
    assert globus.transfers()[-3]["fatal_error"]["code"] == "CANCELED"
    assert set(away.files("rec")) == {"1", "2"}
    assert set(home.files("rec")) == {"0", "1", "2"}


async def test_an_interrupt_ends_a_prune(globus: Globus, places: tuple[Place, Place]) -> None:
    away, home = places
    until = _slow_prune(globus, places)
    pruning = asyncio.create_task(aprune(away.block, "rec", check=home.block))
    await asyncio.to_thread(wait_until, until)
    pruning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pruning
    await asyncio.to_thread(wait_until, lambda: _ended(globus) == ["FAILED", "SUCCEEDED", "SUCCEEDED"])
    assert set(away.files("rec")) == {"1", "2"}


async def test_an_interrupt_ends_a_prune_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away, home = local(tmp_path / "away"), local(tmp_path / "home")
    for number in range(20):
        for place in (away, home):
            place.write(f"rec/{number:02}")
    unlink = os.unlink

    def slowly(path: str) -> None:
        time.sleep(0.3)
        unlink(path)

    monkeypatch.setattr(os, "unlink", slowly)
    pruning = asyncio.create_task(aprune(away.block, "rec", check=home.block))
    await asyncio.to_thread(wait_until, lambda: len(away.files()) < 20)
    pruning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pruning
    looks = [away.files()]

    def is_over() -> bool:
        time.sleep(1.5)  # five times what a file takes
        looks.append(away.files())
        return looks[-1] == looks[-2]

    await asyncio.to_thread(wait_until, is_over)
    assert 0 < len(looks[-1]) < 20


async def test_an_interrupt_while_it_compares_removes_the_room(
    globus: Globus, places: tuple[Place, Place]
) -> None:
    away, home = places
    for place in places:
        place.write("rec/1")
    globus.order_fault("slow_path", match=f"scratch/{away.root.name}/rec/1", seconds=600)
    pruning = asyncio.create_task(aprune(away.block, "rec", check=home.block))
    await asyncio.to_thread(wait_until, lambda: len(home.files()) == 2)
    pruning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pruning
    await asyncio.to_thread(wait_until, lambda: set(home.files()) == {"rec/1"})
    assert set(away.files()) == {"rec/1"}
