"""Extra sbatch options as people type them: what is accepted, and what would break psik's bookkeeping."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

#: Option -> why it is refused, and what to use instead.
FORBIDDEN_OPTIONS: dict[str, str] = {
    "--array": "psik keeps one id for one job; submit one job for each element",
    "--clusters": "psik would record the cluster's name as the job's id; use a backend for that cluster",
    "--error": "psik keeps the logs in the job's directory",
    "--export": "the environment is set by the job spec's environment and inherit_environment",
    "--export-file": "the environment is set by the job spec's environment and inherit_environment",
    "--help": "it submits nothing",
    "--input": "the script reads from /dev/null",
    "--job-name": "give the job spec's name",
    "--output": "psik keeps the logs in the job's directory",
    "--quiet": "psik needs the id that sbatch prints",
    "--test-only": "it submits nothing; use preflight",
    "--time": "give resources.duration, in minutes",
    "--usage": "it submits nothing",
    "--version": "it submits nothing",
    "--wait": "it would block the endpoint until the job ends; wait_for_job waits",
    "--wrap": "give the job spec's script",
}
_SHORT = {
    "-a": "--array",
    "-M": "--clusters",
    "-e": "--error",
    "-h": "--help",
    "-i": "--input",
    "-J": "--job-name",
    "-o": "--output",
    "-Q": "--quiet",
    "-t": "--time",
    "-V": "--version",
    "-W": "--wait",
}
#: Short options that take a value, and those that take none: behind these, a value would be read as more options.
_SHORT_VALUES, _SHORT_FLAGS = "AbBcCdDFGLmNnpqSwx", "HIkOsv"
_OPTION = re.compile(rf"--[a-z][a-z0-9_-]*|-[{_SHORT_VALUES}{_SHORT_FLAGS}]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def check_options(given: Any) -> Any:
    """Check extra sbatch options, and spell bare flags (`true` in YAML) as psik does.

    Returns:
        The options; a bare flag has its own name as value, psik's idiom.

    Raises:
        ValueError: An option has no dashes, an empty value, or is one of `FORBIDDEN_OPTIONS`.
    """
    if not isinstance(given, Mapping):
        return given
    return {_checked_name(name): _checked_value(name, value) for name, value in given.items()}


def _checked_name(name: Any) -> str:
    if name in _SHORT:
        raise ValueError(f"the option {name} is not possible here: {FORBIDDEN_OPTIONS[_SHORT[name]]}")
    if name == ":":
        raise ValueError("':' makes a heterogeneous job, whose ids psik cannot follow: submit two jobs")
    if not isinstance(name, str) or not _OPTION.fullmatch(name):
        guess = f": write '--{name}'" if isinstance(name, str) and re.fullmatch(r"[a-z][a-z-]+", name) else ""
        raise ValueError(f"{name!r} is not spelled as an option of sbatch, such as '--qos'{guess}")
    # sbatch takes every unambiguous beginning of a long option for the option itself.
    full = next((option for option in FORBIDDEN_OPTIONS if option.startswith(name)), None)
    if full is not None and name.startswith("--"):
        raise ValueError(f"the option {name} is not possible here: {FORBIDDEN_OPTIONS[full]}")
    return name


def _checked_value(name: str, value: Any) -> str:
    if value is True or value == name:
        return name
    if name[1:] in _SHORT_FLAGS:
        raise ValueError(f"the option {name} takes no value: write true")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the option {name} has an empty value; for a flag without value write true")
    if _CONTROL.search(value) or value.startswith("-"):
        raise ValueError(f"the value {value!r} of option {name} begins with a dash or has control characters")
    return value


Options = Annotated[dict[str, str], BeforeValidator(check_options)]
