"""Scheduler directives at the top of a script, such as `#SBATCH -N 2`: what they set in a Slurm job."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from prefect_psik.exceptions import SpecError
from prefect_psik.spec.input_files import check_directory
from prefect_psik.spec.resources import ResourceSpec
from prefect_psik.spec.sbatch import FLAGS, RESOURCE_OF, VALUED, long_name, setting
from prefect_psik.spec.sbatch_options import check_value, why_forbidden
from prefect_psik.spec.strict import explain, plain_word
from prefect_psik.spec.time_warning import WARNING_SIGNAL, batch_signal, seconds_before

SLURM = "Slurm"
#: How each scheduler's lines begin.
_BEGINNINGS = {
    SLURM: re.compile(r"#SBATCH(?=[\s-]|$)"),
    "PBS": re.compile(r"#PBS(?=[\s-]|$)"),
    "Flux": re.compile(r"#FLUX(?=[\s:]|$)|#\s*(?i:flux):\s*-"),
    "LSF": re.compile(r"#BSUB(?=[\s-]|$)"),
    "DataWarp": re.compile(r"#DW(?=\s|$)"),
    "burst buffers": re.compile(r"#BB(?=\s|$)"),
    "Cobalt": re.compile(r"#COBALT(?=[\s-]|$)"),
    "Moab": re.compile(r"#MSUB(?=[\s-]|$)"),
    "Grid Engine": re.compile(r"#\$\s+-"),
    "OAR": re.compile(r"#OAR(?=[\s-]|$)"),
    "PJM": re.compile(r"#PJM(?=[\s-]|$)"),
}
_BURST_BUFFERS = ("DataWarp", "burst buffers")

_LOGS = "psik keeps the logs in the job's directory"
_SCREEN = "nobody reads what sbatch prints"
#: Options that do not change what the job does -> why they are left out.
_NOT_USED = {
    "--output": _LOGS,
    "--error": _LOGS,
    "--get-user-env": "a job gets nothing from the endpoint's environment",
    "--ignore-pbs": "#PBS lines are never read",
    "--parsable": _SCREEN,
    "--quiet": _SCREEN,
    "--verbose": _SCREEN,
}
_FIELDS = RESOURCE_OF | {"--job-name": "name", "--chdir": "directory", "--workdir": "directory"}


class Line(NamedTuple):
    """A scheduler line of a script: its number, its text, and what follows the prefix, such as `#SBATCH`."""

    number: int
    scheduler: str
    text: str
    rest: str


class Note(NamedTuple):
    """How a directive was handled, for the log; a warning if the job differs from what the directive says."""

    text: str
    warning: bool = False


class Header(NamedTuple):
    """What a script's directives set, by field or option, with a note on each of them."""

    values: dict[str, Any]
    notes: list[Note]


class _Option(NamedTuple):
    line: Line
    name: str
    value: str | None
    text: str


def scheduler_lines(script: str) -> list[Line]:
    """Find the lines for any scheduler; like sbatch, stop at the first command."""
    found: list[Line] = []
    for number, raw in enumerate(script.removeprefix("\ufeff").split("\n"), start=1):
        text = raw.rstrip()
        if text and not text.lstrip().startswith("#"):
            break
        for scheduler, beginning in _BEGINNINGS.items():
            if match := beginning.match(text):
                found.append(Line(number, scheduler, text, text[match.end() :]))
    return found


def job_name(script: str) -> str | None:
    """The job name that a script sets with `#SBATCH -J`, if it is a valid one."""
    with contextlib.suppress(SpecError, ValueError):
        lines = [line for line in scheduler_lines(script) if line.scheduler == SLURM]
        names = [option.value for line in lines for option in _options(line) if option.name == "--job-name"]
        return plain_word(names[-1] or "", "the job's name") if names else None
    return None


def read_header(script: str, given: Mapping[str, Any]) -> Header:
    """Read the Slurm directives of a script.

    Args:
        script: Its text.
        given: What the job spec sets, by field or long option; it overrides directives.

    Raises:
        SpecError: A directive cannot be honoured; names its line, and what to use instead.
    """
    values: dict[str, Any] = {}
    notes: list[Note] = []
    own = {setting(name): name for name in given}
    options = [option for line in scheduler_lines(script) for option in _options(line)]
    last = {option.name: option for option in options}  # the last one wins, as in sbatch
    for option in options:
        target = _target(option)
        if why := _not_used(option):
            notes.append(Note(f"{_at(option)} is not used: {why}", warning=True))
        elif setting(target) in own:
            notes.append(_overruled(option, own[setting(target)], given))
        elif last[option.name] is not option:
            number = last[option.name].line.number
            notes.append(Note(f"{_at(option)} is not used: line {number} overrides it", warning=True))
        else:
            values[target] = _value(option, target)
            notes.append(_applied(option, target, values[target]))
    if "process_count" in values and "processes_per_node" in values:
        values["--ntasks-per-node"] = str(values.pop("processes_per_node"))
    if values.get("exclusive_node_use") is False:
        values["--oversubscribe"] = "--oversubscribe"
    return Header(values, notes)


