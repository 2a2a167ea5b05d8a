"""The facility as tests see it: its parts, how to reach it, and helpers to look at what happened there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.testbed import packages
from tests.testbed.broker import Broker
from tests.testbed.daemons import Daemons
from tests.testbed.endpoint import Endpoint
from tests.testbed.globus import Globus
from tests.testbed.slurm import NODE_DAEMONS, Slurm, as_user
from tests.testbed.slurm_conf import ACCOUNT, FOREIGN_ACCOUNT, PARTITIONS
from tests.testbed.state import State, TestbedError, default_root

_PARTS = (
    "munged",
    "mariadbd",
    "slurmdbd",
    "slurmctld",
    *NODE_DAEMONS,
    "epmd",
    "rabbitmq",
    "emulator",
    "endpoint",
)
_COMMAND_SECONDS = 300.0


@dataclass(frozen=True)
class Facility:
    """A facility on this machine, running or not; `state.root` holds everything it writes."""

    state: State
    daemons: Daemons
    slurm: Slurm
    broker: Broker
    globus: Globus
    endpoint: Endpoint

    user = packages.FACILITY_USER
    """The user that the endpoint and its jobs run as."""
    account = ACCOUNT
    foreign_account = FOREIGN_ACCOUNT
    """An account that exists and refuses everyone."""
    partitions = tuple(PARTITIONS)

    @classmethod
    def at(cls, root: Path | None = None) -> Facility:
        """Return the facility of a state directory (default: `$PREFECT_PSIK_TESTBED`), up or down."""
        state = State(root or default_root())
        daemons = Daemons(state)
        broker = Broker(state, daemons)
        globus = Globus(state, daemons, broker)
        return cls(state, daemons, Slurm(state, daemons), broker, globus, Endpoint(state, daemons, globus))

    @classmethod
    def from_state(cls, root: Path | None = None) -> Facility:
        """Return the running facility of a state directory.

        Raises:
            TestbedError: it is not, or not fully, up; names what is missing.
        """
        facility = cls.at(root)
        if missing := [name for name, alive in facility.status().items() if not alive]:
            lacking = ", ".join(missing)
            raise TestbedError(f"{facility.state.root} lacks {lacking}. Run python -m tests.testbed up.")
        return facility

    @property
    def endpoint_id(self) -> str:
        """Return the UUID of the Compute endpoint."""
        return self.endpoint.endpoint_id

    @property
    def client_id(self) -> str:
        """Return the id of the tests' confidential client."""
        return self.globus.client_id

    @property
    def client_secret(self) -> str:
        """Return its secret."""
        return self.globus.client_secret

    @property
    def prefix(self) -> Path:
        """Return a directory for psik's jobs; owned by the facility's user, readable by all."""
        return self.state.root / "prefix"

    @property
    def science_python(self) -> Path:
        """Return the interpreter that has the libraries of the scientific jobs, at the facility."""
        return packages.science_bin() / "python"

    @property
    def data(self) -> Path:
        """Return a directory that everyone may write to: scratch of the facility, reachable by the tests."""
        return self.state.root / "data"

    @property
    def env(self) -> dict[str, str]:
        """Return a client's environment: it knows Globus, and nothing of Slurm."""
        return {**self.globus.env(), "GLOBUS_COMPUTE_USER_DIR": str(self.state.root / "client")}

    def status(self) -> dict[str, bool]:
        """Return which daemons live."""
        alive = self.daemons.alive()
        return {name: name in alive for name in _PARTS}

    def is_up(self) -> bool:
        """Say whether all daemons live."""
        return all(self.status().values())

    def start(self) -> None:
        """Start what does not run: all of it on a clean state, or the parts that have died.

        Raises:
            TestbedError: a part did not come up. What this call started is stopped again.
        """
        self.state.create()
        with self.state.lock():
            before = set(self.daemons.alive())
            if not before:
                self.daemons.sweep()
                self.state.wipe()
            try:
                self._start_parts()
            except BaseException:
                if before:
                    for name in set(self.daemons.alive()) - before:
                        self.daemons.stop(name)
                else:
                    self._stop_parts()
                raise

    def stop(self) -> None:
        """Stop everything, jobs included, and leave no process behind. Logs stay until the next start."""
        if not self.state.exists():
            return
        with self.state.lock():
            self._stop_parts()

    def as_user(self, *command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command as the facility's user, with Slurm at hand; look at the result yourself."""
        base = {**self.daemons.environment(), **self.slurm.env, "HOME": os.path.expanduser(f"~{self.user}")}
        return subprocess.run(
            as_user(command, self.user),
            env={**base, **(env or {})},
            cwd=self.data,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )

    def sacct(self, *args: str) -> str:
        """Return what `sacct ARGS` prints. Slurm's accounting may be some seconds behind."""
        return self.slurm.ask("sacct", *args)

    def squeue(self, *args: str) -> str:
        """Return what `squeue ARGS` prints."""
        return self.slurm.ask("squeue", *args)

    def scontrol(self, *args: str) -> str:
        """Return what `scontrol ARGS` prints."""
        return self.slurm.ask("scontrol", *args)

    def meter(self) -> dict[str, Any]:
        """Return the requests of the tests' client since the last reset: counts, bytes, most in 10 s."""
        nothing = {
            "requests": 0,
            "most_in_10_s": 0,
            "bytes_in": 0,
            "bytes_out": 0,
            "statuses": {},
            "routes": {},
        }
        return self.globus.meter().get(self.client_id, nothing)

    @contextmanager
    def client(self) -> Iterator[None]:
        """Make this process a client of the facility while the block runs: set its environment."""
        saved = dict(os.environ)
        for name in [name for name in os.environ if name.startswith(("GLOBUS_", "SLURM_"))]:
            del os.environ[name]
        os.environ.update(self.env)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(saved)

    def _start_parts(self) -> None:
        self.state.directory("prefix", owner=self.user)
        self.state.directory("data", mode=0o1777)
        self.state.directory("client", mode=0o700)
        with ThreadPoolExecutor(2) as pool:
            steps = [pool.submit(self.slurm.start), pool.submit(self._start_globus)]
        for step in steps:
            step.result()
        self.endpoint.start({**self.globus.env("owner"), **self.slurm.env})

    def _start_globus(self) -> None:
        self.broker.start()
        self.globus.start()

    def _stop_parts(self) -> None:
        problems: list[TestbedError] = []
        for stop in self._stops():
            try:
                stop()
            except TestbedError as err:
                problems.append(err)
        self.daemons.sweep()
        self.daemons.forget()
        if problems:
            raise problems[0]

    def _stops(self) -> Sequence[Any]:
        return (self.endpoint.stop, self.slurm.stop, self.globus.stop, self.broker.stop)
