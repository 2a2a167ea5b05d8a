"""Small result files: the operation `fetch`."""

from __future__ import annotations

import base64
import glob
import os
from typing import Any

from prefect_psik.remote.directory import _directory
from prefect_psik.remote.files import _read_json
from prefect_psik.remote.payload import _jobs, _prefix

OUTPUT_BYTES = 3 * 1024 * 1024


def fetch(payload: dict[str, Any]) -> dict[str, Any]:
    """Bring back the small result files that the job's `outputs` name.

    Returns:
        `{"jobs": {stamp: {"files": {path: base64}, "too_large": {path: size}}}}`, paths relative to the
        job's directory. What does not fit into the answer is in too_large.
    """
    prefix = _prefix(payload)
    budget = OUTPUT_BYTES
    answers: dict[str, Any] = {}
    for job in _jobs(payload):
        base = os.path.join(prefix, job["stamp"])
        record = _read_json(os.path.join(base, "prefect", "job.json"))
        if record is None:
            answers[job["stamp"]] = {"missing": True}
            continue
        files: dict[str, str] = {}
        too_large: dict[str, int] = {}
        for pattern in record["outputs"]:
            for name, path in _output_files(_directory(base, record), pattern).items():
                size = os.stat(path).st_size
                if name in files:
                    continue
                if size > budget:
                    too_large[name] = size
                    continue
                with open(path, "rb") as file:
                    data = file.read(budget)
                budget -= len(data)
                files[name] = base64.b64encode(data).decode()
        answers[job["stamp"]] = {"files": files, "too_large": too_large}
    return {"jobs": answers}


def _output_files(directory: str, pattern: str) -> dict[str, str]:
    """Plain files of the job's directory that a glob matches: name -> path; links out of it do not count."""
    top = os.path.realpath(directory)
    found = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(top), pattern), recursive=True)):
        real = os.path.realpath(path)
        if os.path.isfile(real) and real.startswith(top + os.sep):
            found[os.fsencode(os.path.relpath(path, top)).decode("utf-8", "replace")] = real
    return found
