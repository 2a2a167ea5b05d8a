"""Scripts with the features of public ones, on a real Slurm: each does what its author meant, or is refused.

What a testbed lacks stands in `profile`, as a site has it: shifter, module, and the binding of tasks to GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_psik import JobResult, JobSpec, JobState, PsikBackend, ResourceSpec, SpecError, run_job
from tests.integration.slurm_view import account_of
from tests.integration.test_slurm_jobs import backend, client
from tests.testbed.facility import Facility

__all__ = ["backend", "client"]

pytestmark = pytest.mark.usefixtures("prefect_server")

SCRIPTS = Path(__file__).parents[1] / "fixtures" / "scripts"
#: Not asked for by the scripts, which mean machines that are theirs alone.
SHARED = ResourceSpec(exclusive_node_use=False)
#: Of a login shell: `module` sets what modules of a site set; shifter runs the command; srun knows no GPUs here.
PROFILE = """
module() { [ "$1" = load ] && case " $* " in *" rocm "*) export ROCM_PATH=/opt/rocm;; esac; }
mkdir -p "$HOME/stand-ins"
cat > "$HOME/stand-ins/shifter" <<'END'
#!/bin/bash
[[ $1 == --image=* ]] && shift
exec "$@"
END
cat > "$HOME/stand-ins/srun" <<'END'
#!/bin/bash
options=()
for option in "$@"; do [[ $option == --gpu-bind=* ]] || options+=("$option"); done
exec /usr/bin/srun "${options[@]}"
END
chmod +x "$HOME/stand-ins/shifter" "$HOME/stand-ins/srun"
export PATH="$HOME/stand-ins:$PATH"
"""


@pytest.fixture
def profile(facility: Facility) -> Iterator[None]:
    """What a login shell of the facility's user finds."""
    path = Path(f"~{facility.user}").expanduser() / ".bash_profile"
    written = facility.as_user("sh", "-c", f"cat > {path} <<'STOP'\n{PROFILE}STOP\n")
    assert written.returncode == 0, written.stderr
    yield
    facility.as_user("rm", "-rf", str(path), str(path.parent / "stand-ins"))


def run(backend: PsikBackend, name: str, *arguments: str, **fields: object) -> JobResult:
    spec = JobSpec.from_script(SCRIPTS / name, arguments=arguments, resources=SHARED).replace(**fields)
    return run_job(backend, spec, retry_on={"walltime"})


def test_a_reconstruction_as_for_nersc(facility: Facility, backend: PsikBackend, profile: None) -> None:
    expect = [{"path": "rec/scan_0042/slab_*.tiff", "count": 4}]
    result = run(backend, "nersc_reconstruction.sh", "scan_0042", expect=expect)
    assert result.stdout == "4 slabs of scan_0042 on 2 nodes\n"
    assert account_of(facility, result.native_id, "Account,Timelimit,JobName,NNodes") == (
        "proj1|00:05:00|recon-nersc|2"
    )


def test_a_simulation_as_for_frontier_continues_from_its_checkpoint(backend: PsikBackend, profile: None) -> None:
    result = run(backend, "frontier_checkpoint.sh", expect=[{"path": "state.*", "count": 2, "fresh": "job"}])
    assert (result.state, result.handle.jobndx) == (JobState.completed, 2)
    assert sorted(result.stdout.splitlines()) == [
        f"rank {rank} continues from step 50 with /opt/rocm" for rank in (0, 1)
    ]
    first = Path(result.path, "log", "stdout.1").read_text()
    assert first == "warned: asking the simulation for a checkpoint\n"


def test_a_sweep_with_an_array_is_refused_with_its_line(facility: Facility, backend: PsikBackend) -> None:
    before = set(facility.squeue("-h", "-t", "all", "-o", "%i").split())
    words = r"Line 7 of the script, '#SBATCH --array=0-20%5', .* submit one job for each element"
    with pytest.raises(SpecError, match=words):
        run(backend, "tomography_sweep.sh")
    assert set(facility.squeue("-h", "-t", "all", "-o", "%i").split()) <= before
