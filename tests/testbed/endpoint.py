"""A real Globus Compute endpoint, run by the facility's user out of an environment of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.testbed.daemons import Daemons, Process, all_pids, gone_within, look, send
from tests.testbed.globus import Globus
from tests.testbed.packages import FACILITY_USER, endpoint_bin
from tests.testbed.state import State

_NAME = "testbed"
_START_SECONDS = 300.0
_HEARTBEAT_SECONDS = 5
_STUCK_SECONDS = 20.0
_MAX_WORKERS = 2
_SERIALIZERS = (
    "globus_compute_sdk.serialize.PureSourceTextInspect",
    "globus_compute_sdk.serialize.JSONData",
)
#: With the value 1 the endpoint accepts pickles, too: to measure what other clients send.
PICKLE_VARIABLE = "PREFECT_PSIK_TESTBED_PICKLE"
#: Another engine than the usual one, for what depends on it.
ENGINE_VARIABLE = "PREFECT_PSIK_TESTBED_ENGINE"
_ENGINES = {
    "ThreadPoolEngine": f"  max_workers: {_MAX_WORKERS}\n",
    "ProcessPoolEngine": f"  max_workers: {_MAX_WORKERS}\n",
    "GlobusComputeEngine": f"""\
  max_workers_per_node: {_MAX_WORKERS}
  address:
    type: address_by_interface
    ifname: lo
  provider:
    type: LocalProvider
    init_blocks: 1
    min_blocks: 1
    max_blocks: 1
""",
}
_CONFIG = f"""\
display_name: {_NAME}
heartbeat_period: {_HEARTBEAT_SECONDS}
"""


class Endpoint:
    """The endpoint, daemon `endpoint`. It forks one user endpoint for each identity and configuration."""

    daemon = "endpoint"
    """Name of the daemon, and of the directory of its files."""

    def __init__(self, state: State, daemons: Daemons, globus: Globus) -> None:
        self._state = state
        self._daemons = daemons
        self._globus = globus
        #: Where its programs are: in its own Python environment.
        self.bin = endpoint_bin()

    @property
    def endpoint_id(self) -> str:
        """Return its UUID, the same for all of a run."""
        return self._state.need(f"{self.daemon}_id", lambda: str(uuid.uuid4()))

    @property
    def log(self) -> Path:
        """Return the log of the endpoint proper; its user endpoints write theirs beside its directory."""
        return self._home() / _NAME / "endpoint.log"

    def start(self, env: Mapping[str, str]) -> None:
        """Start it, if it does not run, and wait until the service sees it online.

        Args:
            env: how to reach the service and Slurm; the tasks see it too.

        Raises:
            TestbedError: it did not come online; names its log.
        """
        self._configure()
        if self._daemons.find(self.daemon) is None:
            self._clear_up()
            self._globus.forget_online(self.endpoint_id)
            self._daemons.start(
                self.daemon,
                [
                    str(self.bin / "globus-compute-endpoint"),
                    "start",
                    _NAME,
                    "--endpoint-uuid",
                    self.endpoint_id,
                ],
                env={**self._environment(), **env},
                user=FACILITY_USER,
            )
        self._daemons.wait_ready(self.daemon, self.is_online, seconds=_START_SECONDS)

    def stop(self) -> None:
        """Stop it and its user endpoints, as a facility's maintenance would. Slurm jobs go on."""
        self._daemons.stop(self.daemon, seconds=20)
        self._clear_up()

    def kill_user_endpoint(self) -> int:
        """Kill all user endpoints at once and without warning; return how many there were.

        As at a real site, their pid files keep new ones from starting until they are older than three heartbeats
        (here 15 s; a user endpoint touches its own every 15 s): tasks that are to start one before then fail.
        """
        victims = self._user_endpoints()
        for process in victims:
            send(process, signal.SIGKILL)
        return len(victims)

    def renew_pid_files(self, seconds: float) -> None:
        """Date the pid files ahead, so that they bar the way for so long, however slow this machine is."""
        until = time.time() + seconds
        for pid_file in self._pid_files():
            os.utime(pid_file, (until, until))

    def end_stuck_forks(self) -> int:
        """Kill children of the endpoint that hang before they become user endpoints; return how many there were.

        Release 4.19 forks while its threads may hold the lock of a log: such a child waits for ever, and the
        endpoint, online all the time, starts no other.
        """
        endpoint = self._daemons.find(self.daemon)
        stuck = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(endpoint.pid) if endpoint else None
            for child in parent.children() if parent else ():
                is_fork = parent is not None and child.cmdline() == parent.cmdline()
                if is_fork and time.time() - child.create_time() > _STUCK_SECONDS:
                    child.kill()
                    stuck += 1
        return stuck

    def is_online(self) -> bool:
        """Say whether the service hears its heartbeat."""
        return self._globus.is_online(self.endpoint_id)

    def _home(self) -> Path:
        return self._state.root / self.daemon

    def _configure(self) -> None:
        self._state.directory(self.daemon, owner=FACILITY_USER)
        self._state.directory(self.daemon, _NAME, mode=0o700, owner=FACILITY_USER)
        for name, text in (("config.yaml", self._config()), ("user_config_template.yaml.j2", self._template())):
            self._state.file(self.daemon, _NAME, name, text=text, owner=FACILITY_USER)

    def _config(self) -> str:
        """Return config.yaml: what concerns the endpoint itself, not its user endpoints."""
        return _CONFIG

    def _template(self) -> str:
        """Return the template of its user endpoints' configuration; it has no variables."""
        names = "\n".join(f"    - {name}" for name in _SERIALIZERS)
        allowed = "" if os.environ.get(PICKLE_VARIABLE) == "1" else f"  allowed_serializers:\n{names}\n"
        engine = os.environ.get(ENGINE_VARIABLE, "ThreadPoolEngine")
        return f"""\
heartbeat_period: {_HEARTBEAT_SECONDS}
idle_heartbeats_soft: 0
engine:
  type: {engine}
{_ENGINES[engine]}{allowed}"""

    def _environment(self) -> dict[str, str]:
        """Return the endpoint's own environment; user endpoints look for their program on PATH."""
        home = os.path.expanduser(f"~{FACILITY_USER}")
        return {
            "HOME": home,
            "USER": FACILITY_USER,
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
            "GLOBUS_COMPUTE_USER_DIR": str(self._home()),
        }

    def _user_endpoints(self) -> list[Process]:
        return self._titled(f"uep.{self.endpoint_id}.")

    def _titled(self, text: str) -> list[Process]:
        """Find processes by their title, which names this endpoint and overwrites their environment."""
        program, title = (self.bin / "python").resolve(), text.encode()
        found = []
        for pid in all_pids():
            try:
                is_ours = Path(f"/proc/{pid}/exe").resolve(strict=True) == program
                is_ours = is_ours and title in Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            process = look(pid) if is_ours else None
            if process is not None:
                found.append(process)
        return found

    def _clear_up(self) -> None:
        """Remove what a killed endpoint leaves: its pid file, which bars the way for a while, and orphans.

        User endpoints whose parent is gone end themselves, but later, and forks that hang (above) never.
        """
        for signum in (signal.SIGTERM, signal.SIGKILL):
            left = self._titled(self.endpoint_id)
            for process in left:
                send(process, signum)
            if gone_within(left, 5.0):
                break
        for pid_file in self._pid_files():
            pid_file.unlink(missing_ok=True)

    def _pid_files(self) -> list[Path]:
        """Find the pid files of the endpoint and of its user endpoints."""
        return list(self._home().glob("*/daemon.pid"))
