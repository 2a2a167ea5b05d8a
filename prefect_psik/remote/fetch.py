"""A job's results: the operation `check` verifies that they are complete, `fetch` returns small files."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import time
from typing import Any, Callable, Iterable, Iterator

from prefect_psik.remote.files import _read_json, _write_whole
from prefect_psik.remote.job_directory import _directory, _owner
from prefect_psik.remote.matches import TooMuch, _below, _expand, _matching, _Walk
from prefect_psik.remote.ownership import _job_directory
from prefect_psik.remote.wire import DEFECTS, _defect, _existing_prefix, _jobs, _os_trouble

OUTPUT_BYTES = 3 * 1024 * 1024
#: Most files that one job returns, and how many of the others are listed by name.
OUTPUT_FILES = 5000
TOLD = 100
#: After this time, or with this many bytes in its answer, a call leaves its remaining jobs to the next one.
LOOK_CALL_SECONDS = 30.0
LOOK_CALL_BYTES = 3 * 1024 * 1024
#: How long a report on the results is reused.
FOUND_SECONDS = 30.0
#: How far the clock of another file system may be behind that of the prefix.
SKEW_SECONDS = 2.0
#: How many matches that do not count are described for each entry.
DESCRIBED = 3


def check(payload: dict[str, Any]) -> dict[str, Any]:
    """Check that everything the jobs' `expect` and `outputs` name exists, and is complete and fresh.

    Payload:
        prefix, and jobs: each with stamp and jobndx.

    Returns:
        `{"jobs": {stamp: {"found": [report]}, {"missing": true} or {"later": true}}}`, a report for each entry:
        `{"path", "expanded", "count", "at_least", "matches", "good", "wrong": [{"name", "why", ...}], "unread":
        directories, "trouble"}`.
    """
    return _for_each("check", payload, lambda base, jobndx, record: {"found": _found(base, jobndx, record)})


def _for_each(
    operation: str, payload: dict[str, Any], work: Callable[[str, int, dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Answer for each job separately; jobs for which the call has no time left get `{"later": true}`."""
    prefix, begin, spent = _existing_prefix(payload), time.monotonic(), 0
    answers: dict[str, Any] = {}
    for job in _jobs(payload):
        try:
            base = _job_directory(prefix, job["stamp"])
            if time.monotonic() - begin > LOOK_CALL_SECONDS or spent > LOOK_CALL_BYTES:
                answers[job["stamp"]] = {"later": True}
            elif (record := _read_json(os.path.join(base, "prefect", "job.json"))) is None:
                answers[job["stamp"]] = {"missing": True}
            else:
                answers[job["stamp"]] = work(base, job.get("jobndx") or 1, record)
        except OSError as err:
            answers[job["stamp"]] = {"error": _os_trouble(err).answer}
        except DEFECTS as err:
            answers[job["stamp"]] = {"error": _defect(operation, err).answer}
        spent += len(json.dumps(answers[job["stamp"]]))
    return {"jobs": answers}


