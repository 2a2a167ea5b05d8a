"""Defects S3 to S6, S14 to S16 and S18 of splash-flows, those of moving and pruning data: not here.

Each test says what splash-flows does there (als-computing/splash_flows at 1648452), and shows what this does.
"""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from globus_sdk import TransferClient
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName

from flows.prune import prune_data
from prefect_psik import (
    SpecError,
    SyncCallError,
    TransferCause,
    TransferError,
    prune,
    run_transfer,
    schedule_prune,
)
from prefect_psik.credentials import transfer_login
from tests.integration.transfer_places import Place, emulated
from tests.testbed.globus import Globus

pytestmark = pytest.mark.usefixtures("prefect_server")

A_SECOND = timedelta(seconds=1)


@pytest.fixture
def saved(globus: Globus) -> tuple[Place, Place]:
    """The facility's scratch and the beamline's home, saved as blocks."""
    base = uuid.uuid4().hex
    away, home = emulated(globus, "scratch", base), emulated(globus, "home", base)
    away.block.save(f"away-{base}")
    home.block.save(f"home-{base}")
    return away, home


@pytest.fixture
async def deployed() -> None:
    """The deployment that scheduled prunes are runs of."""
    async with get_client() as client:
        await client.create_deployment(await client.create_flow(prune_data), "prune")


async def _prunes_of(place: Place) -> list[dict[str, object]]:
    """Parameters of the scheduled prunes of a place, as Prefect has them."""
    async with get_client() as client:
        runs = await client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["prune"])))
    return [run.parameters for run in runs if run.parameters["source"] == place.block.document_name]


def test_s3_a_failed_transfer_is_no_success(globus: Globus, saved: tuple[Place, Place]) -> None:
    """Splash takes the True of `task_wait` for success; it only means that the task is not active any more."""
    away, home = saved
    home.write("raw")
    globus.order_fault("slow_path", match="*raw", seconds=60)
    with pytest.raises(TransferError) as caught:
        run_transfer(home.block, away.block, "raw", deadline=A_SECOND)
    assert caught.value.cause is TransferCause.deadline
    task = globus.transfers()[-1]
    assert task["status"] == "FAILED"
    client = TransferClient(app=transfer_login(None).get_client())
    assert client.task_wait(task["task_id"], timeout=1) is True, "what Splash believes"


def test_s4_what_goes_wrong_makes_the_flow_run_red(globus: Globus, saved: tuple[Place, Place]) -> None:
    """Splash's `copy()` returns from a `finally`, which swallows every exception, its own timeout included."""
    away, home = saved
    home.write("raw")
    globus.order_fault("slow_path", match="*raw", seconds=60)

    @flow
    def copies() -> None:
        run_transfer(home.block, away.block, "raw", deadline=A_SECOND)

    state = copies(return_state=True)
    assert state.is_failed()
    assert "deadline" in str(state.message)


async def test_s5_nothing_is_pruned_after_a_transfer_that_failed(
    globus: Globus, saved: tuple[Place, Place], deployed: None
) -> None:
    """Splash's callers ignore what `copy()` returns, log a success, and schedule the source's deletion."""
    away, home = saved
    away.write("rec")
    globus.order_fault("path", match="home*rec", code="PERMISSION_DENIED", seconds=3600)

    @flow
    def brings_back() -> None:
        run_transfer(away.block, home.block, "rec")
        schedule_prune(away.block, "rec", check=home.block, after=A_SECOND)

    assert (await asyncio.to_thread(brings_back, return_state=True)).is_failed()
    assert await _prunes_of(away) == []
    # And if it were scheduled all the same, nothing would be lost.
    globus.clear_faults()
    with pytest.raises(Exception, match="not proven"):
        await asyncio.to_thread(prune, away.block, "rec", check=home.block)
    assert away.files() == {"rec": b"content"}


async def test_s6_a_prune_that_is_scheduled_exists(saved: tuple[Place, Place], deployed: None) -> None:
    """Splash calls an async task from sync code without awaiting it: nothing is scheduled, and it returns True."""
    away, home = saved

    @flow
    def schedules() -> None:
        schedule_prune(away.block, "rec", check=home.block, after=timedelta(days=1))

    await asyncio.to_thread(schedules)
    assert len(await _prunes_of(away)) == 1
    with pytest.raises(SyncCallError, match="await aschedule_prune"):
        schedule_prune(away.block, "rec", check=home.block, after=timedelta(days=1))


def test_s14_raw_data_is_not_pruned_without_a_check(saved: tuple[Place, Place]) -> None:
    """Splash prunes raw data on data832 with `check_endpoint=None`."""
    away, _ = saved
    away.write("raw")
    with pytest.raises(SpecError, match="needs a check collection"):
        prune(away.block, "raw", check=None)
    with pytest.raises(SpecError, match="needs a check collection"):
        schedule_prune(away.block, "raw", check=None, after=A_SECOND)
    assert away.files() == {"raw": b"content"}


def test_s15_a_remote_directory_is_one_though_this_machine_has_none(saved: tuple[Place, Place]) -> None:
    """Splash asks the worker's own file system whether a remote path is a directory."""
    away, home = saved
    away.write("rec/1")
    away.write("rec/sub/2")
    assert not Path(away.block.path("rec")).exists()
    assert run_transfer(away.block, home.block, "rec").files_transferred == 2
    assert home.files("rec") == away.files("rec")


def test_s16_the_age_counts_in_directories_too(saved: tuple[Place, Place]) -> None:
    """Splash's recursion drops `older_than_days`: files of subdirectories go however young they are."""
    away, home = saved
    for place in saved:
        place.write("rec/old", age=3 * 86400)
        place.write("rec/sub/young", age=60)
    prune(away.block, "rec", check=home.block, min_age=timedelta(days=1))
    assert set(away.files()) == {"rec/sub/young"}


async def test_s18_a_scheduled_prune_gets_names(saved: tuple[Place, Place], deployed: None) -> None:
    """Splash passes objects with live clients as parameters of flow runs, where secrets and versions freeze."""
    away, home = saved
    await asyncio.to_thread(schedule_prune, away.block, "rec", check=home.block, after=timedelta(days=1))
    assert await _prunes_of(away) == [
        {"source": away.block.document_name, "path": "rec", "check": home.block.document_name}
    ]
