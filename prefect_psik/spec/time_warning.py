"""A warning before the time limit, as sbatch's `--signal` spells it: `[R][B]:SIGNAL[@SECONDS]`."""

from __future__ import annotations

import re
from typing import NamedTuple

#: What `warn_before` sends. It ends a shell or Python that does not handle it.
WARNING_SIGNAL = "SIGUSR1"
#: sbatch's default time before the limit, and the largest that it accepts.
DEFAULT_SECONDS, MAX_SECONDS = 60, 65535
#: Names of signals 1 to 31 at the facility, whatever this machine calls them, and their aliases.
_NAMES = re.findall(
    "[A-Z0-9]+",
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU "
    "URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS",
)
_ALIASES = {"IOT": "ABRT", "CLD": "CHLD", "POLL": "IO", "34": "RTMIN", "64": "RTMAX"}
#: Signals that cannot warn the script of a job -> why.
_NO_WARNING = {
    "TERM": "psik ends the job 5 s after it",
    "INT": "psik ends the job 5 s after it",
    "KILL": "no script can handle it",
    "STOP": "no script can handle it",
    **dict.fromkeys(
        ("TSTP", "CONT", "TTIN", "TTOU", "CHLD", "PIPE", "XFSZ", "SEGV", "BUS", "FPE", "ILL", "TRAP", "SYS"),
        "it does not reach the script",
    ),
}


class BatchSignal(NamedTuple):
    """A signal for the batch shell, and how many seconds before the time limit it comes.

    The name is the one that the batch script records: `SIGUSR1`, or the number of a signal without a name.
    """

    name: str
    seconds: int


def batch_signal(text: str) -> BatchSignal | None:
    """Read the value of `--signal`; None if the signal is for the job's steps and not for the batch shell."""
    found = re.fullmatch(r"([RB]{1,2}):(?:SIG)?([A-Z0-9]+)(?:@([0-9]+))?", text.strip().upper())
    if found is None or "B" not in found[1]:
        return None
    return BatchSignal(_name(found[2]), int(found[3] or DEFAULT_SECONDS))


def _name(text: str) -> str:
    """The name of a signal given by name or number."""
    text = text.lstrip("0") or "0"
    if text.isdecimal() and len(text) <= 2 and 1 <= int(text) <= len(_NAMES):
        text = _NAMES[int(text) - 1]
    text = _ALIASES.get(text, text)
    return text if text.isdecimal() else f"SIG{text}"


def check_signal(text: str) -> str:
    """Refuse a signal for the batch shell that would not warn the script.

    psik is the batch shell: it handles SIGTERM and SIGINT itself, and passes the others on.

    Raises:
        ValueError: It would end the job, or not reach the script; the message says what to write instead.
    """
    asked = batch_signal(text)
    if asked and (why := _NO_WARNING.get(asked.name.removeprefix("SIG"))):
        raise ValueError(
            f"{asked.name} cannot warn the script: {why}. Write warn_before: {asked.seconds} in the job spec, and "
            f"handle {WARNING_SIGNAL} in the script"
        )
    return text


def seconds_before(text: str) -> int:
    """The seconds of a `--signal` that is equivalent to `warn_before`.

    Raises:
        ValueError: They are out of range.
    """
    asked = batch_signal(text)
    if asked is None or not 1 <= asked.seconds <= MAX_SECONDS:
        raise ValueError(f"the warning must come 1 to {MAX_SECONDS} s before the time limit")
    return asked.seconds
