"""Run a command with a Prefect home of its own, and leave no process, mount or file of it behind.

`python -m tests.alone COMMAND…` makes a row of three processes: this one, a keeper in a session of its own, and
the command. The first two are subreapers (`prctl(2)`): whatever a test starts, daemons and jobs of other users
included, stays their descendant, since orphans become their children and not those of process 1. When the command
ends, the keeper kills what is left of it. When the keeper or the first process is killed, the other one does.
Mounts are made in a name space of their own, where this user can make any, and end with its last process.

The temporary directories of tests are of this run alone, too: pytest removes those of earlier runs, which fails on
what a test that was killed may have left, such as a tree that is too deep.

Only Linux has subreapers. Elsewhere the command just has these directories of its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import psutil

from tests.testbed.daemons import Process, children_of, is_same, look, send

#: For an orderly end of the command after a signal, and for that of the keeper.
_COMMAND_SECONDS, _KEEPER_SECONDS = 10.0, 25.0
#: What does not die of SIGKILL within this time hangs in the kernel.
_KILL_SECONDS = 20.0
_POLL_SECONDS = 0.5
_PR_SET_CHILD_SUBREAPER = 36


def main(command: Sequence[str]) -> int:
    """Run the command; return its exit code, or 128 and the number of the signal that ended it."""
    home = tempfile.mkdtemp(prefix="prefect-home-")
    try:
        if not sys.platform.startswith("linux"):
            return subprocess.run(command, env=_environment(home), check=False).returncode
        return _run(command, home)
    finally:
        _remove(home)


def _environment(home: str) -> dict[str, str]:
    """Return the environment of the command, and make the directories that are in it."""
    places = {"PREFECT_HOME": f"{home}/prefect", "PYTEST_DEBUG_TEMPROOT": f"{home}/tmp"}
    for place in places.values():
        os.makedirs(place, mode=0o700, exist_ok=True)
    return {**os.environ, **places}


def _remove(home: str) -> None:
    """Remove a directory however deep it is; Python's own way is recursive before 3.13."""
    subprocess.run(["rm", "-rf", home], stderr=subprocess.DEVNULL, check=False)


def _run(command: Sequence[str], home: str) -> int:
    """Start the keeper, and do its work where it is killed."""
    signals = _passed_on()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *signals})
    _become_subreaper()
    starters, itself = _starters(), os.getpid()
    keeper = os.fork()
    if keeper == 0:
        os.setsid()
        os._exit(_keep(command, home, signals, itself))
    code = _wait(keeper, keeper, signals, lambda: all(is_same(starter) for starter in starters), _KEEPER_SECONDS)
    _end_descendants()
    return code


def _keep(command: Sequence[str], home: str, signals: set[signal.Signals], parent: int) -> int:
    """Be the keeper: run the command, and end all that it leaves."""
    _become_subreaper()
    child = _start(command, home, signals)
    code = _wait(child, -child, signals, lambda: os.getppid() == parent, _COMMAND_SECONDS)
    if left := _end_descendants():
        print(f"Left by {command[0]}, and killed: {', '.join(sorted(left))}.", file=sys.stderr, flush=True)
    _remove(home)
    return code


def _start(command: Sequence[str], home: str, signals: set[signal.Signals]) -> int:
    """Start the command as the leader of a process group: a signal is for all of it, as in a terminal."""
    probe = subprocess.run(["unshare", "--mount", "true"], stderr=subprocess.DEVNULL, check=False)
    if probe.returncode == 0:
        command = ["unshare", "--mount", "--propagation", "slave", *command]
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        for signum in signals:  # a shell lets what it starts in the background ignore some
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, *signals})
        try:
            os.execvpe(command[0], list(command), _environment(home))
        except OSError as err:
            print(f"{command[0]}: {err.strerror}", file=sys.stderr, flush=True)
            os._exit(127)
    return child


def _wait(
    child: int, addressee: int, signals: set[signal.Signals], is_wanted: Callable[[], bool], seconds: float
) -> int:
    """Reap children until this one has ended, and return its exit code.

    The addressee, a process or (negative) a group, is sent the signals that come in, SIGINT when nobody wants it
    any more, and SIGKILL if it then needs more seconds.
    """
    deadline = float("inf")
    while True:
        arrived = signal.sigtimedwait({signal.SIGCHLD, *signals}, _POLL_SECONDS)
        while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
            if reaped[0] == child:
                code = os.waitstatus_to_exitcode(reaped[1])
                return code if code >= 0 else 128 - code
        signum = signal.Signals(arrived.si_signo) if arrived else signal.SIGCHLD
        if signum is signal.SIGCHLD:
            if time.monotonic() > deadline:
                signum = signal.SIGKILL
            elif deadline == float("inf") and not is_wanted():
                signum = signal.SIGINT
        if signum is not signal.SIGCHLD:
            deadline = min(deadline, time.monotonic() + seconds)
            os.kill(addressee, signum)


def _end_descendants() -> set[str]:
    """Kill all that descends from this process, and return what it was: short names and numbers."""
    killed: set[str] = set()
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return killed
        for pid in children_of({os.getpid()}) - {os.getpid()}:
            if process := look(pid):
                send(process, signal.SIGKILL)
                killed.add(f"{process.comm} ({process.pid})")
        time.sleep(0.05)
    return killed


def _passed_on() -> set[signal.Signals]:
    """Return the signals that ask for an end; not SIGHUP under `nohup`."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGQUIT}
    return signals if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else {*signals, signal.SIGHUP}


def _starters() -> list[Process]:
    """Return the processes between this one and the outermost `make`, that included: they want the command."""
    names = [(parent.pid, parent.name()) for parent in psutil.Process().parents()]
    makes = [number for number, (_, name) in enumerate(names, 1) if name == "make"]
    found = (look(pid) for pid, _ in names[: max(makes, default=0)])
    return [process for process in found if process is not None]


def _become_subreaper() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "This process cannot become a subreaper")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
