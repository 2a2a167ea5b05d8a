"""What the facility found of a job's results -> sentences, and its output files: pure functions."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from prefect_psik.exceptions import RemoteCodeError

#: Entries that a message tells; more are counted.
_TOLD = 5


def unmet(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Entries of `expect` and `outputs` that a job did not meet, each with a sentence.

    Args:
        found: The reports of `remote.check`.
    """
    return {report["path"]: text for report in found if (text := _unmet(report)) is not None}


def _unmet(report: Mapping[str, Any]) -> str | None:
    path, good, matches = report["path"], report["good"], report["matches"]
    count, at_least = report["count"], report["at_least"]
    if count is None and good >= at_least:
        return None
    if report["trouble"]:
        return f"the search for {path} stopped because {report['trouble']}: name a narrower path"
    if count is not None and good == matches == count:
        return None
    wrong = [described(one) for one in report["wrong"]]
    wanted = at_least if count is None else count
    if matches == 0 and wanted == 1:
        return "; ".join([f"nothing matches {path}", *wrong])
    if matches == 1 and wanted == 1 and wrong:
        return wrong[0]
    if matches > wanted and good == matches:
        return f"{matches} match {path} instead of {wanted}"
    besides = f" ({matches - good} more do not count)" if matches > good else ""
    return "; ".join([f"{good} of {wanted} match {path}{besides}", *wrong])


def in_words(sentences: Sequence[str]) -> str:
    """Several sentences as one text, which tells the first and counts the others."""
    more = len(sentences) - _TOLD
    return "; ".join([*sentences[:_TOLD], *([f"and {more} more"] if more > 0 else [])])


def described(wrong: Mapping[str, Any]) -> str:
    """Why a file is no result of this run, or does not come back."""
    name = wrong["name"]
    match wrong["why"]:
        case "dangling":
            return f"{name} is a link to {wrong['target']}, which does not exist"
        case "outside":
            return f"{name} points to {wrong['target']}, outside the job's directory"
        case "special":
            return f"{name} is a {wrong['kind']}, not a file"
        case "hollow":
            return f"{name} is an empty directory"
        case "small" if wrong["size"] == 0:
            return f"{name} is empty"
        case "small":
            return f"{name} has {wrong['size']:,} bytes, fewer than {wrong['min_bytes']:,}"
        case "old":
            return (
                f"{name} was written at {_clock(wrong['written'])}, before this run began at "
                f"{_clock(wrong['begun'])} (if that is intended, set fresh: job or fresh: any)"
            )
        case "size":
            return f"{name} has {wrong['size']:,} bytes, too many to come back here"
        case "name":
            return f"{name} stands for two files with names that are not UTF-8; only the first came back"
        case _:
            return f"{name} cannot be read ({wrong.get('text', wrong['why'])})"


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def brought(answer: Mapping[str, Any], asked: Sequence[str], place: str) -> dict[str, bytes]:
    """The output files of an answer of `remote.fetch`.

    Raises:
        RemoteCodeError: It lacks a file that it announces, holds one that nobody asked for, or one whose
            bytes are not what it says.
    """
    if set(answer["sizes"]) != set(answer["files"]):
        lost = sorted(set(answer["sizes"]).symmetric_difference(answer["files"]))
        raise RemoteCodeError(
            f"The answer of {place} announces different output files than it holds: {lost[:_TOLD]}."
        )
    files = {}
    for name, text in answer["files"].items():
        if not _is_asked_for(name, asked):
            raise RemoteCodeError(f"The answer of {place} holds {name!r}, which the job's outputs do not name.")
        try:
            files[name] = base64.b64decode(text, validate=True)
        except (binascii.Error, TypeError, ValueError) as err:
            raise RemoteCodeError(
                f"The answer of {place} holds {name} in bytes that do not decode: {err}."
            ) from None
        if len(files[name]) != answer["sizes"][name]:
            raise RemoteCodeError(
                f"The answer of {place} holds {len(files[name]):,} bytes of {name}, and announces "
                f"{answer['sizes'][name]:,}."
            )
    return files


def _is_asked_for(name: str, asked: Sequence[str]) -> bool:
    """Whether an entry may bring a file of this name; `*` is taken for more here than at the facility."""
    if name.startswith("/") or ".." in name.split("/"):
        return False
    globs = {path.removeprefix("**/") for path in asked} | set(asked)
    return any(name == glob or fnmatchcase(name, glob) or fnmatchcase(name, f"{glob}/*") for glob in globs) or any(
        name.startswith(f"{path}/") for path in asked
    )


def left_behind(answer: Mapping[str, Any], directory: str) -> list[str]:
    """A warning for each output file that did not come back."""
    fetch = f"Fetch it by Globus Transfer from {directory}."
    warnings = [f"The output {described(one)}. {fetch}" for one in answer["left"]]
    return [*warnings, *([f"{answer['more']:,} more output files did not come back."] if answer["more"] else [])]
