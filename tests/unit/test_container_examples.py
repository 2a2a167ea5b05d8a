"""The containers of the guide: each example is a job whose script starts the container as its author means it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.launcher import normalize_script

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "write-a-job.md"
IMAGE = "beamline/tomopy:1.14"
#: Says how it was called; srun runs what it is given, as it does on one node.
SAYS = '#!/bin/bash\nprintf "%s\\n" "${0##*/}" "$@"\n'
RUNS = '#!/bin/bash\nexec "$@"\n'

#: Name of the example -> the command that reaches the machine; WORK is the directory of the job.
COMMANDS = {
    "recon-podman": (
        f"podman-hpc run --rm --volume WORK:/work --workdir /work docker.io/{IMAGE} python reconstruct.py"
    ),
    "recon-shifter": f"shifter --image=docker:{IMAGE} python reconstruct.py",
    "recon-apptainer": ("apptainer exec --nv --bind WORK:/work --pwd /work tomopy_1.14.sif python reconstruct.py"),
}


def examples() -> dict[str, str]:
    texts = re.findall(
        r"^```yaml\n(name: recon-.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return {text.split()[1]: text for text in texts}


def test_the_guide_has_these_examples() -> None:
    assert examples().keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_starts_its_container(name: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(examples()[name])
    spec = JobSpec.from_file(tmp_path / "job.yaml")
    commands, work = tmp_path / "bin", tmp_path / "two words"
    commands.mkdir()
    work.mkdir()
    for command, text in {"srun": RUNS, COMMANDS[name].split()[0]: SAYS}.items():
        (commands / command).write_text(text)
        (commands / command).chmod(0o755)
    interpreter, text = normalize_script(spec.script)
    (tmp_path / "script").write_text(text)
    done = subprocess.run(
        [*interpreter, str(tmp_path / "script")],
        cwd=work,
        env={**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [word.replace("WORK", str(work)) for word in COMMANDS[name].split()]
