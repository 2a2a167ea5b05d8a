"""At a test's time limit: the stacks of its child processes, too, and an end of what no exception reaches.

pytest-timeout raises at the limit (`timeout` in pyproject.toml; `@pytest.mark.timeout(600)` says more) and prints
the stacks of all threads. It sets the limit once for a test and its second run: here each run has the whole of it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Protocol

import psutil
import pytest

from tests.second_run import is_second

#: A test that cannot be interrupted so long after its limit is ended with its whole process.
_GRACE_SECONDS = 60.0
_DUMP_SECONDS = 10.0
_SETTINGS = pytest.StashKey["Settings"]()
_STDERR = pytest.StashKey[int]()


class Settings(Protocol):
    """What pytest-timeout knows of a test; it has no types of its own."""

    timeout: float


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep the real stderr: while a test runs, it is captured."""
    config.stash[_STDERR] = os.dup(2)


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Settings) -> Generator[None, object, object]:
    """Let the plugin's handler be called after our own."""
    result = yield
    item.stash[_SETTINGS] = settings
    raise_timeout = signal.getsignal(signal.SIGALRM)
    assert callable(raise_timeout), "the limit is set by the method `signal`"

    def at_the_limit(signum: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True
        print(stacks_of_children(), file=sys.stderr)
        raise_timeout(signum, frame)

    signal.signal(signal.SIGALRM, at_the_limit)
    faulthandler.dump_traceback_later(
        settings.timeout + _GRACE_SECONDS, exit=True, file=item.config.stash[_STDERR]
    )
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer() -> None:
    """Let the process live."""
    faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin the limit again where this is a second run."""
    if is_second(item) and _SETTINGS in item.stash:
        item.ihook.pytest_timeout_cancel_timer(item=item)
        item.ihook.pytest_timeout_set_timer(item=item, settings=item.stash[_SETTINGS])


def stacks_of_children() -> str:
    """Return a line for each process that descends from this one, with its Python stacks where they can be had."""
    parts = ["Child processes:"]
    spy = Path(sys.executable).with_name("py-spy")
    for child in psutil.Process().children(recursive=True):
        try:
            line = f"{child.pid} {child.status()} {' '.join(child.cmdline())[:200]}"
            is_python = "python" in Path(child.exe()).name
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        parts.append(line)
        if is_python:
            try:
                command = [str(spy), "dump", "--pid", str(child.pid)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=_DUMP_SECONDS, check=False)
                parts.append(done.stdout if done.returncode == 0 else done.stderr)
            except (OSError, subprocess.TimeoutExpired) as err:
                parts.append(f"no stacks: {err}")
    return "\n".join(parts)
