"""What the machine must have: Debian packages, the facility's users, the endpoint's Python environment."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.testbed.daemons import Process, all_pids, look, send
from tests.testbed.state import TestbedError

CACHE_VARIABLE = "PREFECT_PSIK_TESTBED_CACHE"
FACILITY_USER = "psikbeam"
MAPPED_USER = "psikmapped"
"""Whom a multi-user endpoint maps the tests' client to."""
DEBIAN_PACKAGES = (
    "munge",
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "slurm-client",
    "slurm-wlm-basic-plugins",
    "slurm-wlm-mysql-plugin",
    "mariadb-server",
    "rabbitmq-server",
)
ENDPOINT_PACKAGES = ("globus-compute-endpoint==4.19.0", "psik==3.1.1")
#: What the jobs of the tomography flow need at the facility; nothing of ours either.
SCIENCE_PACKAGES = (
    "h5py==3.16.0",
    "numpy==2.4.6",
    "pillow==13.0.0",
    "scikit-image==0.26.0",
    "tifffile==2026.3.3",
    "zarr==3.1.6",
)
_SYSTEM_PYTHON = Path("/usr/bin/python3")
_VENV_PACKAGE = "python3-venv"
_APT_SECONDS = 600
_VENV_SECONDS = 300
_SERVICES = {"munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "beam.smp", "epmd"}
_POLICY = Path("/usr/sbin/policy-rc.d")


def cache() -> Path:
    """Return the directory for what outlives a run, so that a second `up` is quick."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).absolute() if chosen else Path("/var/cache/prefect-psik-testbed")


def endpoint_bin() -> Path:
    """Return the `bin` directory of the endpoint's environment; its name tells the versions in it."""
    name = "-".join(package.replace("==", "-") for package in ENDPOINT_PACKAGES)
    return cache() / name / "bin"


def science_bin() -> Path:
    """Return the `bin` directory of the environment that the facility's scientific jobs use."""
    return cache() / "-".join(["science", *(package.split("==")[1] for package in SCIENCE_PACKAGES)]) / "bin"


def missing() -> list[str]:
    """Return what would have to be installed, by name; empty when the machine is ready."""
    lacking = _missing_debian()
    lacking += [f"user {user}" for user in _missing_users()]
    if not all(_complete_mark(path).exists() for path in (endpoint_bin(), science_bin())):
        lacking.append("Python environments of the facility")
    return lacking


def why_not() -> str | None:
    """Return one line on why a testbed cannot run here without installing anything, or None if it can."""
    if sys.platform != "linux" or shutil.which("apt-get") is None:
        return "the testbed needs Debian"
    if os.geteuid() != 0:
        return "the testbed needs root (slurmd starts jobs as other users)"
    lacking = missing()
    return f"the testbed lacks {', '.join(lacking)}: run python -m tests.testbed install" if lacking else None


def install() -> None:
    """Install what is missing; nothing if nothing is. One process at a time, the others wait.

    Raises:
        TestbedError: this is no Debian, not root, or a step failed; names the log.
    """
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise TestbedError("Installing the testbed needs Debian and root.")
    log = cache() / "install.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.with_name("install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install(log)


def _install(log: Path) -> None:
    """Install what is missing; the endpoint's environment is built while apt works."""
    lacking = _missing_debian()
    if _VENV_PACKAGE in lacking:
        _apt([_VENV_PACKAGE], log)
        lacking.remove(_VENV_PACKAGE)
    with ThreadPoolExecutor(2) as pool:
        steps = [pool.submit(_build_environments, log.with_name("install-python.log"))]
        if lacking:
            steps.append(pool.submit(_apt, lacking, log))
        for step in steps:
            step.result()
    for user in _missing_users():
        _run(["useradd", "--system", "--create-home", "--shell", "/bin/bash", user], log, seconds=30)


def _missing_debian() -> list[str]:
    asked = [*DEBIAN_PACKAGES, _VENV_PACKAGE]
    answer = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *asked],
        capture_output=True,
        text=True,
        check=False,
    )
    present = {line.split()[0] for line in answer.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in asked if package not in present]


def _missing_users() -> list[str]:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return [user for user in (FACILITY_USER, MAPPED_USER) if user not in known]


def _complete_mark(environment: Path) -> Path:
    return environment.parent / "complete"


def _apt(packages: list[str], log: Path) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    before = _service_processes()
    with _no_service_starts():
        _run(["apt-get", "-q", "update"], log, seconds=_APT_SECONDS, env=env)
        _run(
            ["apt-get", "-q", "-y", "--no-install-recommends", "install", *packages],
            log,
            seconds=_APT_SECONDS,
            env=env,
        )
    for process in _service_processes() - before:
        send(process, signal.SIGTERM)


def _service_processes() -> set[Process]:
    found = (look(pid) for pid in all_pids())
    return {process for process in found if process is not None and process.comm in _SERVICES}


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Keep package scripts from starting daemons, unless the machine has a rule of its own for that."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)


def _build_environments(log: Path) -> None:
    _build_environment(endpoint_bin(), ENDPOINT_PACKAGES, log)
    _build_environment(science_bin(), SCIENCE_PACKAGES, log)


def _build_environment(environment: Path, packages: tuple[str, ...], log: Path) -> None:
    """Build an environment from Debian's Python: another user must be able to run it."""
    if _complete_mark(environment).exists():
        return
    home = environment.parent
    home.parent.mkdir(parents=True, exist_ok=True)
    if home.exists():
        shutil.rmtree(home)
    _run([str(_SYSTEM_PYTHON), "-m", "venv", str(home)], log, seconds=_VENV_SECONDS)
    python = home / "bin" / "python"
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if uv is None:
        installer = [str(python), "-m", "pip", "install", "--quiet"]
    else:
        installer = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--link-mode",
            "copy",
            "--compile-bytecode",
            "--python",
            str(python),
        ]
    _run([*installer, *packages], log, seconds=_VENV_SECONDS)
    _complete_mark(environment).touch()


def _run(command: list[str], log: Path, *, seconds: int, env: dict[str, str] | None = None) -> None:
    with log.open("ab") as out:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=env,
                timeout=seconds,
                check=False,
                umask=0o022,
            )
        except subprocess.TimeoutExpired as err:
            raise TestbedError(f"`{' '.join(command)}` took over {seconds} s. Read {log}.") from err
    if done.returncode:
        raise TestbedError(f"`{' '.join(command)}` failed with {done.returncode}. Read {log}.")
