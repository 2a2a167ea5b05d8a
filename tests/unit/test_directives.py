"""Tests of scheduler directives in scripts: read as sbatch does, noted, overruled by the spec, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefect_psik import BackendAttributes, JobSpec, PsikBackend, ResourceSpec
from prefect_psik.exceptions import SpecError
from prefect_psik.jobs.preflight import preflight_payload
from prefect_psik.spec.directives import Note
from prefect_psik.spec.identity import Identity

NERSC = """#!/bin/bash
#SBATCH -q realtime
#SBATCH -A als
#SBATCH -N 2
#SBATCH -C gpu
#SBATCH -t 02:00:00
#SBATCH --exclusive
#SBATCH --job-name=recon
#SBATCH --output=recon-%j.out

srun hostname
"""


def backend(**fields: Any) -> PsikBackend:
    return PsikBackend(attributes=BackendAttributes(type="slurm", **fields.pop("attributes", {})), **fields)


def sent(spec: JobSpec, block: PsikBackend | None = None) -> dict[str, Any]:
    """What goes to psik for a job."""
    payload = (block or backend()).submission(spec, Identity("k", "1"), {})
    found: dict[str, Any] = payload["spec"]
    return found


def options(spec: JobSpec, block: PsikBackend | None = None) -> set[str]:
    ours = {"--export=NIL", "--no-requeue"}
    return {option for option in sent(spec, block)["attributes"] if option not in ours}


def notes(spec: JobSpec, block: PsikBackend | None = None) -> list[str]:
    return [note.text for note in (block or backend()).prepare(spec).notes]


def header(*lines: str) -> JobSpec:
    return JobSpec(script="#!/bin/bash\n" + "".join(f"{line}\n" for line in lines) + "true\n")


def refusal(spec: JobSpec) -> str:
    with pytest.raises(SpecError) as caught:
        sent(spec)
    return str(caught.value)


def test_header_of_a_public_script_is_what_the_job_asks_for() -> None:
    found = sent(JobSpec(script=NERSC))
    assert found["name"] == "recon"
    assert found["resources"]["node_count"] == 2
    assert found["resources"]["exclusive_node_use"] is True
    assert {"--qos=realtime", "--account=als", "--constraint=gpu", "--time=120"} <= set(found["attributes"])
    assert not any(option.startswith(("--output", "-o")) for option in found["attributes"])


def test_each_directive_is_noted_with_its_line() -> None:
    assert notes(JobSpec(script=NERSC)) == [
        "line 2: -q realtime → --qos realtime",
        "line 3: -A als → --account als",
        "line 4: -N 2 → node_count 2",
        "line 5: -C gpu → --constraint gpu",
        "line 6: -t 02:00:00 → duration 120",
        "line 7: --exclusive → exclusive_node_use True",
        "line 8: --job-name=recon → name recon",
        "line 9: --output=recon-%j.out is not used: psik keeps the logs in the job's directory",
    ]


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("-N2", "node_count", 2),
        ("--nodes 3", "node_count", 3),
        ("-n 8", "process_count", 8),
        ("--ntasks-per-node=4", "processes_per_node", 4),
        ("-c16", "cpu_cores_per_process", 16),
        ("--gpus-per-task=1", "gpu_cores_per_process", 1),
        ("--oversubscribe", "exclusive_node_use", False),
        ("-s", "exclusive_node_use", False),
        ("--share", "exclusive_node_use", False),
        ("-HO -N 2", "node_count", 2),
        ("--cpus-per-t=3", "cpu_cores_per_process", 3),
    ],
)
def test_directive_with_a_field_sets_it(line: str, field: str, value: object) -> None:
    assert sent(header(f"#SBATCH {line}"))["resources"][field] == value


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-t 90", {"--time=90"}),
        ("--time=1-00:00:30", {"--time=1441"}),
        ("--mem=16gb", {"--mem=16G"}),
        ("--mem-per-cpu=2G", {"--mem-per-cpu=2G"}),
        ("-N 1-4", {"--nodes=1-4"}),
        ("-n 8 --ntasks-per-node=4", {"--ntasks-per-node=4"}),
        ("--gpus-per-task=a100:1", {"--gpus-per-task=a100:1"}),
        ("--exclusive=user", {"--exclusive=user"}),
        ("-G 4 -pdebug", {"--gpus=4", "--partition=debug"}),
        ("-s", {"--oversubscribe"}),
        ("-HO", {"--hold", "--overcommit"}),
        ("--requeue", {"--requeue"}),
        ("--signal=B:USR1@30", {"--signal=B:USR1@30"}),
        ("--signal=b:10@99", {"--signal=B:USR1@99"}),
        ("--signal B:SIGUSR1", {"--signal=B:USR1@60"}),
        ("--signal=B:USR2@30", {"--signal=B:USR2@30"}),
        ("--signal=USR1@60", {"--signal=USR1@60"}),
        ("--comment 'two words' # and a remark", {"--comment=two words"}),
        ('--constraint="[a|b]"', {"--constraint=[a|b]"}),
        ("--image=docker:als/recon:1", {"--image=docker:als/recon:1"}),
        ("--image docker:als/recon:1", {"--image=docker:als/recon:1"}),
        ("-L cfs,scratch -q debug", {"--licenses=cfs,scratch", "--qos=debug"}),
        ("-t 1-12", {"--time=2160"}),
        ("--tmp=16g", {"--tmp=16g"}),
        ("--comment=none", {"--comment=none"}),
        ("--of-a-plugin", {"--of-a-plugin"}),
        ("--export=ALL", set()),
        ("-N 1 -N 2", set()),
        ("", set()),
    ],
)
def test_directive_reaches_sbatch_as_its_author_meant(line: str, expected: set[str]) -> None:
    found = options(header(f"#SBATCH {line}"))
    default = set() if any(option.startswith("--time") for option in expected) else {"--time=10"}
    assert found == expected | default


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("-o out.txt", "psik keeps the logs in the job's directory"),
        ("-e err.txt", "psik keeps the logs in the job's directory"),
        ("--get-user-env", "a job gets nothing from the endpoint's environment"),
        ("--ignore-pbs", "#PBS lines are never read"),
        ("--parsable", "nobody reads what sbatch prints"),
        ("-Q", "nobody reads what sbatch prints"),
        ("-v", "nobody reads what sbatch prints"),
        *(
            (
                f"--export={word}",
                "a job gets nothing from the endpoint's environment, and its steps get all of the job's own",
            )
            for word in ("ALL", "none", "NIL")
        ),
    ],
)
def test_directive_that_changes_nothing_about_the_work_is_left_out_with_a_warning(line: str, why: str) -> None:
    spec = header(f"#SBATCH {line}")
    assert options(spec) == {"--time=10"}
    assert backend().prepare(spec).notes == [Note(f"line 2: {line} is not used: {why}", warning=True)]


@pytest.mark.parametrize("line", ["-D /data/scan", "--chdir=/data/scan", "--workdir /data/scan"])
def test_directory_of_a_script_is_where_the_job_runs(line: str) -> None:
    assert sent(header(f"#SBATCH {line}"))["directory"] == "/data/scan"


def test_flags_in_one_word_are_noted_one_by_one() -> None:
    assert notes(header("#SBATCH -HO --nice=100")) == [
        "line 2: -H → --hold",
        "line 2: -O → --overcommit",
        "line 2: --nice=100 → --nice 100",
    ]


def test_directive_that_a_later_one_overrules_is_noted_with_a_warning() -> None:
    assert backend().prepare(header("#SBATCH -N 1", "#SBATCH --nodes=2")).notes == [
        Note("line 2: -N 1 is not used: line 3 overrides it", warning=True),
        Note("line 3: --nodes=2 → node_count 2"),
    ]


def test_directory_of_the_spec_wins_over_that_of_the_script() -> None:
    spec = header("#SBATCH -D /data/scan").replace(directory="/data/mine")
    assert sent(spec)["directory"] == "/data/mine"
    assert notes(spec) == ["line 2: -D /data/scan is not used: the job spec has directory /data/mine"]


def test_directive_in_the_first_line_is_read_behind_a_byte_order_mark() -> None:
    assert sent(JobSpec(script="\ufeff#SBATCH -N 2\ntrue\n"))["resources"]["node_count"] == 2


@pytest.mark.parametrize(
    "interpreter", ["#!/usr/bin/env python3", "#!/usr/bin/perl -w", "#!/bin/tcsh", "\n\n# by hand"]
)
def test_directives_are_found_whatever_the_interpreter(interpreter: str) -> None:
    script = f"{interpreter}\n# a remark\n\n#SBATCH -N 2\nprint(1)\n".replace("\n", "\r\n")
    assert sent(JobSpec(script=script))["resources"]["node_count"] == 2


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/bash\n##SBATCH -N 2\ntrue\n",
        "#!/bin/bash\n# SBATCH -N 2\ntrue\n",
        "#!/bin/bash\n #SBATCH -N 2\ntrue\n",
        "#!/bin/bash\n#SBATCHED -N 2\ntrue\n",
        "#!/bin/bash\ntrue\n#SBATCH -N 2\n#SBATCH --array=1-9\n#PBS -l nodes=2\n",
        "#!/usr/bin/env python3\nimport os\n#SBATCH -N 2\n",
        "#!/bin/bash\n# flux is better, see #PBS\n# Flux: 1e12 photons a second\n#BBQ\ntrue\n",
        "#!/bin/bash\n#PBSPRO\n#FLUXES\n#BSUBS\n#DWARF\n#COBALTS\n#MSUBS\n#$ 5 an hour\n#OARS\n#PJMS\ntrue\n",
    ],
)
def test_what_sbatch_would_not_read_is_no_directive(script: str) -> None:
    assert notes(JobSpec(script=script)) == []
    assert "node_count" not in sent(JobSpec(script=script))["resources"]


def test_field_of_the_spec_wins_and_the_difference_is_a_warning() -> None:
    spec = JobSpec(
        script=NERSC,
        name="mine",
        resources=ResourceSpec(node_count=4, duration=120),
        attributes={"-A": "als", "--constraint": "cpu"},
    )
    found = sent(spec)
    assert (found["name"], found["resources"]["node_count"]) == ("mine", 4)
    assert {"-Aals", "--constraint=cpu", "--qos=realtime"} <= set(found["attributes"])
    assert not {"--account=als", "--constraint=gpu"} & set(found["attributes"])
    said = {note.text: note.warning for note in backend().prepare(spec).notes}
    assert said["line 4: -N 2 is not used: the job spec has node_count 4"]
    assert said["line 5: -C gpu is not used: the job spec has --constraint cpu"]
    assert said["line 8: --job-name=recon is not used: the job spec has name mine"]
    assert not said["line 3: -A als → --account als"]
    assert not said["line 6: -t 02:00:00 → duration 120"]


def test_spec_that_says_the_same_in_other_words_wins_too() -> None:
    spec = header("#SBATCH --mem=16G -n 8").replace(
        attributes={"--mem-per-cpu": "1G"}, resources=ResourceSpec(processes_per_node=2)
    )
    found = sent(spec)
    assert "process_count" not in found["resources"]
    assert "--mem-per-cpu=1G" in found["attributes"]
    assert "--mem=16G" not in found["attributes"]


def test_equal_number_of_something_else_is_a_difference() -> None:
    spec = header("#SBATCH -n 4").replace(resources=ResourceSpec(processes_per_node=4))
    assert notes(spec) == ["line 2: -n 4 is not used: the job spec has processes_per_node 4"]


def test_unusable_directive_that_the_spec_overrules_is_no_trouble() -> None:
    spec = header("#SBATCH -t UNLIMITED").replace(resources=ResourceSpec(duration=5))
    assert "--time=5" in sent(spec)["attributes"]


def test_directives_win_over_the_backend() -> None:
    block = backend(
        attributes={"qos": "normal", "options": {"--mem": "1G", "-C": "cpu"}},
        default_resources={"node_count": 8, "duration": 30, "memory": "64G", "cpu_cores_per_process": 4},
    )
    spec = header("#SBATCH -N 2 -C gpu --mem-per-cpu=2G")
    found = sent(spec, block)
    assert found["resources"]["node_count"] == 2
    assert found["resources"]["cpu_cores_per_process"] == 4
    assert options(spec, block) == {"--time=30", "--constraint=gpu", "--mem-per-cpu=2G", "--qos=normal"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("#SBATCH --array=0-9", "submit one job for each element"),
        ("#SBATCH --signal=B:TERM@60", "psik ends the job 5 s after it. Write warn_before: 60"),
        ("#SBATCH --signal=B:USR1@0", "1 to 65535 s before the time limit"),
        ("#SBATCH -a 1-3%2", "submit one job for each element"),
        ("#SBATCH --arr=1-3", "submit one job for each element"),
        ("#SBATCH hetjob", "submit two jobs"),
        ("#SBATCH packjob", "submit two jobs"),
        ("#SBATCH -N1 : -N2", "submit two jobs"),
        ("#SBATCH --wrap=hostname", "put the commands into the job spec's script"),
        ("#SBATCH -W", "wait_for_job waits"),
        ("#SBATCH -M other", "use a backend for that cluster"),
        ("#SBATCH --export=A=1", "job spec's environment"),
        ("#SBATCH -i data.txt", "reads from /dev/null"),
        ("#SBATCH -t UNLIMITED", "1-00:00:00"),
        ("#SBATCH -N many", "plain digits"),
        ("#SBATCH -N", "-N needs a value"),
        ("#SBATCH -A -n 4", "-A needs a value"),
        ("#SBATCH --qos= debug", "--qos needs a value"),
        ("#SBATCH 2", "'2' is not an sbatch option"),
        ("#SBATCH --comment='open", "no closing quotation"),
        ("#SBATCH -D work", "must be absolute"),
        ("#SBATCH -J a/b", "the job's name"),
        ("#SBATCH --mem=lots", "pattern"),
        ("#PBS -l select=2", "it is for PBS, but this backend uses Slurm;"),
        ("#FLUX: -N 2", "it is for Flux, but this backend uses Slurm;"),
        ("# flux: -N2", "it is for Flux, but this backend uses Slurm;"),
        ("#BSUB -n 4", "it is for LSF, but this backend uses Slurm;"),
        ("#DW jobdw capacity=10GB", "--bbf"),
        ("#BB create_persistent name=x", "--bbf"),
        ("#COBALT -n 2", "it is for Cobalt, but this backend uses Slurm;"),
        ("#MSUB -l nodes=2", "it is for Moab, but this backend uses Slurm;"),
        ("#OAR -l nodes=2", "it is for OAR, but this backend uses Slurm;"),
        ("#PJM -L node=2", "it is for PJM, but this backend uses Slurm;"),
        ("#$ -pe mpi 4", "it is for Grid Engine, but this backend uses Slurm;"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_line_and_what_to_use(line: str, words: str) -> None:
    text = refusal(header("#SBATCH -q debug", line))
    assert text.startswith(f"Line 3 of the script, {line!r}, cannot be used here: ")
    assert words in text
    assert text.count("directives: ignore") == 1


@pytest.mark.parametrize("line", ["#SBATCH --array=0-9", "#PBS -l select=2", "#SBATCH -N 2"])
def test_directives_can_be_ignored(line: str) -> None:
    spec = header(line).replace(directives="ignore")
    assert notes(spec) == []
    assert options(spec) == {"--time=10"}
    assert "node_count" not in sent(spec)["resources"]


def test_directives_mean_nothing_without_a_scheduler_and_that_is_noted_once() -> None:
    spec = header("#SBATCH -N 2", "#SBATCH --array=0-9", "#PBS -l select=2")
    block = PsikBackend()
    assert notes(spec, block) == [
        "line 2: #SBATCH -N 2 and 2 more: no effect on a local backend, which has no scheduler"
    ]
    assert "node_count" not in sent(spec, block)["resources"]
    assert notes(header("#SBATCH -N 2", "#SBATCH -n 4"), block)[0].startswith("line 2: #SBATCH -N 2 and 1 more: ")
    assert notes(header("#SBATCH -N 2"), block)[0].startswith("line 2: #SBATCH -N 2: no effect")
    assert notes(JobSpec(script="true"), block) == []


def test_key_stands_for_the_script_and_not_for_what_was_read_from_it() -> None:
    spec = JobSpec(script=NERSC)
    payload = backend().submission(spec, Identity("k", "1"), {})
    assert payload["digest"] == spec.digest() == JobSpec.model_validate_json(spec.model_dump_json()).digest()
    assert payload["canonical"] == spec.canonical()
    assert spec.digest() != spec.replace(directives="ignore").digest()


def test_preflight_asks_for_what_the_script_asks_for() -> None:
    payload = preflight_payload(backend(), JobSpec(script=NERSC))
    assert (payload["nodes"], payload["duration"]) == (2, 120)
    assert "--account=als" in payload["spec"]["attributes"]


def test_job_of_a_script_file_has_the_name_that_the_script_gives_itself(tmp_path: Path) -> None:
    (tmp_path / "submit.sh").write_text(NERSC)
    assert JobSpec.from_script(tmp_path / "submit.sh").name == "recon"
    assert JobSpec.from_script(tmp_path / "submit.sh", name="mine").name == "mine"
    assert JobSpec.from_script(tmp_path / "submit.sh", directives="ignore").name == "submit"
    (tmp_path / "plain.sh").write_text("#!/bin/bash\n#SBATCH -N 2\ntrue\n")
    assert JobSpec.from_script(tmp_path / "plain.sh").name == "plain"
    (tmp_path / "twice.sh").write_text("#!/bin/bash\n#SBATCH -J first\n#SBATCH -J last\ntrue\n")
    assert JobSpec.from_script(tmp_path / "twice.sh").name == "last"
    (tmp_path / "other.sh").write_text("#!/bin/bash\n#SBATCH -J a/b\n#SBATCH --bad='\ntrue\n")
    assert JobSpec.from_script(tmp_path / "other.sh").name == "other"
