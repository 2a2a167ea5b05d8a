"""A real Prefect server and served flows: a killed flow finds its transfer again, a cancelled one ends it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType

from tests.integration.local import wait_until
from tests.integration.prefect_services import PrefectServer, Services, services_beside
from tests.integration.transfer_places import Place, emulated
from tests.testbed.globus import Globus


@pytest.fixture(scope="module")
def services(
    emulator: Globus, server: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    """Prefect services whose processes are clients of the emulator."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GLOBUS_")}
    directory = tmp_path_factory.mktemp("services")
    with services_beside(server, directory, {**inherited, **emulator.env()}) as services:
        yield services


@pytest.fixture
def slow(globus: Globus, services: Services) -> Iterator[tuple[Place, Place]]:
    """A directory whose transfer takes 10 min, and where it goes; served are the flows that move it."""
    base = uuid.uuid4().hex
    home, away = emulated(globus, "home", base), emulated(globus, "scratch", base)
    home.write("rec/1", b"one")
    home.write("rec/2", b"two")
    globus.order_fault("slow_path", match=f"home/{base}/rec/2", seconds=600, times=1)
    _serve(services, home, away)
    yield home, away
    services.end_children()


def _serve(services: Services, home: Place, away: Place) -> Any:
    ends = [str(place.block.collection_id) for place in (home, away)]
    child = services.python("-m", "tests.integration.transfer_flows", *ends, home.root.name)
    wait_until(lambda: any("submits/served" in line for line in child.lines()), 240)
    return child


def _tasks(globus: Globus, since: int) -> list[str]:
    return [task["status"] for task in globus.transfers()[since:]]


def test_a_killed_flow_finds_its_transfer_again(
    globus: Globus, services: Services, slow: tuple[Place, Place]
) -> None:
    home, away = slow
    before = len(globus.transfers())
    run = services.run_deployment("moves/served")
    wait_until(lambda: away.files() == {"rec/1": b"one"}, 240)
    services.end_children()  # by SIGKILL, with the flow's own process
    assert _tasks(globus, before) == ["ACTIVE"]
    _serve(services, home, away)
    services.retry(run)
    wait_until(lambda: any("found again" in line for line in services.logs(run)), 240)
    assert _tasks(globus, before) == ["ACTIVE"]
    services.cancel(run)
    wait_until(lambda: _tasks(globus, before) == ["FAILED"])
    wait_until(lambda: services.state(run).is_final())
    assert services.state(run).type is StateType.CANCELLED


def test_a_killed_flow_finds_its_copy_on_this_machine_again_though_its_source_is_gone(
    services: Services, slow: tuple[Place, Place], tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "raw").write_bytes(b"raw")
    run = services.run_deployment("dies/served", root=str(tmp_path))
    wait_until(lambda: (tmp_path / "died").exists(), 240)
    services.end_children()
    assert not (tmp_path / "home" / "raw").exists()
    _serve(services, *slow)
    services.retry(run)
    wait_until(lambda: any("found again" in line for line in services.logs(run)), 240)
    wait_until(lambda: services.state(run).is_completed(), 120)
    assert (tmp_path / "away" / "raw").read_bytes() == b"raw"


@pytest.mark.parametrize("flow", ["moves", "submits"], ids=["waiting", "by the hook"])
def test_a_cancel_of_the_flow_run_cancels_the_transfer(
    globus: Globus, services: Services, slow: tuple[Place, Place], flow: str
) -> None:
    _, away = slow
    before = len(globus.transfers())
    run = services.run_deployment(f"{flow}/served")
    wait_until(lambda: away.files() == {"rec/1": b"one"}, 240)
    # The handle is noted between the submission and this.
    wait_until(lambda: any(line.endswith(" submitted") for line in services.logs(run)), 120)
    services.cancel(run)
    wait_until(lambda: _tasks(globus, before) == ["FAILED"], 120)
    assert globus.transfers()[-1]["fatal_error"]["code"] == "CANCELED"
    wait_until(lambda: services.state(run).is_final(), 120)
    assert services.state(run).type is StateType.CANCELLED
    assert away.files() == {"rec/1": b"one"}
