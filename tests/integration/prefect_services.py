"""A Prefect server, workers, served flows and flow processes of their own, to be killed when a test likes."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import UUID

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Cancelling, Crashed
from prefect.workers.process import ProcessWorker

from prefect_psik import BackendAttributes, PsikBackend
from tests.integration.local import wait_until
from tests.prefect_url import API_URL, PORT
from tests.testbed.facility import Facility
from tests.testbed.state import free_port

REPOSITORY = Path(__file__).parents[2]
POOL = "beamline"
#: Services of a server that no test needs, and that look into its database all the time.
_UNNEEDED = ("TRIGGERS", "FOREMAN", "LATE_RUNS", "REPOSSESSOR", "CLEANUP_RECONCILER")
#: A busy machine takes this long to start what is here.
_START_SECONDS = 300.0


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill those that still live."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _end_events_workers() -> None:
    """Prefect sends the events of a process for ever to the server that it had at the first of them."""
    with ThreadPoolExecutor() as pool:  # where no event loop runs
        pool.submit(EventsWorker.drain_all, timeout=60).result()


class Child:
    """A process of its own session; its log is a file."""

    def __init__(self, log: Path, environment: dict[str, str], *command: str) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self.process.send_signal(signum)

    def lines(self) -> list[str]:
        """What it wrote to its log."""
        return self.log.read_text(errors="replace").splitlines()

    def descendants(self) -> list[psutil.Process]:
        """What it started, and what that started."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """Kill it and all that it started, without warning."""
        victims = self.descendants()
        self.process.kill()
        kill_all(victims)
        self.process.wait(30)

    def ends(self, seconds: float) -> bool:
        """Wait for its end; say whether it came in time."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


