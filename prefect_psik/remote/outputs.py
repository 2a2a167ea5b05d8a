"""What a job left: the operation `check` looks whether it is all there, `fetch` brings small files back."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import time
from typing import Any, Callable, Iterator

from prefect_psik.remote.directory import _directory, _owner
from prefect_psik.remote.files import _read_json, _write_whole
from prefect_psik.remote.matches import TooMuch, _below, _matching, _Walk
from prefect_psik.remote.payload import DEFECTS, _defect, _jobs, _os_trouble, _prefix

OUTPUT_BYTES = 3 * 1024 * 1024
#: Files that one job brings back, and how many of the others are told by name.
OUTPUT_FILES = 5000
TOLD = 100
#: A call that has looked for so long leaves its other jobs to the next one.
LOOK_CALL_SECONDS = 30.0
#: How long a look at the results stands for the next.
FOUND_SECONDS = 30.0
#: What the clock of another file system may be behind that of the prefix.
SKEW_SECONDS = 10.0
#: Matches that do not count and are described, for each entry.
DESCRIBED = 3


def check(payload: dict[str, Any]) -> dict[str, Any]:
    """Look whether what the jobs' `expect` and `outputs` name is there, complete and fresh.

    Payload:
        prefix, and jobs: each with stamp and jobndx.

    Returns:
        `{"jobs": {stamp: {"found": [report]}, {"missing": true} or {"later": true}}}`, a report for each entry:
        `{"path", "count", "at_least", "matches", "good", "wrong": [{"name", "why", ...}], "trouble"}`.
    """
    return _for_each("check", payload, lambda base, jobndx, record: {"found": _found(base, jobndx, record)})


def _for_each(
    operation: str, payload: dict[str, Any], work: Callable[[str, int, dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Answer for each job by itself; those for which a call has no time left come later."""
    prefix, begin = _prefix(payload), time.monotonic()
    answers: dict[str, Any] = {}
    for job in _jobs(payload):
        base = os.path.join(prefix, job["stamp"])
        try:
            if time.monotonic() - begin > LOOK_CALL_SECONDS:
                answers[job["stamp"]] = {"later": True}
            elif (record := _read_json(os.path.join(base, "prefect", "job.json"))) is None:
                answers[job["stamp"]] = {"missing": True}
            else:
                answers[job["stamp"]] = work(base, job.get("jobndx") or 1, record)
        except OSError as err:
            answers[job["stamp"]] = {"error": _os_trouble(err).answer}
        except DEFECTS as err:
            answers[job["stamp"]] = {"error": _defect(operation, err).answer}
    return {"jobs": answers}


