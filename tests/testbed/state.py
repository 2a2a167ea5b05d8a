"""Where a testbed keeps its files, ports and secrets: one directory, and one JSON file of settings in it."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

STATE_VARIABLE = "PREFECT_PSIK_TESTBED"
_FIRST_LOOK_SECONDS = 0.05
_SLOWEST_LOOK_SECONDS = 0.5
_LOCK_WAIT_SECONDS = 600.0


class TestbedError(Exception):
    """Something of the testbed did not work; the message says what, and which log to read."""

    __test__ = False


def default_root() -> Path:
    """Return the state directory: `$PREFECT_PSIK_TESTBED`, or one in the temporary directory of this user."""
    chosen = os.environ.get(STATE_VARIABLE)
    if chosen:
        return Path(chosen).absolute()
    return Path(tempfile.gettempdir()) / f"prefect-psik-testbed-{os.getuid()}"


def wait_until(check: Callable[[], bool], *, seconds: float, what: str, log: Path | None = None) -> None:
    """Call `check` until it is true.

    Raises:
        TestbedError: it was not true within `seconds`; names `what` was awaited and the log to read.
    """
    deadline = time.monotonic() + seconds
    pause = _FIRST_LOOK_SECONDS
    while not check():
        if time.monotonic() > deadline:
            hint = f" Read {log}." if log else ""
            raise TestbedError(f"{what}: not within {seconds:g} s.{hint}")
        time.sleep(pause)
        pause = min(pause * 1.5, _SLOWEST_LOOK_SECONDS)


def port_is_free(port: int) -> bool:
    """Say whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Choose a port for a server; not of those that the system gives to clients, meanwhile perhaps this one."""
    while not port_is_free(port := random.randrange(15_000, 32_000)):
        pass
    return port


class State:
    """One testbed's directory. Everything that a testbed writes at run time is below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._settings_file = root / "settings.json"
        self._mutex = threading.RLock()

    def create(self) -> None:
        """Make the directory, readable by all (daemons run as several users), and refuse a foreign one."""
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self.root.stat().st_uid != os.getuid():
            raise TestbedError(f"{self.root} belongs to another user. Set {STATE_VARIABLE} to another directory.")
        if any(self.root.iterdir()) and not self._settings_file.exists():
            raise TestbedError(f"{self.root} is not a testbed's directory and not empty. Choose another.")
        self.root.chmod(0o755)
        if not self._settings_file.exists():
            self._write({})

    def exists(self) -> bool:
        """Say whether there is a testbed's directory, of a run or of an earlier one."""
        return self._settings_file.exists()

    def wipe(self) -> None:
        """Forget an earlier run: ports, secrets, databases, jobs, logs. Only for a testbed that is down."""
        for entry in self.root.iterdir():
            if entry.name in ("settings.json", "lock"):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        self._write({})

    def directory(self, *parts: str, mode: int = 0o755, owner: str | None = None) -> Path:
        """Return a directory below the root, made if it is missing, with exactly this mode and owner."""
        path = self.root.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
        if owner is not None:
            shutil.chown(path, owner, owner)
        return path

    def file(self, *parts: str, text: str, mode: int = 0o644, owner: str | None = None) -> Path:
        """Write a file below the root, with exactly this mode and owner; its directory is there already.

        Daemons may read it meanwhile: they see the old one or the new one, whole.
        """
        path = self.root.joinpath(*parts)
        fresh = path.with_name(f"{path.name}.new")
        fresh.touch(mode=0o600)
        fresh.write_text(text)
        fresh.chmod(mode)
        if owner is not None:
            shutil.chown(fresh, owner, owner)
        fresh.replace(path)
        return path

    def log(self, name: str) -> Path:
        """Return the log file of a component."""
        return self.directory("log") / f"{name}.log"

    def get(self, key: str) -> str | None:
        """Return a recorded setting."""
        return self._read().get(key)

    def put(self, key: str, value: str) -> None:
        """Record a setting."""
        with self._mutex:
            self._write({**self._read(), key: value})

    def need(self, key: str, make: Callable[[], str]) -> str:
        """Return a setting; make and record it the first time."""
        with self._mutex:
            value = self.get(key)
            if value is None:
                value = make()
                self.put(key, value)
            return value

    def port(self, name: str, *, wish: int | None = None) -> int:
        """Return the port of a server, chosen once for a run: the one wished for if it is free, else any."""

        def choose() -> str:
            if wish is not None and port_is_free(wish):
                return str(wish)
            taken = {value for key, value in self._read().items() if key.startswith("port.")}
            while (port := str(free_port())) in taken:
                pass
            return port

        return int(self.need(f"port.{name}", choose))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock that keeps two processes from starting or stopping this testbed at once."""
        with (self.root / "lock").open("w") as handle:

            def taken() -> bool:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                return True

            wait_until(taken, seconds=_LOCK_WAIT_SECONDS, what=f"lock of the testbed in {self.root}")
            yield

    def _read(self) -> dict[str, str]:
        with self._mutex:
            try:
                loaded: dict[str, str] = json.loads(self._settings_file.read_text())
            except FileNotFoundError:
                return {}
            return loaded

    def _write(self, settings: dict[str, str]) -> None:
        with self._mutex:
            fresh = self._settings_file.with_suffix(".new")
            fresh.touch(mode=0o600)
            fresh.write_text(json.dumps(settings, indent=1, sort_keys=True))
            fresh.replace(self._settings_file)
