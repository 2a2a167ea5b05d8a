"""sbatch, as psik starts it: its environment, the job id in its output, and what a failure means."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from typing import Any, Iterator

from prefect_psik.remote.signals import HAND_ON_SIGNALS
from prefect_psik.remote.slurm import _slurm_environment

#: Inserts our code into psik's batch script, before it imports asyncio; any other script is passed on unchanged.
#: psik takes the last word that sbatch prints as the job id, so this prints the number alone. Without a number it
#: prints nothing, which is neither an id nor a refusal: the job is then searched for.
_SBATCH = r"""
signals=$1
shift
said=$(
  SIGNALS=$signals awk '$0 == "import asyncio" && !n++ { print ENVIRON["SIGNALS"] } { print }' 2> /dev/null |
    sbatch "$@"
) || { code=$?; printf '%s\n' "$said" >&2; exit "$code"; }
id=$(printf '%s\n' "$said" | sed -n 's/.*Submitted batch job \([0-9][0-9]*\).*/\1/p' | sed -n 1p)
test -n "$id" || id=$(printf '%s\n' "$said" | sed -n 's/^\([0-9][0-9]*\)\(;.*\)*$/\1/p' | sed -n 1p)
test -n "$id" && printf '%s\n' "$id" || printf '%s\n' "$said" >&2
"""
#: Reasons of "Batch job submission failed" that leave open whether the request arrived or was decided: phrases of
#: Slurm and of the system. sbatch repeats a request, so even a refused connection says nothing about the earlier
#: one.
UNCLEAR = (
    "Unexpected message received",
    "Communication connection failure",
    "Communication shutdown failure",
    "Message send failure",
    "Message receive failure",
    "Unable to contact slurm controller",
    "Received zero length message",
    "Received message length < 0",
    "Insane message length",
    "Header lengths are longer than data received",
    "Failed to send entire message",
    "Socket timed out on send/recv operation",
    "Zero Bytes were transmitted or received",
    "Slurm backup controller in standby mode",
    "Controller is in standby mode",
    "Unable to create job record, try again",
    "Protocol authentication error",
    "Invalid authentication credential",
    "Failed to connect to authentication agent",
    "Connection refused",
    "Connection reset by peer",
    "Connection timed out",
    "Broken pipe",
    "Interrupted system call",
    "Network is unreachable",
    "No route to host",
    "Resource temporarily unavailable",
    "Transport endpoint is not connected",
)
#: sbatch could not read Slurm's configuration, so it sent no request.
NOT_ASKED = re.compile("fatal: (Could not establish a configuration source|Unable to process configuration file)")
#: How sbatch ends a submission that is over a limit of its account or quality of service. The name of the limit
#: stands alone on a line before it. A limit on the number of jobs passes once other jobs end; all other limits
#: (time, nodes or CPUs of one job) are final refusals.
OVER_A_LIMIT = "Job violates accounting/QOS policy"
SUBMIT_LIMIT = re.compile(r"(Assoc|QOS|Max)\w*SubmitJob\w*")
#: Exit code of sbatch's option parser. It is that of ssh, too, which may stand behind a site's sbatch.
USAGE = 255
_VOICE = re.compile(r"^(\S*/)?sbatch: ((error|fatal): )?")


def _sbatch_loop() -> Any:
    """Make an event loop on which psik's sbatch reads no options from the environment, and prints only the job id.

    The batch script passes signals on to the job's script.

    psik starts sbatch on the running loop with the environment of this process, which other threads share.
    """
    import asyncio

    class Loop(asyncio.SelectorEventLoop):
        async def subprocess_exec(
            self, protocol_factory: Any, program: Any, *arguments: Any, **options: Any
        ) -> tuple[Any, Any]:
            if program == "sbatch" and shutil.which(program):
                program, arguments = "/bin/sh", ("-c", _SBATCH, program, HAND_ON_SIGNALS, *arguments)
                options["env"] = _slurm_environment()
            return await super().subprocess_exec(protocol_factory, program, *arguments, **options)

    return Loop()


def _left_out() -> list[str]:
    """Name the sbatch options in the environment that jobs ignore, for users who expect them to apply."""
    names = sorted(name for name in os.environ if name.startswith("SBATCH_") or name == "SLURM_CLUSTERS")
    if not names:
        return []
    return [
        f"Jobs ignore {', '.join(names)} from the environment of the endpoint. Set what jobs need in the fields "
        "and options of the psik-backend block."
    ]


def _submit_limit(text: str) -> str | None:
    """The limit on the number of jobs that sbatch names in its refusal; None: it refuses for another reason."""
    if OVER_A_LIMIT not in text:
        return None
    lines = [_VOICE.sub("", line).strip() for line in text.splitlines() if _VOICE.match(line)]
    return next((line for line in lines if SUBMIT_LIMIT.fullmatch(line)), None)


class _Heard:
    """What sbatch said on stderr, and how it ended."""

    def __init__(self) -> None:
        self.text = ""
        self.code: int | None = None

    @property
    def said(self) -> list[str]:
        lines = [_VOICE.sub("", line).strip() for line in self.text.splitlines()]
        return [" ".join(filter(None, lines))] if any(lines) else []

    @property
    def submit_limit(self) -> str | None:
        """The limit on the number of jobs in the queue that this one would exceed, as Slurm calls it."""
        return _submit_limit(self.text) if self.refused else None

    @property
    def is_usage(self) -> bool:
        """The option parser refused, before anything was sent."""
        return self.code == USAGE and any(
            _VOICE.match(line) or "sbatch --help" in line for line in self.text.splitlines()
        )

    @property
    def refused(self) -> bool:
        """Whether the option parser, slurmctld or the site refused; an sbatch killed by a signal did not."""
        if not 0 < (self.code or 0) < 128:
            return self.is_usage
        reasons = re.findall("Batch job submission failed: (.*)", self.text)
        return not NOT_ASKED.search(self.text) and not (reasons and reasons[-1].startswith(UNCLEAR))


@contextlib.contextmanager
def _listening(heard: _Heard) -> Iterator[None]:
    """Collect what sbatch prints, which psik only logs; its output for other jobs of this process is ignored."""
    import contextvars
    import logging

    mine: contextvars.ContextVar[bool] = contextvars.ContextVar("mine", default=False)

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage() if mine.get() else ""
            if text.startswith("sbatch stderr: "):
                heard.text += text.split(": ", 1)[1]
            elif text.startswith("sbatch returned "):
                heard.code = int(text.rsplit(" ", 1)[1])

    ear, logger = Ear(), logging.getLogger("psik.console")
    token = mine.set(True)
    logger.addHandler(ear)
    try:
        yield
    finally:
        logger.removeHandler(ear)
        mine.reset(token)
