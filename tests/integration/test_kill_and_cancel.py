"""A real server, worker and Slurm: what is killed is found again, what is cancelled is gone, in time."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType

from prefect_psik import GlobusCollection
from tests.integration.local import wait_until
from tests.integration.prefect_services import POOL, Child, Services, kill_all
from tests.integration.slurm_view import accounted, lines_of, live, wait_running
from tests.testbed.facility import Facility

pytestmark = pytest.mark.usefixtures("alone")

#: A worker that was asked to stop still has its flow runs after this time.
STOP_SECONDS = 20.0


@pytest.fixture
def tag() -> str:
    """Names that no job of the facility ever had."""
    return f"{time.time_ns():x}"


def test_tomography_on_a_worker_that_is_killed_is_found_again(
    facility: Facility, services: Services, block: str, tag: str, tmp_path: Path
) -> None:
    data = facility.data / f"tomography-{tag}"
    (data / "rec").mkdir(parents=True)
    (data / "rec").chmod(0o777)
    with services.api():
        GlobusCollection(base_path=str(data)).save("tomography-scratch", overwrite=True)
    parameters = {
        "scan": "killed",
        "facility": block,
        "scratch": "tomography-scratch",
        "phantom": {"size": 48, "slices": 8, "angles": 60},
        "resources": {"python": str(facility.science_python)},
        "local": str(tmp_path),
    }
    before = accounted(facility, "reconstruct"), accounted(facility, "report")
    services.prefect("deploy", "flows/tomography.py:tomography", "--name", "beamline", "--pool", POOL)
    worker = services.worker()
    run = services.run_deployment("tomography/beamline", **parameters)
    [native_id] = wait_running(facility, "reconstruct")
    facility.scontrol("suspend", native_id)  # it shall not end before what is killed now is back
    worker.kill()
    assert live(facility, "reconstruct") == {native_id: "SUSPENDED"}

    services.worker()
    services.retry(run)
    wait_until(lambda: any("found again" in line for line in services.logs(run)), 180)
    facility.scontrol("resume", native_id)
    wait_until(lambda: services.state(run).is_final(), 300)
    assert services.state(run).is_completed(), services.state(run).message
    assert accounted(facility, "reconstruct") == {**before[0], native_id: "COMPLETED"}
    assert len(accounted(facility, "report")) == len(before[1]) + 1
    assert (tmp_path / "slice_z.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.timeout(600)
def test_a_cancel_of_many_jobs_frees_all_within_30_seconds(
    facility: Facility, services: Services, block: str
) -> None:
    count = 100
    services.python("tests/integration/places.py", "serve")
    wait_until(lambda: services.deployed("crowd/served"))
    seconds: list[tuple[float, float]] = []  # until the jobs were gone, and until Prefect had it
    for _ in range(3):  # a busy machine may be late once, what is slow is late each time
        run = services.run_deployment("crowd/served", backend=block, count=count)
        wait_until(lambda: len(live(facility, "crowd")) == count, 300)
        services.cancel(run)
        begin = time.monotonic()
        wait_until(lambda: not live(facility, "crowd"))
        freed = time.monotonic() - begin
        wait_until(lambda run=run: services.state(run).is_final())  # type: ignore[misc]
        seconds.append((freed, time.monotonic() - begin))
        assert services.state(run).type is StateType.CANCELLED
        if seconds[-1][1] < 30:
            return
    raise AssertionError(f"{count} jobs were gone, and the flow run Cancelled, after: {seconds}")


@pytest.mark.parametrize(
    ("by", "signum"), [("served", signal.SIGTERM), ("served", signal.SIGINT), ("worked", signal.SIGTERM)]
)
def test_a_runner_that_is_stopped_leaves_its_jobs_to_the_retry(
    facility: Facility, services: Services, block: str, tag: str, by: str, signum: signal.Signals
) -> None:
    def runner() -> Child:
        return services.worker() if by == "worked" else services.python("tests/integration/places.py", "serve")

    name = f"{tag}-submitted"
    if by == "worked":
        assert services.python("tests/integration/places.py", "deploy", POOL).ends(180)
    first = runner()
    wait_until(lambda: services.deployed(f"submitted/{by}"), 180)
    run = services.run_deployment(f"submitted/{by}", backend=block, tag=tag)
    running = wait_running(facility, name)
    flows = first.descendants()
    first.signal(signum)
    if by == "worked":
        time.sleep(STOP_SECONDS)  # a worker waits for its flow runs: systemd gives up after a while
        assert services.state(run).is_running()
        assert live(facility, name) == running
        first.process.kill()
    assert first.ends(90)
    kill_all(flows)  # Prefect leaves them to whatever ended serve(), such as systemd
    assert live(facility, name) == running

    runner()
    services.retry(run)
    wait_until(lambda: any("found again" in line for line in services.logs(run)), 180)
    assert live(facility, name) == running
    services.cancel(run)
    wait_until(lambda: services.state(run).is_final(), 120)
    assert services.state(run).type is StateType.CANCELLED
    assert list(accounted(facility, name)) == list(running)
    assert lines_of(facility, name) == list(running)
