"""A private PostgreSQL server on a loopback port, with a password; its files are temporary."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.testbed.state import free_port, wait_until


def _programs() -> Path | None:
    """Return the directory of PostgreSQL's programs; Debian keeps them off the PATH."""
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = str(known[-1]) if known else shutil.which("initdb")
    return Path(found).parent if found else None


@contextmanager
def postgresql() -> Iterator[str]:
    """Start a server with an empty database, and yield its address for Prefect.

    PostgreSQL refuses to run as root, so there it runs as the user `postgres`.
    """
    programs = _programs()
    if programs is None:
        raise SystemExit("There is no PostgreSQL on this machine: apt-get install postgresql")
    user = "postgres" if os.geteuid() == 0 else None
    password, port = secrets.token_hex(16), free_port()
    with tempfile.TemporaryDirectory(prefix="postgresql-") as name:
        home = Path(name)
        (home / "password").write_text(password)
        if user:
            for path in (home, home / "password"):
                shutil.chown(path, user, user)
        initialize = [f"{programs}/initdb", "--username=prefect", f"--pwfile={home}/password", "--no-sync"]
        initialize += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", f"{home}/data"]
        subprocess.run(initialize, user=user, cwd=home, stdout=subprocess.DEVNULL, check=True, timeout=300)
        settings = ["fsync=off", "listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories="]
        start = [f"{programs}/postgres", "-D", f"{home}/data"]
        start += [part for setting in settings for part in ("-c", setting)]
        log = home / "log"
        with log.open("wb") as file:
            server = subprocess.Popen(
                start, user=user, cwd=home, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        try:
            ready = [f"{programs}/pg_isready", "--quiet", "--host=127.0.0.1", f"--port={port}"]
            wait_until(
                lambda: subprocess.run(ready, check=False).returncode == 0,
                seconds=60,
                what="PostgreSQL to answer",
                log=log,
            )
            yield f"postgresql+asyncpg://prefect:{password}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown, which ends its sessions
            server.wait(60)