def _found(base: str, jobndx: int, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The reports on all entries. They are reused for a while; `status` returns the last ones."""
    path = os.path.join(base, "prefect", f"found.{jobndx}")
    wanted, known = _wanted(record), _read_json(path) or {}
    at, found = known.get("time"), known.get("found")
    is_new = isinstance(at, float) and 0 <= time.time() - at < FOUND_SECONDS
    if is_new and isinstance(found, list) and len(found) == len(wanted):
        return found
    place, walk = _Place(base, record, jobndx), _Walk()
    found = [_report(place, entry, walk) for entry in wanted]
    for report in [report for report in found if report["wrong"]][TOLD:]:
        report["wrong"] = []
    with contextlib.suppress(OSError):
        _write_whole(path, json.dumps({"time": time.time(), "found": found}).encode())
    return found


def _wanted(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of `expect` and `outputs`, each with all its fields; a plain string is a path."""
    defaults = {"count": None, "at_least": 1, "min_bytes": 1, "fresh": "run"}
    return [
        {**defaults, **({"path": entry} if isinstance(entry, str) else entry), "brought": kind == "outputs"}
        for kind in ("expect", "outputs")
        for entry in record[kind]
    ]


class _Place:
    """Where a job run left its results, and from what time on a file counts as its own."""

    def __init__(self, base: str, record: dict[str, Any], jobndx: int) -> None:
        self.directory = _directory(base, record)
        self.top = os.path.realpath(self.directory)
        # A job that Slurm starts again gets a new process file from the launcher, but keeps its run number.
        started = f"process.{jobndx}.{_owner(base, jobndx)}"
        self.begins = {
            "run": _mark(base, started, f"intent.{jobndx}"),
            "job": _mark(base, "intent.1", f"process.1.{_owner(base, 1)}"),
        }
        self._real: dict[str, str] = {}

    def is_inside(self, path: str) -> bool:
        """Whether a path, links followed, is in the job's directory."""
        real = os.path.realpath(path) if os.path.islink(path) else self.above(path)
        return (real + os.sep).startswith(self.top + os.sep)

    def above(self, path: str) -> str:
        """The directory that a path is in, links followed."""
        name = os.path.dirname(path)
        if name not in self._real:
            self._real[name] = os.path.realpath(name)
        return self._real[name]

    def begun(self, fresh: str, device: int) -> float:
        """When the run began, by the file system's clock; slightly earlier if it is not the prefix's."""
        mark = self.begins.get(fresh)
        if mark is None:
            return 0.0
        return mark.st_mtime if device == mark.st_dev else mark.st_mtime - SKEW_SECONDS

    def name(self, path: str) -> str:
        """A path for messages: relative to the job's directory if it is inside."""
        short = os.path.relpath(path, self.directory) if path.startswith(self.directory + os.sep) else path
        return _readable(short)


def _mark(base: str, *names: str) -> os.stat_result | None:
    """The status of the first of these records that exists; its time is by the file server's clock."""
    for name in names:
        with contextlib.suppress(OSError):
            return os.stat(os.path.join(base, "prefect", name))
    return None


def _report(place: _Place, wanted: dict[str, Any], walk: _Walk) -> dict[str, Any]:
    """Count the matches of an entry, and describe those that do not count; stop once there are enough."""
    matches, good, trouble = 0, 0, None
    wrong: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    walk.unread = {}
    enough = float("inf") if wanted["count"] is not None else wanted["at_least"]
    try:
        for path in _matching(place.directory, wanted["path"], walk):
            walk.pay()
            above = os.path.dirname(path)
            if names.setdefault(place.above(path), above) != above:
                continue  # its directory was already seen under another name
            matches += 1
            why = _wrong(place, path, wanted, walk)
            if why is None:
                good += 1
            elif len(wrong) < DESCRIBED:
                wrong.append({"name": place.name(path), **why})
            if good >= enough:
                break
    except TooMuch as err:
        trouble = str(err)
    return {
        **{key: wanted[key] for key in ("path", "count", "at_least")},
        "expanded": _expand(wanted["path"]),
        "matches": matches,
        "good": good,
        "unread": len(walk.unread),
        "wrong": wrong + _unread(place, walk)[:DESCRIBED],
        "trouble": trouble,
    }


def _unread(place: _Place, walk: _Walk) -> list[dict[str, Any]]:
    return [{"name": place.name(path), "why": "unread", "text": text} for path, text in walk.unread.items()]


def _wrong(place: _Place, path: str, wanted: dict[str, Any], walk: _Walk) -> dict[str, Any] | None:
    """Why a match is not a result of this run; None if it is one."""
    try:
        found = os.stat(path)
    except OSError as err:
        if os.path.islink(path):
            return {"why": "dangling", "target": _readable(os.readlink(path))}
        return {"why": "unread", "text": err.strerror or str(err)}
    if wanted["brought"] and not place.is_inside(path):
        return {"why": "outside", "target": _readable(os.path.realpath(path))}
    begun = place.begun(wanted["fresh"], found.st_dev)
    if stat.S_ISDIR(found.st_mode):
        return _wrong_directory(path, wanted["min_bytes"], begun, walk)
    if not stat.S_ISREG(found.st_mode):
        return {"why": "special", "kind": _kind(found.st_mode)}
    if found.st_size < wanted["min_bytes"]:
        return {"why": "small", "size": found.st_size, "min_bytes": wanted["min_bytes"]}
    return None if _written(found) >= begun else {"why": "old", "written": _written(found), "begun": begun}


def _wrong_directory(path: str, min_bytes: int, begun: float, walk: _Walk) -> dict[str, Any] | None:
    """A directory must contain, at any depth, a file written since then; of any size, unless min_bytes is set."""
    newest = None
    for entry in _below(path, walk):
        with contextlib.suppress(OSError):
            found = entry.stat()
            if stat.S_ISREG(found.st_mode) and (min_bytes == 1 or found.st_size >= min_bytes):
                newest = max(newest or 0.0, _written(found))
                if newest >= begun:
                    return None
    if path in walk.unread:
        return {"why": "unread", "text": walk.unread[path]}
    return {"why": "hollow"} if newest is None else {"why": "old", "written": newest, "begun": begun}


def _written(found: os.stat_result) -> float:
    """When a file was last written.

    `cp -p`, `rsync -a` and `tar` set an old modification time; the change time is the server's own. A modification
    time in the future is not trusted, either.
    """
    return (
        found.st_ctime if found.st_mtime > found.st_ctime + SKEW_SECONDS else max(found.st_mtime, found.st_ctime)
    )


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return kinds.get(stat.S_IFMT(mode), "special file")


def _readable(path: str) -> str:
    r"""A path as text that JSON can hold; bytes that are not UTF-8 as \xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# ----------------------------------------------------------------------------------------------------- fetch


def fetch(payload: dict[str, Any]) -> dict[str, Any]:
    """Return the small result files that the job's `outputs` name; for a directory, everything in it.

    Returns:
        `{"jobs": {stamp: {"entries": {name: entry}, "sizes": {name: bytes}, "files": {name: base64}, "good":
        {entry: number}, "left": [{"name", "why", ...}], "more": number, "trouble": text}}}`: which entry names
        a file, its size and contents; how many files of an entry count, returned or not; some that are not
        returned, and how many more of these there are. Names are paths below the job's directory. A job that does
        not fit into this answer is `{"later": true}`.
    """
    budget = OUTPUT_BYTES

    def bring(base: str, jobndx: int, record: dict[str, Any]) -> dict[str, Any]:
        nonlocal budget
        answer, spent, crowded = _brought(_Place(base, record, jobndx), record, budget)
        if crowded and budget < OUTPUT_BYTES:
            return {"later": True}  # it may fit into an answer of its own
        budget -= spent
        return answer

    return _for_each("fetch", payload, bring)


def _brought(place: _Place, record: dict[str, Any], budget: int) -> tuple[dict[str, Any], int, bool]:
    """The output files of a job, how much of the budget they use, and whether one of them did not fit."""
    met: dict[str, str] = {}
    entries: dict[str, str] = {}
    good: dict[str, int] = {}
    files: dict[str, str] = {}
    sizes: dict[str, int] = {}
    left: list[dict[str, Any]] = []
    trouble, spent, walk = None, 0, _Walk()
    try:
        for entry, path, why in _output_files(place, record, walk):
            name, data = place.name(path), b""
            if met.get(name) == path:
                continue
            if name in met:
                why = {"why": "name"}
            met[name] = path
            cost = 3 * len(json.dumps(name))  # the answer contains it three times
            if why is None and len(files) >= OUTPUT_FILES:
                why = {"why": "number", "most": OUTPUT_FILES}
            elif why is None:
                data, why = _content(path, budget - spent - cost)
            if why is None or why["why"] in ("name", "number", "size"):
                good[entry] = good.get(entry, 0) + 1
            if why is None:
                files[name], sizes[name], entries[name] = base64.b64encode(data).decode(), len(data), entry
                spent += len(data) + cost
            else:
                left.append({"name": name, **why})
    except TooMuch as err:
        trouble = str(err)
    left += _unread(place, walk)
    answer = {"entries": entries, "sizes": sizes, "files": files, "good": good, "trouble": trouble}
    crowded = any(one["why"] == "size" for one in left)
    return {**answer, "left": left[:TOLD], "more": max(0, len(left) - TOLD)}, spent, crowded


def _output_files(
    place: _Place, record: dict[str, Any], walk: _Walk
) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """Yield the files that `outputs` name: the entry, the path, and why the file is not returned.

    A link to a directory is followed if an entry names it, not if it lies below a directory.
    """
    for wanted in _wanted(record):
        if not wanted["brought"]:
            continue
        entry, wanted = wanted["path"], {**wanted, "min_bytes": 0}
        for path in _matching(place.directory, entry, walk):
            below: Iterable[str] = [path]
            if os.path.isdir(path) and place.is_inside(path) and not ("**" in entry and os.path.islink(path)):
                below = (found.path for found in _below(path, walk))
            for one in below:
                walk.pay()
                is_link = os.path.islink(one) and os.path.isdir(one)
                yield entry, one, {"why": "link"} if is_link else _wrong(place, one, wanted, walk)


def _content(path: str, most: int) -> tuple[bytes, dict[str, Any] | None]:
    """Read a plain file of at most `most` bytes; if not, say why. A file that has become a FIFO never blocks."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                return b"", {"why": "special", "kind": _kind(found.st_mode)}
            data = file.read(most + 1) if 0 <= found.st_size <= most else b""
            if len(data) > most or found.st_size > most:
                return b"", {"why": "size", "size": found.st_size}
            return data, None
    except OSError as err:
        return b"", {"why": "unread", "text": err.strerror or str(err)}
