"""What `python -m tests.alone` starts ends with it, whoever is killed by what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.local import wait_until

MARK = "TESTED_ALONE"
#: A command that waits for two processes; one has left its family, as a daemon does, and tells its number.
COMMAND = 'setsid sh -c "sleep 1000 & echo \\$! > $1/daemon; exit" & sleep 1001 & touch $1/ready; wait; exit 3'

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has subreapers")


def marked(mark: str) -> list[psutil.Process]:
    """All live processes that have this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, started as `make` starts it, when its daemon runs."""
    environment = {**os.environ, MARK: str(tmp_path), "TMPDIR": str(tmp_path)}
    # Under nohup SIGHUP is ignored, and a child inherits that.
    command = [
        "env",
        "--default-signal=HUP",
        sys.executable,
        "-m",
        "tests.alone",
        "sh",
        "-c",
        COMMAND,
        "sh",
        str(tmp_path),
    ]
    started = subprocess.Popen(command, env=environment, start_new_session=True)
    wait_until(lambda: (tmp_path / "ready").exists() and (tmp_path / "daemon").exists())
    assert len(marked(str(tmp_path))) >= 5
    yield started
    for process in marked(str(tmp_path)):
        process.kill()
    started.wait(30)


def starter(alone: subprocess.Popen[bytes]) -> psutil.Process:
    return psutil.Process(alone.pid)


def keeper(alone: subprocess.Popen[bytes]) -> psutil.Process:
    return starter(alone).children()[0]


def command(alone: subprocess.Popen[bytes]) -> psutil.Process:
    [child] = [child for child in keeper(alone).children() if child.children()]
    return child


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("victim", [starter, keeper, command])
def test_nothing_is_left_of_it(
    alone: subprocess.Popen[bytes],
    tmp_path: Path,
    victim: Callable[[subprocess.Popen[bytes]], psutil.Process],
    signum: signal.Signals,
) -> None:
    victim(alone).send_signal(signum)
    wait_until(lambda: not marked(str(tmp_path)), 60)
    assert not list(tmp_path.glob("prefect-home-*"))


def test_a_signal_to_the_whole_group_ends_it(alone: subprocess.Popen[bytes], tmp_path: Path) -> None:
    os.killpg(alone.pid, signal.SIGINT)
    assert alone.wait(60) == 128 + signal.SIGINT
    assert not marked(str(tmp_path))


def test_it_ends_as_its_command_does_and_takes_the_daemons_with_it(
    alone: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    [sleep] = [child for child in command(alone).children() if child.cmdline() == ["sleep", "1001"]]
    sleep.kill()
    assert alone.wait(60) == 3
    assert not marked(str(tmp_path))
