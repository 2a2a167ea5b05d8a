"""A green job has its results: as many as asked for, with bytes, and written by its own run; on this machine."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, LogFilter

from prefect_psik import (
    Expected,
    JobResult,
    JobSpec,
    JobState,
    MissingOutput,
    poll_job,
    run_job,
    submit_job,
    wait_for_job,
)
from tests.integration.local import backend_at, bash, job_directories, runs, wait_until

pytestmark = pytest.mark.usefixtures("prefect_server")

#: The first run leaves half of the result and fails; the second one writes nothing, and ends well.
STALE = '[ "$jobndx" = 1 ] && { echo half > result.txt; exit 1; }; true'


@pytest.mark.parametrize("by", ["flow retry", "retry_on"])
@pytest.mark.parametrize("wanted", ["expect", "outputs"])
def test_what_a_failed_run_left_is_no_result_of_the_next(prefix: Path, by: str, wanted: str) -> None:
    spec = bash(STALE).replace(**{wanted: ["result.txt"]})

    @flow(retries=1 if by == "flow retry" else 0)
    def recon() -> JobResult:
        again: dict[str, Any] = {"retry_on": {"script"}, "max_runs": 2} if by == "retry_on" else {}
        found: JobResult = run_job(backend_at(prefix), spec, **again)
        return found

    with pytest.raises(
        MissingOutput, match=r"result\.txt was written at .*, before this run began at .*fresh: job"
    ):
        recon()
    assert runs(prefix) == [[1, 2]]


@pytest.mark.parametrize("fresh", ["job", "any"])
def test_a_script_that_goes_on_from_a_checkpoint_says_so(prefix: Path, fresh: str) -> None:
    spec = bash(STALE, outputs=[{"path": "result.txt", "fresh": fresh}])

    @flow(retries=1)
    def recon() -> dict[str, bytes]:
        return run_job(backend_at(prefix), spec).outputs

    assert recon() == {"result.txt": b"half\n"}


def test_what_another_job_left_in_a_shared_directory_is_no_result(prefix: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    first = bash("echo 1 > r.txt", "first", directory=str(shared), outputs=["r.txt"])
    assert run_job(backend_at(prefix), first).outputs == {"r.txt": b"1\n"}
    second = bash("true", "second", directory=str(shared), expect=["r.txt"])
    with pytest.raises(MissingOutput, match=r"r\.txt was written at"):
        run_job(backend_at(prefix), second)
    assert run_job(backend_at(prefix), second.replace(expect=[{"path": "r.txt", "fresh": "any"}])).exit_code == 0


@pytest.mark.parametrize("copy", ["cp -p", "rsync -a", "tar"])
def test_what_was_copied_with_its_old_time_counts(prefix: Path, tmp_path: Path, copy: str) -> None:
    (tmp_path / "old.h5").write_text("x")
    command = f"{copy} {tmp_path}/old.h5 ." if copy != "tar" else f"tar cf - -C {tmp_path} old.h5 | tar xf -"
    script = f"touch -d 1970-01-02 {tmp_path}/old.h5; {command}; stat -c %Y old.h5"
    assert run_job(backend_at(prefix), bash(script, expect=["old.h5"])).stdout == "86400\n"


def test_a_part_of_the_slices_is_not_enough(prefix: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        'name: recon\nscript: "for n in $(seq 900); do echo $n > $n.tiff; done; : > 901.tiff"\n'
        'expect:\n  - "*.tiff": 2160\n  - {path: done, min_bytes: 0}\n'
    )
    with pytest.raises(
        MissingOutput, match=r"900 of 2160 match \*\.tiff.*; 901\.tiff is empty; nothing matches done"
    ):
        run_job(backend_at(prefix), job)


def test_a_link_an_empty_directory_and_a_name_in_brackets(prefix: Path) -> None:
    script = "ln -s /x/y a.h5; mkdir b.h5; mkfifo c.h5; echo 1 > scan1.h5"
    names = ["a.h5", "b.h5", "c.h5", "scan[1].h5"]
    with pytest.raises(MissingOutput) as caught:
        run_job(backend_at(prefix), bash(script, expect=names))
    for text in (
        "a.h5 is a link to /x/y, which does not exist",
        "b.h5 is a directory that contains no files",
        "c.h5 is a FIFO, not a file",
        "nothing matches scan[1].h5",
    ):
        assert text in str(caught.value)
    made = bash("echo 1 > 'scan[1].h5'", expect=["scan[1].h5"], outputs=["scan[[]1].h5"])
    assert run_job(backend_at(prefix), made).outputs == {"scan[1].h5": b"1\n"}


def test_a_whole_zarr_store_comes_back(prefix: Path) -> None:
    made = bash(
        "mkdir -p s.zarr/0; for f in .zgroup 0/.zarray 0/0.0; do echo $f > s.zarr/$f; done", outputs=["s.zarr"]
    )
    assert set(run_job(backend_at(prefix), made).outputs) == {"s.zarr/.zgroup", "s.zarr/0/.zarray", "s.zarr/0/0.0"}


def test_what_does_not_come_back_is_told_in_the_log_and_on_the_card(prefix: Path) -> None:
    script = "head -c 5000000 /dev/zero > big; echo s > small; ln -s /etc/hostname link; mkfifo pipe"

    @flow
    def recon() -> dict[str, bytes]:
        return run_job(backend_at(prefix), bash(script, "leaves", outputs=["*"])).outputs

    state = recon(return_state=True)
    assert state.result() == {"small": b"s\n"}
    says = [
        "The output big has 5,000,000 bytes, too many to be returned here",
        "The output link points to /etc/hostname, outside the job's directory",
        "The output pipe is a FIFO, not a file",
    ]
    with get_client(sync_client=True) as api:
        run = state.state_details.flow_run_id
        wanted = ArtifactFilter.model_validate({"flow_run_id": {"any_": [run]}})
        [card] = [one for one in api.read_artifacts(artifact_filter=wanted) if one.key == "psik-leaves"]
        logs = LogFilter.model_validate({"flow_run_id": {"any_": [run]}})
        warned: list[str] = []

        def told() -> bool:
            warned[:] = [line.message for line in api.read_logs(logs) if line.level == 30]
            return all(any(text in line for line in warned) for text in says)

        wait_until(told)
    assert all(text in str(card.data) for text in says)


def test_many_files_of_one_job_hold_up_no_other(prefix: Path) -> None:
    """A walk is a call of its own: the other job's end is told while it goes on."""
    backend = backend_at(prefix)
    many = (
        "import os\nfor n in range(200_000): os.close(os.open(f'{n}.x', os.O_CREAT))\nopen('last', 'w').write('x')"
    )
    spec = JobSpec(name="many", script=f"#!/usr/bin/env python3\n{many}\n", expect={"**/*.x": 1}, outputs=["last"])
    handle = submit_job(backend, spec)
    wait_until(lambda: (Path(handle.path) / "work" / "last").exists())
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: wait_for_job(handle, backend=backend))
        began = time.monotonic()
        assert run_job(backend, bash("true", "other")).state is JobState.completed
        spent = time.monotonic() - began
        with pytest.raises(MissingOutput, match=r"200000|of 1 match"):
            waiting.result()
    assert spent < 60, "not the length of a call"


def test_results_that_went_before_they_were_looked_at_again_are_missing(prefix: Path) -> None:
    backend = backend_at(prefix)
    handle = submit_job(backend, bash("echo 1 > r.txt", expect=[Expected(path="r.txt")]))
    assert wait_for_job(handle, backend=backend).state is JobState.completed
    [job] = job_directories(prefix)
    (job / "work" / "r.txt").unlink()
    known = job / "prefect" / "found.1"
    known.write_text(json.dumps(json.loads(known.read_text()) | {"time": 0}))
    status = poll_job(handle, backend=backend)
    assert (status.state, status.missing) == (JobState.failed, ["r.txt"])
