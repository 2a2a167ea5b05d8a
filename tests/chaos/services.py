"""A Prefect server and a worker as processes of their own, and the flow processes that the worker starts."""

from __future__ import annotations

import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.chaos.flows import PLACE_VARIABLE
from tests.chaos.reconciler import DONE
from tests.chaos.truth import Run, read_runs
from tests.testbed.daemons import Daemons, Process, environment_of, send
from tests.testbed.state import State, port_is_free

POOL = "chaos"
SERVER, WORKER, RECONCILER = "prefect-server", "prefect-worker", "reconciler"
REPOSITORY = Path(__file__).resolve().parents[2]
_START_SECONDS = 180.0
_FLOW_RUN = "PREFECT__FLOW_RUN_ID"


class Services:
    """A Prefect of this run's own, below one directory; all that it starts bears that directory's mark."""

    def __init__(self, root: Path, client: Mapping[str, str]) -> None:
        self._state = State(root)
        self._state.create()
        self._daemons = Daemons(self._state)
        self._client = dict(client)
        self.place = self._state.directory("place", mode=0o1777)
        self.clock = self.place / "clock"
        self.clock.write_bytes(bytes(8))

    @property
    def url(self) -> str:
        """The API of the server."""
        return f"http://127.0.0.1:{self._state.port('prefect')}/api"

    @property
    def environment(self) -> dict[str, str]:
        """What the worker, its flows and the command line have in their environment."""
        return {
            **self._client,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(self._state.root),
            "PYTHONPATH": f"{REPOSITORY / 'tests/chaos/clock'}:{REPOSITORY}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PREFECT_API_URL": self.url,
            "PREFECT_HOME": str(self._state.root / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            PLACE_VARIABLE: str(self.place),
        }

    def start(self) -> None:
        """Start the server and wait for it."""
        port = str(self._state.port("prefect"))
        assert port_is_free(int(port)), f"port {port} is taken"
        self._start(SERVER, {}, "server", "start", "--host", "127.0.0.1", "--port", port)
        self._daemons.wait_ready(SERVER, self._answers, seconds=_START_SECONDS)

    def start_worker(self) -> None:
        """Start the worker; it makes its pool if need be."""
        # The server's clock is right.
        jumping = {"PREFECT_PSIK_CHAOS_CLOCK": str(self.clock)}
        self._start(WORKER, jumping, "worker", "start", "--pool", POOL, "--type", "process", "--name", "chaos")

    def start_reconciler(self) -> None:
        """Reconcile from now on."""
        command = [sys.executable, "-m", "tests.chaos.reconciler"]
        self._daemons.start(RECONCILER, command, env=self.environment)

    def reconciled(self) -> int:
        """How many jobs it canceled."""
        done = self.place / DONE
        return len(done.read_text().splitlines()) if done.exists() else 0

    def kill_worker(self) -> None:
        """Kill the worker without warning; flow processes go on."""
        self._daemons.signal(WORKER, signal.SIGKILL)

    def flow_processes(self) -> dict[str, list[Process]]:
        """Live processes of flow runs, by the id of the flow run."""
        found: dict[str, list[Process]] = {}
        for process in self._daemons.members():
            if flow_run := environment_of(process.pid).get(_FLOW_RUN):
                found.setdefault(flow_run, []).append(process)
        return found

    def runs(self) -> dict[str, list[Run]]:
        """What jobs wrote so far."""
        lines = self.place / "lines"
        return read_runs(lines.read_text().splitlines()) if lines.exists() else {}

    def stop(self) -> None:
        """End all of it."""
        self._daemons.stop(RECONCILER, seconds=1)
        self._daemons.stop(WORKER, seconds=1)
        self._daemons.stop(SERVER)
        self._daemons.sweep()

    def _start(self, name: str, extra: Mapping[str, str], *arguments: str) -> None:
        command = [sys.executable, "-m", "prefect", *arguments]
        self._daemons.start(name, command, env={**self.environment, **extra})

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def kill(processes: list[Process]) -> None:
    """Kill processes without warning, and wait until they are gone."""
    for process in processes:
        send(process, signal.SIGKILL)
