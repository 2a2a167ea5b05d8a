"""`python -m tests.testbed install | up | run | down | status | env`: the testbed from the shell."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time

from tests.testbed import packages
from tests.testbed.facility import Facility
from tests.testbed.slurm_conf import PARTITIONS
from tests.testbed.state import STATE_VARIABLE, TestbedError

_COMMANDS = {
    "install": "install what is missing: Debian packages, a user, the endpoint's environment",
    "up": "install, start what does not run, tell how to use it",
    "run": "up, then wait for Ctrl-C or SIGTERM, then down",
    "down": "stop everything",
    "status": "tell what runs; exit 1 unless all of it does",
    "env": "print the exports for a shell: eval $(python -m tests.testbed env)",
}


def main() -> int:
    """Run one command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.testbed", formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=_COMMANDS, help="\n".join(f"{k}: {v}" for k, v in _COMMANDS.items()))
    command = parser.parse_args().command
    signal.signal(signal.SIGTERM, _end)
    facility = Facility.at()
    try:
        if command == "install":
            packages.install()
        elif command in ("up", "run"):
            _up(facility)
            if command == "run":
                _wait_and_stop(facility)
        elif command == "down":
            facility.stop()
        elif command == "env":
            print(_exports(Facility.from_state()))
        else:
            return _status(facility)
    except TestbedError as err:
        print(f"testbed: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _end(signum: int, _frame: object) -> None:
    """Leave as after Ctrl-C, so that a start cut short cleans up."""
    raise SystemExit(128 + signum)


def _up(facility: Facility) -> None:
    began = time.monotonic()
    packages.install()
    facility.start()
    print(f"# The testbed in {facility.state.root} is up ({time.monotonic() - began:.1f} s).\n")
    print(_exports(facility))
    print(f"""
# endpoint      {facility.endpoint_id}
# client id     {facility.client_id}
# client secret {facility.client_secret}
# prefix        {facility.prefix}
# data          {facility.data}
# user          {facility.user}
# account       {facility.account}  ({facility.foreign_account} exists and refuses)
# logs          {facility.state.root / "log"}""")
    for name, text in PARTITIONS.items():
        print(f"# partition     {name:6} {text}")


def _exports(facility: Facility) -> str:
    env = {**facility.env, **facility.slurm.env, STATE_VARIABLE: str(facility.state.root)}
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items())


def _wait_and_stop(facility: Facility) -> None:
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    print("\n# Ctrl-C stops it.", flush=True)
    signal.sigwait(signals)
    facility.stop()


def _status(facility: Facility) -> int:
    status = facility.status()
    for name, alive in status.items():
        print(f"{name:12} {'up' if alive else 'down'}")
    return 0 if all(status.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