def _found(base: str, jobndx: int, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The reports on all entries. A look stands for a while; status tells the last one."""
    path = os.path.join(base, "prefect", f"found.{jobndx}")
    known = _read_json(path) or {}
    if not 0 <= time.time() - known.get("time", 0.0) < FOUND_SECONDS:
        place, walk = _Place(base, record, jobndx), _Walk()
        known = {"time": time.time(), "found": [_report(place, wanted, walk) for wanted in _wanted(record)]}
        with contextlib.suppress(OSError):
            _write_whole(path, json.dumps(known).encode())
    return list(known["found"])


def _wanted(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of `expect` and `outputs`, each with all its fields; a text alone is a path."""
    defaults = {"count": None, "at_least": 1, "min_bytes": 1, "fresh": "run"}
    return [
        {**defaults, **({"path": entry} if isinstance(entry, str) else entry), "brought": kind == "outputs"}
        for kind in ("expect", "outputs")
        for entry in record[kind]
    ]


class _Place:
    """Where a run of a job left its results, and since when they are its own."""

    def __init__(self, base: str, record: dict[str, Any], jobndx: int) -> None:
        self.directory = _directory(base, record)
        self.top = os.path.realpath(self.directory)
        self.begins = {"run": _mark(base, jobndx), "job": _mark(base, 1)}
        self._inside: dict[str, bool] = {}

    def is_inside(self, path: str) -> bool:
        """Whether a path, links followed, is in the job's directory."""
        above = os.path.dirname(path)
        if os.path.islink(path):
            return os.path.realpath(path).startswith(self.top + os.sep)
        if above not in self._inside:
            self._inside[above] = (os.path.realpath(above) + os.sep).startswith(self.top + os.sep)
        return self._inside[above]

    def begun(self, fresh: str, device: int) -> float:
        """When the run began, by the clock of a file system; of another one than the prefix's, somewhat before."""
        mark = self.begins.get(fresh)
        if mark is None:
            return 0.0
        return mark.st_mtime if device == mark.st_dev else mark.st_mtime - SKEW_SECONDS

    def name(self, path: str) -> str:
        r"""A path as people read it: below the job's directory; bytes that are no UTF-8 as \xNN."""
        short = os.path.relpath(path, self.directory) if path.startswith(self.directory + os.sep) else path
        return os.fsencode(short).decode("utf-8", "backslashreplace")


def _mark(base: str, jobndx: int) -> os.stat_result | None:
    """What the launcher wrote when a run last started, by the file server's clock; else what preceded it."""
    for name in (f"process.{jobndx}.{_owner(base, jobndx)}", f"intent.{jobndx}"):
        with contextlib.suppress(OSError):
            return os.stat(os.path.join(base, "prefect", name))
    return None


def _report(place: _Place, wanted: dict[str, Any], walk: _Walk) -> dict[str, Any]:
    """Count the matches of an entry, and describe those that do not count; stop when there are enough."""
    report = {key: wanted[key] for key in ("path", "count", "at_least")} | {
        "matches": 0,
        "good": 0,
        "trouble": None,
    }
    wrong: list[dict[str, Any]] = []
    walk.unread = {}
    enough = float("inf") if wanted["count"] is not None else wanted["at_least"]
    try:
        for path in _matching(place.directory, wanted["path"], walk):
            report["matches"] += 1
            why = _wrong(place, path, wanted, walk)
            if why is None:
                report["good"] += 1
            elif len(wrong) < DESCRIBED:
                wrong.append({"name": place.name(path), **why})
            if report["good"] >= enough:
                break
    except TooMuch as err:
        report["trouble"] = str(err)
    unread = [{"name": place.name(path), "why": "unread", "text": text} for path, text in walk.unread.items()]
    report["wrong"] = wrong + unread[:DESCRIBED]
    return report


def _wrong(place: _Place, path: str, wanted: dict[str, Any], walk: _Walk) -> dict[str, Any] | None:
    """Why a match is no result of this run; None if it is one."""
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
        return _wrong_directory(path, begun, walk)
    if not stat.S_ISREG(found.st_mode):
        return {"why": "special", "kind": _kind(found.st_mode)}
    if found.st_size < wanted["min_bytes"]:
        return {"why": "small", "size": found.st_size, "min_bytes": wanted["min_bytes"]}
    return None if _written(found) >= begun else {"why": "old", "written": _written(found), "begun": begun}


def _wrong_directory(path: str, begun: float, walk: _Walk) -> dict[str, Any] | None:
    """A directory needs something in it, and something in it, or itself, written since."""
    if not walk.listed(path):
        return {"why": "unread", "text": walk.unread[path]} if path in walk.unread else {"why": "hollow"}
    newest = _written(os.stat(path))
    left = [path]
    while left and newest < begun:
        for entry in walk.listed(left.pop()):
            with contextlib.suppress(OSError):
                newest = max(newest, _written(entry.stat(follow_symlinks=False)))
            if entry.is_dir(follow_symlinks=False):
                left.append(entry.path)
    return None if newest >= begun else {"why": "old", "written": newest, "begun": begun}


def _written(found: os.stat_result) -> float:
    """`cp -p`, `rsync -a` and `tar` set an old time of modification; that of change is the server's own."""
    return max(found.st_mtime, found.st_ctime)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return kinds.get(stat.S_IFMT(mode), "special file")


def _readable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# ----------------------------------------------------------------------------------------------------- fetch


def fetch(payload: dict[str, Any]) -> dict[str, Any]:
    """Bring back the small result files that the job's `outputs` name; a directory brings all that is in it.

    Returns:
        `{"jobs": {stamp: {"matched": {entry: number}, "sizes": {name: bytes}, "files": {name: base64}, "left":
        [{"name", "why", ...}], "more": number, "trouble": text}}}`: how many files each entry has, those that
        come and their contents, some that do not come, and how many more of these there are. Names are paths
        below the job's directory. A job for which this answer has no room is `{"later": true}`.
    """
    budget = OUTPUT_BYTES

    def bring(base: str, jobndx: int, record: dict[str, Any]) -> dict[str, Any]:
        nonlocal budget
        answer = _brought(_Place(base, record, jobndx), record, budget)
        if budget < OUTPUT_BYTES and any(one["why"] == "size" for one in answer["left"]):
            return {"later": True}  # with an answer to itself it may have room
        budget -= sum(size + 2 * len(name) for name, size in answer["sizes"].items())
        return answer

    return _for_each("fetch", payload, bring)


def _brought(place: _Place, record: dict[str, Any], budget: int) -> dict[str, Any]:
    """The output files of a job, as far as the budget goes."""
    met: dict[str, str] = {}
    matched: dict[str, int] = {}
    files: dict[str, str] = {}
    sizes: dict[str, int] = {}
    left: list[dict[str, Any]] = []
    trouble = None
    try:
        for wanted, path, why in _output_files(place, record, _Walk()):
            matched[wanted] = matched.get(wanted, 0) + 1
            name = place.name(path)
            if met.get(name) == path:
                continue
            if name in met:
                why = {"why": "name"}
            met[name] = path
            if why is None:
                room = budget - 2 * len(name) if len(files) < OUTPUT_FILES else -1
                data, why = _content(path, room)
                if why is None:
                    files[name], sizes[name] = base64.b64encode(data).decode(), len(data)
                    budget -= len(data) + 2 * len(name)
                    continue
            left.append({"name": name, **why})
    except TooMuch as err:
        trouble = str(err)
    more = max(0, len(left) - TOLD)
    found = {"matched": matched, "sizes": sizes, "files": files, "left": left[:TOLD], "more": more}
    return {**found, "trouble": trouble}


def _output_files(
    place: _Place, record: dict[str, Any], walk: _Walk
) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """Yield the files that `outputs` name: by which entry, where, and why one does not come."""
    for wanted in _wanted(record):
        if wanted["brought"]:
            wanted = {**wanted, "min_bytes": 0}
            for path in _matching(place.directory, wanted["path"], walk):
                if os.path.isdir(path) and place.is_inside(path):
                    for entry in _below(path, walk):
                        yield wanted["path"], entry.path, _wrong(place, entry.path, wanted, walk)
                else:
                    yield wanted["path"], path, _wrong(place, path, wanted, walk)


def _content(path: str, most: int) -> tuple[bytes, dict[str, Any] | None]:
    """Read a plain file of at most so many bytes; else say why not. What became a FIFO since never blocks."""
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
