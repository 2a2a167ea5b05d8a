"""Extra sbatch options as people type them: which are accepted, and which would break psik's bookkeeping."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from prefect_psik.spec.sbatch import FLAGS, RESOURCE_OF, VALUED, long_name
from prefect_psik.spec.strict import Plain
from prefect_psik.spec.time_warning import check_signal

_BY_FIELD = {
    option: f"set resources.{field} (in a block: default_resources)"
    for option, field in RESOURCE_OF.items()
    if option != "--mem"
}
#: Option -> why it is refused, and what to use instead.
FORBIDDEN_OPTIONS: dict[str, str] = {
    **_BY_FIELD,
    "--array": "psik keeps only one id per job; submit one job for each element",
    "--chdir": "set directory in the job spec",
    "--clusters": "psik would record the cluster's name as the job's id; use a backend for that cluster",
    "--error": "psik keeps the logs in the job's directory",
    "--export": "the environment is set by the job spec's environment and inherit_environment",
    "--export-file": "the environment is set by the job spec's environment and inherit_environment",
    "--help": "it submits nothing",
    "--input": "the script reads from /dev/null",
    "--job-name": "set name in the job spec",
    "--output": "psik keeps the logs in the job's directory",
    "--quiet": "psik needs the id that sbatch prints",
    "--test-only": "it submits nothing; use preflight",
    "--time": "set resources.duration: minutes, or Slurm's D-HH:MM:SS",
    "--usage": "it submits nothing",
    "--version": "it submits nothing",
    "--wait": "it would block the endpoint until the job ends; wait_for_job waits without blocking it",
    "--workdir": "set directory in the job spec",
    "--wrap": "put the commands into the job spec's script",
}
_SHORT = "".join(short[1:] for short in (VALUED | FLAGS).values())
#: Short options that take no value: sbatch would read a value after them as more options.
_SHORT_FLAGS = "".join(short[1:] for short in FLAGS.values())
_OPTION = re.compile(rf"--[a-z][a-z0-9_-]*|-[{_SHORT}]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def check_options(given: Any) -> Any:
    """Check extra sbatch options, and write bare flags (`true` in YAML) as psik does.

    Returns:
        The options; the value of a bare flag is its own name, as psik expects.

    Raises:
        ValueError: An option has no dashes, its value is not text, or it is one of `FORBIDDEN_OPTIONS`.
    """
    if not isinstance(given, Mapping):
        return given
    return {_checked_name(name): check_value(name, value) for name, value in given.items()}


def _checked_name(name: Any) -> str:
    if name == ":":
        raise ValueError("':' creates a heterogeneous job, whose ids psik cannot track: submit two jobs")
    if not isinstance(name, str) or not _OPTION.fullmatch(name):
        guess = f": write '--{name}'" if isinstance(name, str) and re.fullmatch(r"[a-z][a-z-]+", name) else ""
        raise ValueError(f"{name!r} is not written as an sbatch option, such as '--qos'{guess}")
    if why := why_forbidden(name):
        raise ValueError(f"the option {name} cannot be used here: {why}")
    return str(name)


def why_forbidden(name: str) -> str | None:
    """Why an option cannot be given, and what to use instead; None if it can."""
    full = long_name(name)
    if full.startswith("--") and full not in VALUED | FLAGS:
        # sbatch accepts every unambiguous abbreviation of a long option.
        full = next((option for option in FORBIDDEN_OPTIONS if option.startswith(full)), full)
    return FORBIDDEN_OPTIONS.get(full)


def check_value(name: str, value: Any) -> str:
    """Check the value of an option.

    Raises:
        ValueError: It is not a single line of text; the message says how to write it.
    """
    if isinstance(value, Plain) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if value is True or value == name:
        return name
    if len(name) == 2 and name[1] in _SHORT_FLAGS:
        raise ValueError(f"the option {name} takes no value: write true")
    if isinstance(value, int | float) and value is not False:
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"the option {name} {_not_text(name, value)}")
    if not (value and value.strip()):
        raise ValueError(f"the option {name} has an empty value; for a flag without a value, write true")
    if _CONTROL.search(value) or value.startswith("-"):
        raise ValueError(f"the value {value!r} of option {name} begins with a dash or contains control characters")
    return check_signal(str(value)) if long_name(name) == "--signal" else str(value)


def _not_text(name: str, value: Any) -> str:
    if value is False:
        instead = ", and write exclusive_node_use: false in resources" if name == "--exclusive" else ""
        return f"is false: leave it out{instead}"
    if isinstance(value, datetime.date | datetime.time):
        return f"has a date or time as its value: write it as text, '{value.isoformat()}'"
    if isinstance(value, list | tuple | set | frozenset):
        return f"has a list as its value: write one string, as sbatch takes it: '{','.join(map(str, value))}'"
    return f"has a {type(value).__name__} as its value: write a string, as sbatch takes it"


Options = Annotated[dict[str, str], BeforeValidator(check_options)]