def without_effect(script: str) -> list[Note]:
    """Note that a script's directives have no effect without a scheduler."""
    lines = scheduler_lines(script)
    if not lines:
        return []
    also = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
    return [
        Note(
            f"line {lines[0].number}: {lines[0].text}{also}: no effect on a local backend, which has no scheduler"
        )
    ]


def _options(line: Line) -> Iterator[_Option]:
    """Split one line into options, as sbatch does.

    Raises:
        SpecError: The line is for another scheduler, or sbatch would not understand it.
    """
    if line.scheduler in _BURST_BUFFERS:
        raise _refusal(
            line, "Slurm never reads the lines of this script; use attributes: {--bb: …} or {--bbf: …} instead"
        )
    if line.scheduler != SLURM:
        raise _refusal(
            line,
            f"it is for {line.scheduler}, but this backend uses Slurm; set resources and attributes instead",
        )
    try:
        words = shlex.split(line.rest, comments=True)
    except ValueError as err:
        raise _refusal(line, f"{str(err)[0].lower()}{str(err)[1:]}") from None
    while words:
        word = words.pop(0)
        if word in ("hetjob", "packjob", ":"):
            raise _refusal(line, "it creates a heterogeneous job, whose ids psik cannot track; submit two jobs")
        if not re.match("--[a-z]|-[a-zA-Z]", word):
            raise _refusal(line, f"{word!r} is not an sbatch option")
        written, equals, value = word.partition("=") if word.startswith("--") else (word[:2], "", word[2:])
        name = long_name(written)
        if name in FLAGS:
            if value and not equals:
                words.insert(0, f"-{value}")  # -HO is -H -O
            yield _Option(line, name, value if equals else None, word if equals else written)
            continue
        if not equals and not value and words and not words[0].startswith("-"):
            value = words.pop(0)
            word = f"{word} {value}"
        if name in VALUED and not value:
            raise _refusal(line, f"{written} needs a value")
        yield _Option(line, name, value or None, word)


def _not_used(option: _Option) -> str | None:
    if option.name == "--export" and (option.value or "").upper() in ("ALL", "NONE", "NIL"):
        return "a job gets nothing from the endpoint's environment, and its steps get all of the job's own"
    return _NOT_USED.get(option.name)


def _target(option: _Option) -> str:
    """The field or long option that a directive sets."""
    name, value = option.name, option.value or ""
    if name in ("--oversubscribe", "--share") or (name == "--exclusive" and not value):
        return "exclusive_node_use"
    if name == "--nodes" and re.fullmatch("[0-9]+-[0-9]+", value):
        return name
    if name == "--signal":
        asked = batch_signal(value)
        return "warn_before" if asked and asked.name == WARNING_SIGNAL else name
    if name == "--gpus-per-task" and not re.fullmatch("[0-9]+", value):
        return name
    return _FIELDS.get(name, name)


def _value(option: _Option, target: str) -> Any:
    """What a directive sets its field or option to."""
    text = option.value
    if target not in RESOURCE_OF and target not in _CHECKS and (why := why_forbidden(target)):
        raise _refusal(option.line, why)
    try:
        if target == "exclusive_node_use":
            return option.name == "--exclusive"
        if target == "memory" and (found := re.fullmatch("([0-9]+)([kmgtKMGT]?)[bB]?", text or "")):
            text = found[1] + found[2].upper()
        if target in ResourceSpec.model_fields:
            return getattr(ResourceSpec.model_validate({target: text}), target)
        if check := _CHECKS.get(target):
            return check(text or "")
        return check_value(target, True if text is None else text)
    except ValidationError as err:
        raise _refusal(option.line, explain(err)) from None
    except ValueError as err:
        raise _refusal(option.line, str(err)) from None


_CHECKS: dict[str, Callable[[str], str | int]] = {
    "name": lambda text: plain_word(text, "the job's name"),
    "directory": check_directory,
    "warn_before": seconds_before,
}


def _overruled(option: _Option, own: str, given: Mapping[str, Any]) -> Note:
    target = _target(option)
    with contextlib.suppress(SpecError):
        if own == target and _value(option, target) == given[own]:
            return _applied(option, target, given[own])
    return Note(f"{_at(option)} is not used: the job spec has {_words(own, given[own])}", warning=True)


def _applied(option: _Option, target: str, value: Any) -> Note:
    return Note(f"{_at(option)} → {_words(target, value)}")


def _words(target: str, value: Any) -> str:
    return target if value == target else f"{target} {value}"


def _at(option: _Option) -> str:
    return f"line {option.line.number}: {option.text}"


def _refusal(line: Line, why: str) -> SpecError:
    return SpecError(
        f"Line {line.number} of the script, {line.text!r}, cannot be used here: {why}. To ignore all scheduler "
        "lines of the script, write directives: ignore in the job spec."
    )
