"""Check this version against the hosted Globus: `python -m tests.system --endpoint UUID --prefix DIR …`.

Log in first: set GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET, or `globus-compute-endpoint login`. It
submits about ten jobs of a minute, needs no Prefect server, and leaves their directories below the prefix.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from uuid import UUID

from prefect_psik import BackendAttributes, PsikBackend
from tests.system.report import Line, head, redact, row, tail
from tests.system.steps import NEEDED, STEPS, Run


def main() -> int:
    """Run all steps; return 0 if none failed."""
    logging.disable(logging.WARNING)
    run = _run_of(_arguments())
    secret = os.environ.get("GLOBUS_COMPUTE_CLIENT_SECRET")

    def say(text: str) -> None:
        print(redact(text, secret), flush=True)

    attributes = run.backend.attributes
    say(head(_service()))
    say(f"endpoint {run.backend.endpoint_id}, {attributes.type}, queue {attributes.queue_name}\n")
    lines: list[Line] = []
    try:
        for name, step in STEPS.items():
            blocked = any(line.verdict == "FAILED" and line.step in NEEDED for line in lines)
            lines.append(Line("left out", 0.0, name, "") if blocked else _line(run, name, step))
            say(row(lines[-1]))
    except KeyboardInterrupt:
        say("\nEnded by Ctrl-C. A job may be left: look into the prefix, and at squeue.")
    say(tail(lines))
    say("Read it before you paste it: user, host and path names are in it.")
    return 0 if len(lines) == len(STEPS) and all(line.verdict == "ok" for line in lines) else 1


def _line(run: Run, name: str, step: Callable[[Run], str]) -> Line:
    """Run a step within its limit; whatever comes of it is a line of the report."""
    begin = time.monotonic()
    seen: Future[str] = Future()

    def work() -> None:
        try:
            seen.set_result(step(run))
        except Exception as err:  # noqa: BLE001 - the report must be printed whatever a step meets
            seen.set_exception(err)

    Thread(target=work, daemon=True).start()
    wait([seen], timeout=run.step_seconds)
    if not seen.done():
        verdict, text = "FAILED", f"It did not end within {run.step_seconds:.0f} s."
    elif err := seen.exception():
        verdict, text = "FAILED", f"{type(err).__name__}: {err}"
    else:
        verdict, text = "ok", seen.result()
    return Line(verdict, time.monotonic() - begin, name, text)


def _service() -> str:
    environment = os.environ.get("GLOBUS_SDK_ENVIRONMENT", "production")
    return "the hosted Globus" if environment == "production" else f"Globus's environment {environment!r}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.system", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--endpoint", type=UUID, required=True, metavar="UUID", help="of the Compute endpoint")
    parser.add_argument("--prefix", default="$HOME/psik-smoke", help="directory there; default: %(default)s")
    parser.add_argument("--type", default="slurm", choices=("slurm", "local"), help="default: %(default)s")
    parser.add_argument("--queue", metavar="PARTITION", help="Slurm partition; default: Slurm's own")
    parser.add_argument("--account", help="Slurm account; default: Slurm's own")
    parser.add_argument("--qos", help="Slurm quality of service")
    parser.add_argument("--constraint", help="Slurm node features")
    parser.add_argument("--function-id", type=UUID, metavar="UUID", help="for an endpoint with allowed_functions")
    parser.add_argument("--minutes", type=int, default=2, help="walltime of each job; default: %(default)s")
    parser.add_argument(
        "--queue-minutes",
        type=float,
        default=60,
        help="longest wait in the queue for each job; default: %(default)s",
    )
    return parser.parse_args()


def _run_of(given: argparse.Namespace) -> Run:
    attributes = BackendAttributes(
        type=given.type,
        queue_name=given.queue,
        project_name=given.account,
        qos=given.qos,
        constraint=given.constraint,
    )
    backend = PsikBackend(
        endpoint_id=given.endpoint, prefix=given.prefix, attributes=attributes, function_id=given.function_id
    )
    return Run(backend, minutes=given.minutes, queue_minutes=given.queue_minutes)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Threads of a step that did not end would keep the interpreter from ending, too.
    os._exit(code)