class PrefectServer:
    """A Prefect server on loopback with a database of its own."""

    def __init__(self, directory: Path, port: int | None = None) -> None:
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        self.database = directory / "prefect" / "prefect.db"
        self.environment = {
            "PREFECT_HOME": str(self.database.parent),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        self._command = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        self._log = directory / "server.log"
        self._child: Child | None = None

    def start(self, database: Path | None = None) -> None:
        """Start it and wait until it answers: as users do, or with a copy of this database and fewer services."""
        self.database.parent.mkdir()
        environment = {**os.environ, **self.environment}
        if database is not None:
            shutil.copyfile(database, self.database)
            environment |= {f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false" for service in _UNNEEDED}
        child = self._child = Child(self._log, environment, sys.executable, *self._command)
        wait_until(lambda: self._answers() or child.process.poll() is not None, _START_SECONDS)
        assert self._answers(), "\n".join(child.lines()[-20:])

    def stop(self) -> None:
        """Kill it."""
        if self._child is not None:
            self._child.kill()

    def _answers(self) -> bool:
        try:
            # A facility beside it may be a proxy of this process.
            return httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False


class Services:
    """A Prefect server, and all processes that tests start beside it."""

    def __init__(self, server: PrefectServer, directory: Path, environment: Mapping[str, str]) -> None:
        self.url = server.url
        self._directory = directory
        self._client: SyncPrefectClient | None = None
        self._stack = ExitStack()
        self._children: list[Child] = []
        self._started = 0
        kept = {name: value for name, value in environment.items() if not name.startswith("PREFECT_API")}
        # Flow runs begin, and cancels arrive, sooner than a beamline would need.
        sooner = {"PREFECT_RUNNER_POLL_FREQUENCY": "2", "PREFECT_WORKER_QUERY_SECONDS": "2"}
        self.environment = {**kept, **server.environment, **sooner}

    def stop(self) -> None:
        """Kill all that was started here."""
        self.end_children()
        self._stack.close()

    def end_children(self) -> None:
        """Kill all that was started beside the server."""
        while self._children:
            self._children.pop().kill()

    def python(self, *arguments: str, **environment: str) -> Child:
        """Start a Python process beside the server."""
        self._started += 1
        log = self._directory / f"{self._started}.log"
        child = Child(log, {**self.environment, **environment}, sys.executable, *arguments)
        self._children.append(child)
        return child

    def prefect(self, *arguments: str) -> str:
        """Run a command of Prefect's, and return what it printed."""
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=_START_SECONDS
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def make_pool(self) -> None:
        """Make the work pool `POOL` for process workers."""
        template = ProcessWorker.get_default_base_job_template()
        with self.client() as client:
            client.create_work_pool(
                WorkPoolCreate(name=POOL, type="process", base_job_template=template), overwrite=True
            )

    def worker(self) -> Child:
        """Start a process worker on the work pool `POOL`."""
        return self.python("-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process")

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        """A client of this server, whatever server this process has; made once, for that is a lot of work."""
        if self._client is None:
            with temporary_settings({PREFECT_API_URL: self.url}):
                self._client = self._stack.enter_context(get_client(sync_client=True))
        yield self._client

    @contextmanager
    def api(self) -> Iterator[None]:
        """Let this process use this server, too, while the block runs."""
        if self.url == API_URL:
            yield
            return
        _end_events_workers()
        try:
            with temporary_settings({PREFECT_API_URL: self.url}):
                yield
        finally:
            _end_events_workers()

    def deployed(self, deployment: str) -> bool:
        """Whether there is a deployment of this name."""
        with self.client() as client:
            try:
                client.read_deployment_by_name(deployment)
            except ObjectNotFound:
                return False
        return True

    def run_deployment(self, deployment: str, **parameters: object) -> UUID:
        """Start a flow run of a deployment, as the UI does."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def newest(self, flow: str) -> UUID:
        """The flow run of a flow that began last."""
        wanted = FlowFilter(name=FlowFilterName(any_=[flow]))
        with self.client() as client:
            [run] = client.read_flow_runs(flow_filter=wanted, sort=FlowRunSort.START_TIME_DESC, limit=1)
        return run.id

    def state(self, run: UUID) -> State:
        """The state of a flow run."""
        with self.client() as client:
            state = client.read_flow_run(run).state
        assert state is not None
        return state

    def logs(self, run: UUID) -> list[str]:
        """The log of a flow run, as the UI shows it."""
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
        with self.client() as client:
            return [entry.message for entry in client.read_logs(wanted)]

    def cancel(self, run: UUID) -> None:
        """Cancel a flow run, as the UI does."""
        self._set(run, Cancelling())

    def retry(self, run: UUID) -> None:
        """Retry a flow run, as the UI does; one that a crash left in Running is first set to Crashed, by hand."""
        if not self.state(run).is_final():
            self._set(run, Crashed())
        self._set(run, AwaitingRetry())

    def resume(self, run: UUID) -> None:
        """Resume a suspended flow run, as the UI does."""
        with self.client() as client:
            client.resume_flow_run(run)

    def _set(self, run: UUID, state: State) -> None:
        with self.client() as client:
            client.set_flow_run_state(run, state, force=True)


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a new server, made once for all processes of these tests: its migrations take 10 s."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    place /= "new-prefect"
    place.mkdir(exist_ok=True)
    database = place / "prefect.db"
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            making = place / "making"
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            environment = {**os.environ, "PREFECT_HOME": str(making)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_START_SECONDS)
            assert done.returncode == 0, done.stdout + done.stderr
            (making / "prefect.db").rename(database)
    return database


@contextmanager
def running_server(
    directory: Path, database: Path | None = None, port: int | None = None
) -> Iterator[PrefectServer]:
    """A server, started with a copy of this database if there is one."""
    server = PrefectServer(directory, port)
    try:
        server.start(database)
        yield server
    finally:
        server.stop()


@contextmanager
def services_beside(server: PrefectServer, directory: Path, environment: Mapping[str, str]) -> Iterator[Services]:
    """What runs beside a server, in this environment."""
    services = Services(server, directory, environment)
    try:
        services.make_pool()
        yield services
    finally:
        services.stop()


def _without(*prefixes: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, new_database: Path) -> Iterator[PrefectServer]:
    """The one Prefect server of this process of tests, which is its client from its start."""
    with running_server(tmp_path_factory.mktemp("prefect"), new_database, PORT) as server:
        assert server.url == API_URL
        yield server
        APILogWorker.instance().drain()
        _end_events_workers()


@pytest.fixture(scope="session")
def prefect_server(server: PrefectServer) -> None:
    """For tests that need a running server, and nothing else of it."""


@pytest.fixture(scope="session")
def services(
    server: PrefectServer, facility: Facility, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    """The same server, and processes beside it that are clients of the facility."""
    environment = {**_without("GLOBUS_", "SLURM_"), **facility.env}
    with services_beside(server, tmp_path_factory.mktemp("services"), environment) as services:
        yield services


@pytest.fixture(scope="module")
def own_services(
    facility: Facility, tmp_path_factory: pytest.TempPathFactory, new_database: Path
) -> Iterator[Services]:
    """The same with a server of their own, for tests whose deployments and schedules would be in others' way."""
    directory = tmp_path_factory.mktemp("services")
    environment = {**_without("GLOBUS_", "SLURM_"), **facility.env}
    with (
        running_server(directory, new_database) as server,
        services_beside(server, directory, environment) as services,
    ):
        yield services


@pytest.fixture(scope="module")
def block(facility: Facility, services: Services) -> str:
    """The facility as a block of that server; the login is the worker's own."""
    with services.api():
        PsikBackend(
            endpoint_id=UUID(facility.endpoint_id),
            prefix=str(facility.prefix),
            attributes=BackendAttributes(type="slurm", queue_name="debug", project_name="proj1"),
            poll_interval_seconds=3,
        ).save("facility", overwrite=True)
    return "facility"


@pytest.fixture
def alone(facility: Facility, services: Services) -> Iterator[None]:
    """End what a test leaves: processes beside the server, and jobs."""
    yield
    services.end_children()
    facility.slurm.ask("scancel", "-u", facility.user)
