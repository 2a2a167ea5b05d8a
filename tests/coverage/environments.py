"""Measured environments: each Python process that starts in one records what it executes, until the run ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect_psik import remote
from prefect_psik.remote import PARTS, letter

PACKAGE = Path(remote.__file__).parent.parent
_MODULE = "prefect_psik_coverage"
_FIRST = "from __future__ import annotations"
#: SIGTERM ends many processes of the tests; what they executed until then counts.
_CONFIG = """\
[run]
branch = true
parallel = true
sigterm = true
include = {package}/*
data_file = {data}/data
disable_warnings = no-data-collected, module-not-measured

[report]
exclude_also =
    # What the letter leaves out: its parts import each other for readers and type checkers only.
    ^from prefect_psik\\.remote\\.\\w+ import
"""


def parts() -> list[tuple[str, str]]:
    """Return path and text of each part as the letter has it, an empty line for each that it leaves out.

    Raises:
        ValueError: The letter is joined in another way than this function knows.
    """
    found = []
    lines = deque(letter().splitlines())
    if lines.popleft() != _FIRST:
        raise ValueError("The letter begins with another line.")
    for part in PARTS:
        if [lines.popleft(), lines.popleft()] != ["", f"# {part}"]:
            raise ValueError(f"Part {part} is not where it should be in the letter.")
        path = PACKAGE / "remote" / f"{part}.py"
        text = []
        for line in path.read_text(encoding="utf-8").splitlines():
            # The letter says once for all parts what each of them begins with.
            kept = line if line == _FIRST else lines.popleft() if line == lines[0] else ""
            text.append(kept)
        found.append((str(path), "\n".join(text)))
    if len(lines) != 2 or not lines[1].startswith("LETTER = "):
        raise ValueError("The letter ends with something else than its hash.")
    return found


def write_config(data: Path) -> Path:
    """Write coverage's configuration into the directory of a run's data, which every user may write to."""
    data.chmod(0o1777)
    config = data / "coverage.ini"
    config.write_text(_CONFIG.format(package=PACKAGE, data=data), encoding="utf-8")
    return config


def write_module(folder: Path, config: Path) -> None:
    """Write the module that measures the process which imports it."""
    startup = Path(__file__).with_name("startup.py")
    shutil.copyfile(startup, folder / f"{_MODULE}.py")
    settings = {
        "pid": os.getpid(),
        "config": str(config),
        "hash": letter().rsplit('"', 2)[1],
        "parts": parts(),
    }
    (folder / f"{_MODULE}.json").write_text(json.dumps(settings), encoding="utf-8")


@contextmanager
def measured(python: Path, config: Path) -> Iterator[None]:
    """Have every process of this interpreter's environment measured while the block runs."""
    answer = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    folder = Path(answer.stdout.strip())
    hook = folder / f"{_MODULE}.pth"
    write_module(folder, config)
    hook.write_text(f"import {_MODULE}\n", encoding="utf-8")
    try:
        yield
    finally:
        hook.unlink(missing_ok=True)
        for suffix in (".py", ".json"):
            (folder / f"{_MODULE}{suffix}").unlink(missing_ok=True)
