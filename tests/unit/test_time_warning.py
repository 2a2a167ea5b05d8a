"""Tests of a warning before the time limit: how it is asked for, and what of it reaches the facility."""

from __future__ import annotations

import re
import signal
import sys
from typing import Any

import pytest

from prefect_psik import BackendAttributes, JobSpec, PsikBackend, ResourceSpec, SpecError
from prefect_psik.remote.signals import HAND_ON_SIGNALS
from prefect_psik.spec.identity import Identity
from prefect_psik.spec.time_warning import BatchSignal, batch_signal

HOUR = ResourceSpec(duration=60)


def sent(spec: JobSpec, *, kind: str = "slurm", **options: str) -> dict[str, Any]:
    attributes = BackendAttributes.model_validate({"type": kind, "options": options})
    return PsikBackend(attributes=attributes).submission(spec, Identity("k", "1"), {})


def signals(job: dict[str, Any]) -> list[str]:
    return [option for option in job["spec"]["attributes"] if option.startswith("--sig")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B:USR1@30", BatchSignal("SIGUSR1", 30)),
        ("b:sigusr1@30", BatchSignal("SIGUSR1", 30)),
        ("RB:10", BatchSignal("SIGUSR1", 60)),
        ("B:HUP@5", BatchSignal("SIGHUP", 5)),
        ("B:14@60", BatchSignal("SIGALRM", 60)),
        ("B:035", BatchSignal("35", 60)),
        ("B:IOT", BatchSignal("SIGABRT", 60)),
        ("USR1@30", None),
        ("R:USR1@30", None),
        ("nonsense", None),
    ],
)
def test_what_sbatch_means_by_its_option(text: str, expected: BatchSignal | None) -> None:
    assert batch_signal(text) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="the numbers are those of Linux")
@pytest.mark.parametrize("number", [*range(1, 32), 34, 64])
def test_a_number_is_the_name_that_the_batch_script_notes(number: int) -> None:
    assert batch_signal(f"B:{number}") == BatchSignal(signal.Signals(number).name, 60)


def test_the_field_becomes_the_option_and_a_note_for_the_end() -> None:
    job = sent(JobSpec(script="true", resources=HOUR, warn_before=120))
    assert signals(job) == ["--signal=B:USR1@120"]
    assert job["warning"] == {"name": "SIGUSR1", "seconds": 120}
    assert sent(JobSpec(script="true"))["warning"] is None


def test_the_option_of_job_or_block_warns_as_well() -> None:
    job = sent(JobSpec(script="true", attributes={"--signal": "B:USR2@30"}))
    assert job["warning"] == {"name": "SIGUSR2", "seconds": 30}
    job = sent(JobSpec(script="true"), **{"--signal": "B:USR1@30"})
    assert (signals(job), job["warning"]) == (["--signal=B:USR1@30"], {"name": "SIGUSR1", "seconds": 30})


def test_the_jobs_choice_replaces_the_blocks_and_the_scripts() -> None:
    script = "#!/bin/bash\n#SBATCH --signal=B:USR1@45\ntrue\n"
    spec = JobSpec(script=script, resources=HOUR, warn_before=120)
    assert signals(sent(spec, **{"--signal": "B:USR2@30"})) == ["--signal=B:USR1@120"]
    assert signals(sent(spec.replace(warn_before=None), **{"--signal": "B:USR2@30"})) == ["--signal=B:USR1@45"]


@pytest.mark.parametrize("kind", ["slurm", "local"])
@pytest.mark.parametrize("seconds", [600, 601, 65535])
def test_a_warning_before_the_job_begins_is_refused(kind: str, seconds: int) -> None:
    with pytest.raises(SpecError, match=f"warn_before is {seconds} s, but the job may run for only 10 min"):
        sent(JobSpec(script="true", warn_before=seconds), kind=kind)
    sent(JobSpec(script="true", warn_before=599), kind=kind)


@pytest.mark.parametrize("seconds", [0, -1, 65536, "1:30", True])
def test_other_times_are_refused(seconds: object) -> None:
    with pytest.raises(ValueError, match="warn_before"):
        JobSpec.model_validate({"script": "true", "warn_before": seconds})


def test_field_and_option_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="give warn_before or the option --signal, not both"):
        JobSpec(script="true", warn_before=60, attributes={"--signal": "B:USR1@30"})


#: Those that psik's batch script does not hand on.
KEPT = re.findall(r'kept = "(.*)"', HAND_ON_SIGNALS)[0].split()


@pytest.mark.parametrize("name", [*KEPT, "15", "sigterm", "CLD"])
def test_a_signal_that_cannot_warn_is_refused_with_what_to_write(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot warn the script: .* Write warn_before: 90 in the job spec"):
        JobSpec(script="true", attributes={"--signal": f"B:{name}@90"})
    JobSpec(script="true", attributes={"--signal": f"{name}@90"})  # for the steps


def test_on_this_machine_the_launcher_warns() -> None:
    job = sent(JobSpec(script="true", resources=HOUR, warn_before=120), kind="local")
    assert "timeout --foreground 3480 " in job["spec"]["script"]
    assert "timeout" not in sent(JobSpec(script="true"), kind="local")["spec"]["script"]
    assert "timeout" not in sent(JobSpec(script="true", resources=HOUR, warn_before=120))["spec"]["script"]
