"""A crowd of flow processes: `python -m tests.outcomes.waiter DIRECTORY` forks one for each line of `handles`.

The one process imports everything and does nothing else before it forks, so that a crowd begins soon.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from prefect import flow

from prefect_psik import JobHandle, wait_for_job


@flow
def wait(handle: JobHandle, ready: str) -> str:
    """Wait for a job."""
    Path(ready).touch()
    return wait_for_job(handle).stdout


def main(directory: Path) -> int:
    """Run all flows; return how many failed."""
    handles = (directory / "handles").read_text().splitlines()
    children = [_fork(directory, number, text) for number, text in enumerate(handles)]
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def _fork(directory: Path, number: int, text: str) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with (directory / f"out-{number}").open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        answer = wait(JobHandle.model_validate_json(text), str(directory / f"ready-{number}"))
        (directory / f"answer-{number}").write_text(answer)
        code = 0
    except BaseException:  # noqa: BLE001 - a fork never goes on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
