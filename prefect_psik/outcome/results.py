"""Turn the facility's reports on a job's results into sentences, and read its output files: pure functions."""

from __future__ import annotations

import base64
from collections.abc import Container, Sequence
from datetime import UTC, datetime

from prefect_psik.exceptions import RemoteCodeError
from prefect_psik.outcome.answers import FetchAnswer, Report, Wrong
from prefect_psik.plain_text import printable

#: Entries that a message lists; the rest are only counted.
_TOLD = 5


def unmet(found: Sequence[Report]) -> list[tuple[str, str]]:
    """Entries of `expect` and `outputs` that a job did not meet, each with a sentence.

    Args:
        found: The reports of `remote.check`.
    """
    return [(report.path, text) for report in found if (text := _unmet(report)) is not None]


def _unmet(report: Report) -> str | None:
    path, good, matches, count, at_least = report.path, report.good, report.matches, report.count, report.at_least
    if count is None and good >= at_least:
        return None
    if report.trouble:
        return f"the search for {path} stopped because {report.trouble}: use a narrower path"
    if count is not None and good == matches == count and not report.unread:
        return None
    wrong = [described(one) for one in report.wrong]
    wanted = at_least if count is None else count
    if matches == 0 and wanted == 1:
        where = f" ({report.expanded} at the facility)" if report.expanded != path else ""
        return "; ".join([f"nothing matches {path}{where}", *wrong])
    if matches == 1 and wanted == 1 and wrong and not report.unread:
        return wrong[0]
    if matches > wanted and good == matches:
        return f"{matches} match {path} instead of {wanted}"
    besides = f" ({matches - good} more do not count)" if matches > good else ""
    return "; ".join([f"{good} of {wanted} match {path}{besides}", *wrong])


def in_words(sentences: Sequence[str]) -> str:
    """Join several sentences; lists the first few and counts the others."""
    more = len(sentences) - _TOLD
    return "; ".join([*sentences[:_TOLD], *([f"and {more} more"] if more > 0 else [])])


def described(wrong: Wrong) -> str:
    """Why a file does not count as a result of this run, or is not returned."""
    name = printable(wrong.name)
    match wrong.why:
        case "dangling":
            return f"{name} is a link to {printable(wrong.target)}, which does not exist"
        case "outside":
            return f"{name} points to {printable(wrong.target)}, outside the job's directory"
        case "link":
            return f"{name} is a link to a directory; such links are followed only if an entry names them"
        case "number":
            return f"{name} is beyond the limit of {wrong.most:,} output files"
        case "special":
            return f"{name} is a {wrong.kind}, not a file"
        case "hollow":
            return f"{name} is a directory that contains no files"
        case "small" if wrong.size == 0:
            return f"{name} is empty"
        case "small":
            return f"{name} has {_bytes(wrong.size)}, fewer than {wrong.min_bytes:,}"
        case "old":
            return (
                f"{name} was written at {_clock(wrong.written)}, before this run began at "
                f"{_clock(wrong.begun)} (if that is intended, set fresh: job or fresh: any)"
            )
        case "size":
            return f"{name} has {_bytes(wrong.size)}, too many to be returned here"
        case "name":
            return f"{name} stands for two files whose names are not UTF-8; only the first was returned"
        case _:
            return f"{name} cannot be read ({wrong.text or wrong.why})"


def _bytes(size: int) -> str:
    return f"{size:,} byte{'s' if size != 1 else ''}"


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def brought(answer: FetchAnswer, asked: Sequence[str], place: str) -> dict[str, bytes]:
    """The output files of an answer of `remote.fetch`.

    Raises:
        RemoteCodeError: It lacks a file that it lists, contains one that nobody asked for, or one whose
            size is not the one listed.
    """
    if not answer.sizes.keys() == answer.files.keys() == answer.entries.keys():
        lost = sorted(answer.sizes.keys() ^ answer.files.keys() | answer.sizes.keys() ^ answer.entries.keys())
        raise RemoteCodeError(
            f"The answer from {place} contains other output files than it lists: {lost[:_TOLD]}."
        )
    files, entries = {}, set(asked)
    for name, text in answer.files.items():
        if not _is_asked_for(name, answer.entries[name], entries):
            raise RemoteCodeError(
                f"The answer from {place} contains {name!r}, which the job's outputs do not name."
            )
        try:
            files[name] = base64.b64decode(text, validate=True)
        except ValueError as err:
            raise RemoteCodeError(
                f"The answer from {place} contains {name}, but its base64 cannot be decoded: {err}."
            ) from None
        if len(files[name]) != answer.sizes[name]:
            raise RemoteCodeError(
                f"The answer from {place} contains {len(files[name]):,} bytes of {name}, but says that it has "
                f"{answer.sizes[name]:,}."
            )
    return files


def _is_asked_for(name: str, entry: str, asked: Container[str]) -> bool:
    """Whether an entry may return a file of this name; which names a glob matches, the facility decides."""
    if entry not in asked or name.startswith("/") or ".." in name.split("/"):
        return False
    is_glob = any(char in entry for char in "*?[$~")
    return is_glob or name == entry or name.startswith(f"{entry}/")


def left_behind(answer: FetchAnswer, directory: str) -> list[str]:
    """A warning for each output file that was not returned."""
    fetch = f"Fetch it by Globus Transfer from {directory}."
    warnings = [f"The output {described(one)}. {fetch}" for one in answer.left]
    return [*warnings, *([f"{answer.more:,} more output files were not returned."] if answer.more else [])]
