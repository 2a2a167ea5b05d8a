"""Defects S3 to S6, S14 to S16 and S18 of splash-flows, those of moving and pruning data: not here.

Each test says what splash-flows does there (als-computing/splash_flows at 1648452), and shows what this does.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from globus_sdk import TransferClient
from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName

from flows.prune import prune_data
from flows.tomography import tomography
from prefect_psik import (
    PruneIncomplete,
    SpecError,
    SyncCallError,
    TransferCause,
    TransferError,
    aprune,
    prune,
    run_transfer,
    schedule_prune,
)
from prefect_psik.credentials import transfer_login
from tests.integration.local import job_directories
from tests.integration.test_flows import home
from tests.integration.transfer_places import Place, emulated
from tests.testbed.globus import Globus

__all__ = ["home"]

pytestmark = pytest.mark.usefixtures("prefect_server")

ROOT = Path(__file__).parents[2]
#: Of parameters without a default.
EXAMPLES = {"scan": "s", "job": "job.yaml", "facilities": ["local"], "name": "n", "table": []}
EXAMPLES |= {"source": "away", "path": "raw", "check": "home", "detector": "detector", "store": "store"}
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
    assert globus.transfers()[-1]["status"] == "FAILED", "nothing goes on at Globus"


async def test_s5_nothing_goes_on_after_a_transfer_that_failed(
    globus: Globus, saved: tuple[Place, Place], deployed: None, home: Path
) -> None:
    """Splash's callers ignore what `copy()` returns, log a success, and schedule the source's deletion."""
    arrives, stored = saved
    arrives.write("raw/s5.h5", b"the only copy")
    globus.order_fault("path", match="home*s5.h5", code="PERMISSION_DENIED", seconds=3600)
    names = {"detector": arrives.block.document_name, "store": stored.block.document_name}
    state = await tomography("s5", **names, local=home, return_state=True)
    assert state.is_failed()
    assert job_directories(home / "psik") == []
    assert await _prunes_of(arrives) == []
    # And if one were scheduled all the same, nothing would be lost.
    globus.clear_faults()
    with pytest.raises(PruneIncomplete):
        await aprune(arrives.block, "raw", check=stored.block)
    assert arrives.files() == {"raw/s5.h5": b"the only copy"}


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
    away, home = saved
    away.write("raw", b"content")
    with pytest.raises(SpecError, match="needs a check collection"):
        prune(away.block, "raw", check=None)
    with pytest.raises(SpecError, match="needs a check collection"):
        schedule_prune(away.block, "raw", check=None, after=A_SECOND)
    home.write("raw", b"contenT")
    with pytest.raises(PruneIncomplete, match="different contents"):
        prune(away.block, "raw", check=home.block)
    assert away.files() == {"raw": b"content"}


def test_s15_a_remote_directory_is_one_though_this_machine_has_none(saved: tuple[Place, Place]) -> None:
    """Splash asks the worker's own file system whether a remote path is a directory."""
    away, home = saved
    away.write("rec/1")
    away.write("rec/sub/2")
    assert not Path(away.block.path("rec")).exists()
    assert run_transfer(away.block, home.block, "rec").files_transferred == 2
    assert home.files("rec") == away.files("rec")


def test_s16_the_age_counts_in_directories_nothing_prints_and_scripts_are_files(
    saved: tuple[Place, Place],
) -> None:
    """Splash's recursion drops `older_than_days`, its library prints, and scripts are strings in its code."""
    away, home = saved
    for place in saved:
        place.write("rec/old", age=3 * 86400)
        place.write("rec/sub/young", age=60)
    prune(away.block, "rec", check=home.block, min_age=timedelta(days=1))
    assert set(away.files()) == {"rec/sub/young"}
    for path in (ROOT / "prefect_psik").rglob("*.py"):
        if "cli" in path.parts or "remote" in path.parts:
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert "print" not in {call.id for call in calls if isinstance(call, ast.Name)}, path.name
    for path in (ROOT / "flows").glob("*.py"):
        assert "#SBATCH" not in path.read_text()
    assert {path.name for path in (ROOT / "flows/scripts").iterdir()} >= {"reconstruct.py", "multiscale.py"}


async def test_s18_flow_runs_get_names(saved: tuple[Place, Place], deployed: None) -> None:
    """Splash passes objects with live clients as parameters of flow runs, where secrets and versions freeze."""
    away, home = saved
    await asyncio.to_thread(schedule_prune, away.block, "rec", check=home.block, after=timedelta(days=1))
    assert await _prunes_of(away) == [
        {"source": away.block.document_name, "path": "rec", "check": home.block.document_name}
    ]
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    assert "$ref" not in json.dumps(document)
    for deployment in document["deployments"]:
        path, name = deployment["entrypoint"].split(":")
        found: Flow[..., Any] = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
        form = found.parameters.model_dump()
        assert "block_type_slug" not in json.dumps(form), name
        assert set(deployment.get("parameters", {})) <= set(form["properties"]), name
        given = deployment.get("parameters", {})
        found.validate_parameters({name: EXAMPLES[name] for name in form.get("required", [])} | given)
