"""Starts servers in the background, remembers which processes they are, and ends those and no others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.testbed.state import State, TestbedError, wait_until

MEMBER = "PREFECT_PSIK_TESTBEDMEMBER"
"""In the environment of every daemon and, inherited, of its children: the state directory it belongs to."""

_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Process:
    """One process, told apart from a later one with the same number by its start time."""

    pid: int
    start: int
    """Clock ticks from boot to the start of the process."""
    comm: str
    """Its short name when it was recorded; for people, since some daemons rename themselves."""


def look(pid: int) -> Process | None:
    """Return the live process of this number; a zombie counts as gone."""
    child = _CHILDREN.get(pid)
    if child is not None and child.poll() is not None:
        _CHILDREN.pop(pid, None)
        return None
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    comm, _, rest = text.partition(" (")[2].rpartition(") ")
    fields = rest.split()
    if fields[0] in "ZX":
        return None
    return Process(pid, int(fields[19]), comm)


def is_same(process: Process) -> bool:
    """Say whether the recorded process still lives."""
    now = look(process.pid)
    return now is not None and now.start == process.start


def send(process: Process, signum: signal.Signals) -> None:
    """Signal the recorded process, if it is still that one."""
    if is_same(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signum)


def all_pids() -> Iterator[int]:
    """Yield the numbers of all processes of this machine."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment a process was started with; empty where it cannot be read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition("=") for item in raw.decode(errors="replace").split("\0") if "=" in item)
    return {name: value for name, _, value in pairs}


def children_of(pids: set[int]) -> set[int]:
    """Return these processes and all that descend from them."""
    parents: dict[int, int] = {}
    for pid in all_pids():
        try:
            rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
        except OSError:
            continue
        parents[pid] = int(rest.split()[1])
    family = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


class Daemons:
    """The daemons of one testbed, recorded in `pids.json`: name, pid, start time, short name."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._file = state.root / "pids.json"
        self._mutex = threading.Lock()

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return a daemon's environment: nothing of ours but the path, so that runs are alike."""
        return {
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            "HOME": "/",
            MEMBER: str(self._state.root),
            **(extra or {}),
        }

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        own_log: bool = False,
    ) -> Process:
        """Start a daemon in a session of its own and record it.

        Its output goes to its log, or beside it (`NAME.out`) when the daemon writes that log itself.
        """
        groups: dict[str, object] = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        log_file = self._state.log(name)
        with (log_file.with_suffix(".out") if own_log else log_file).open("ab") as log:
            child: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
                list(command),
                env=self.environment(env),
                cwd=self._state.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o022,
                **groups,
            )
        _CHILDREN[child.pid] = child
        return self.record(name, child.pid)

    def record(self, name: str, pid: int) -> Process:
        """Remember this process as the daemon of that name."""
        process = look(pid)
        if process is None:
            raise TestbedError(f"{name} ended at once. Read {self._state.log(name)}.")
        with self._mutex:
            self._write({**self._read(), name: process})
        return process

    def find(self, name: str) -> Process | None:
        """Return the daemon of this name if it lives."""
        process = self._read().get(name)
        return process if process is not None and is_same(process) else None

    def alive(self) -> dict[str, Process]:
        """Return all recorded daemons that live."""
        return {name: process for name, process in self._read().items() if is_same(process)}

    def wait_ready(self, name: str, ready: Callable[[], bool], *, seconds: float) -> None:
        """Wait until `ready()` is true; give up at once when the daemon has died.

        Raises:
            TestbedError: it died or was not ready in time; names its log.
        """
        log = self._state.log(name)

        def check() -> bool:
            if self.find(name) is None:
                raise TestbedError(f"{name} died while starting. Read {log}.")
            return ready()

        wait_until(check, seconds=seconds, what=f"{name} ready", log=log)

    def signal(self, name: str, signum: signal.Signals) -> None:
        """Send a signal to a daemon.

        Raises:
            TestbedError: it does not run.
        """
        process = self.find(name)
        if process is None:
            raise TestbedError(f"{name} is not running.")
        send(process, signum)

    def ask_to_end(self, name: str) -> None:
        """Ask a daemon to end, also one that a test has suspended, and do not wait."""
        process = self.find(name)
        if process is not None:
            send(process, signal.SIGTERM)
            send(process, signal.SIGCONT)

    def stop(self, name: str, *, seconds: float = 10.0) -> None:
        """End a daemon: ask, wait, then kill. Nothing happens if it is not running."""
        process = self.find(name)
        if process is None:
            return
        self.ask_to_end(name)
        if not gone_within([process], seconds):
            send(process, signal.SIGKILL)
            if not gone_within([process], 10.0):
                raise TestbedError(f"{name} (pid {process.pid}) does not die.")

    def members(self) -> list[Process]:
        """Return every live process of this testbed: what bears its mark, and all descendants of those."""
        marked = {pid for pid in all_pids() if self._bears_mark(pid)}
        marked |= {process.pid for process in self.alive().values()}
        found = (look(pid) for pid in children_of(marked) if pid != os.getpid())
        return [process for process in found if process is not None]

    def _bears_mark(self, pid: int) -> bool:
        env = environment_of(pid)
        if env.get(MEMBER) == str(self._state.root):
            return True
        # A job's shepherd outlives its slurmd and keeps nothing of the environment but SLURM_CONF.
        process = look(pid)
        ours = env.get("SLURM_CONF", "").startswith(f"{self._state.root}/")
        return ours and process is not None and process.comm.startswith("slurmstepd")

    def sweep(self) -> None:
        """Kill whatever of this testbed is left after its daemons were stopped: jobs, shepherds, helpers."""
        for _ in range(5):
            left = self.members()
            if not left:
                return
            for process in left:
                send(process, signal.SIGKILL)
            gone_within(left, 5.0)
        names = ", ".join(f"{process.comm} ({process.pid})" for process in self.members())
        if names:
            raise TestbedError(f"These processes do not die: {names}.")

    def forget(self) -> None:
        """Drop the record of daemons; only when none lives."""
        self._file.unlink(missing_ok=True)

    def _read(self) -> dict[str, Process]:
        try:
            loaded = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {}
        return {name: Process(**entry) for name, entry in loaded.items()}

    def _write(self, processes: Mapping[str, Process]) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({name: asdict(process) for name, process in processes.items()}, indent=1))
        fresh.replace(self._file)


def gone_within(processes: Sequence[Process], seconds: float) -> bool:
    """Wait until none of these processes lives; say whether that came true in time."""
    deadline = time.monotonic() + seconds
    while any(is_same(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
