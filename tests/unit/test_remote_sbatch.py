"""What sbatch says: refusals, doubt, the job's id, and what it must not read from the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefect_psik.remote.sbatch import UNCLEAR
from prefect_psik.remote.submit import PARALLEL_SUBMITS
from tests.unit.test_remote import STAMP
from tests.unit.test_remote_jobs import call, job, rows, slurm, submit, trouble
from tests.unit.test_remote_status import Commands

__all__ = ["slurm"]

FAILED = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        # What sbatch 22.05.8 says of its usage.
        (
            255,
            "sbatch: unrecognized option '--gpu-per-node=4'\nTry \"sbatch --help\" for more information\n",
            "unrecognized option '--gpu-per-node=4'",
        ),
        (
            255,
            "/opt/slurm/bin/sbatch: option '--requeue' doesn't allow an argument\n"
            'Try "sbatch --help" for more information\n',
            "option '--requeue' doesn't allow an argument",
        ),
        (255, "sbatch: error: Invalid --time specification\n", "Invalid --time specification"),
        (
            255,
            "Invalid time specification (pos=0): x\nsbatch: error: Invalid --begin specification\n",
            "Invalid time specification (pos=0): x Invalid --begin specification",
        ),
        (1, "sbatch: error: Unable to open file nosuchfile\n", "Unable to open file nosuchfile"),
        (1, f"{FAILED}Invalid qos specification\n", "Invalid qos specification"),
        # A site's own words are not Slurm's, whatever is in them.
        (
            1,
            "sbatch: error: Your connection budget is temporarily used up: the request for a license timed out.\n"
            f"{FAILED}Unspecified error\n",
            "Your connection budget is temporarily used up",
        ),
        (1, "sbatch: error: Project timed out. Unable to contact its owner\n", "Project timed out."),
        (3, "Zero bytes left in your home directory\n", "Zero bytes left in your home directory"),
    ],
)
def test_a_refusal_is_final_at_once_and_in_its_own_words(
    slurm: Commands, tmp_path: Path, code: int, error: str, words: str
) -> None:
    slurm.say("sbatch", code=code, error=error)
    assert words in trouble(submit(tmp_path / "p", job()), "rejected")
    assert not (tmp_path / "p" / STAMP).exists()
    assert len(slurm.calls("sbatch")) == 1


LIMITED = f"{FAILED}Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)\n"
LINE = ["proj", None, "debug"]


@pytest.mark.parametrize(
    "limit",
    [
        "AssocMaxSubmitJobLimit",
        "AssocGrpSubmitJobsLimit",
        "QOSMaxSubmitJobPerUserLimit",
        "QOSGrpSubmitJobsLimit",
        "MaxSubmitJobsPerAccount",
    ],
)
def test_a_limit_on_the_number_of_jobs_is_a_full_queue(slurm: Commands, tmp_path: Path, limit: str) -> None:
    prefix = tmp_path / "p"
    slurm.say("sbatch", code=1, error=f"sbatch: error: {limit}\n{LIMITED}")
    answer = submit(prefix, job() | {"line": LINE})
    assert limit in trouble(answer, "full")
    assert answer["error"]["limit"] == limit
    assert not (prefix / STAMP).exists(), "nothing of it is kept, so a later attempt begins again"
    slurm.say("sbatch", "Submitted batch job 88")
    assert submit(prefix, job() | {"line": LINE})["native_id"] == "88"


@pytest.mark.parametrize(
    "error",
    [
        f"sbatch: error: QOSMaxWallDurationPerJobLimit\n{LIMITED}",
        f"sbatch: error: QOSMaxNodePerJobLimit\n{LIMITED}",
        f"sbatch: error: AssocMaxJobsLimit\n{LIMITED}",
        LIMITED,  # of a Slurm that does not name the limit
        # A site's own words are not Slurm's.
        f"sbatch: error: AssocMaxSubmitJobLimit\n{FAILED}Unspecified error\n",
        f"sbatch: error: Read about AssocMaxSubmitJobLimit in our wiki\n{LIMITED}",
        f"AssocMaxSubmitJobLimit\n{LIMITED}",
    ],
)
def test_other_limits_are_refusals(slurm: Commands, tmp_path: Path, error: str) -> None:
    slurm.say("sbatch", code=1, error=error)
    trouble(submit(tmp_path / "p", job() | {"line": LINE}), "rejected")


@pytest.mark.parametrize(
    ("shown", "kind"),
    [
        (
            ["Account=proj UserName=beam(7) DefAssoc=No GrpSubmitJobs=N(0) MaxSubmitJobs=0(0) MaxWallPJ="],
            "rejected",
        ),
        (["Account=proj UserName= DefAssoc=No GrpSubmitJobs=0(0) MaxSubmitJobs= MaxWallPJ="], "rejected"),
        (["Account=proj UserName=beam(7) DefAssoc=No GrpSubmitJobs=N(9) MaxSubmitJobs=10(10) MaxWallPJ="], "full"),
        (["slurm_load_assoc_mgr_info: Invalid user id"], "full"),
    ],
)
def test_a_limit_of_0_is_a_refusal(slurm: Commands, tmp_path: Path, shown: list[str], kind: str) -> None:
    slurm.say("sbatch", code=1, error=f"sbatch: error: AssocMaxSubmitJobLimit\n{LIMITED}")
    slurm.say("scontrol", *shown)
    message = trouble(submit(tmp_path / "p", job() | {"line": LINE}), kind)
    assert ("choose another account" in message) is (kind == "rejected")


def test_where_the_queue_is_known_to_be_full_a_job_is_only_looked_for(slurm: Commands, tmp_path: Path) -> None:
    prefix, known = tmp_path / "p", {"line": LINE, "full": "AssocMaxSubmitJobLimit"}
    assert submit(prefix, job() | known)["error"]["limit"] == "AssocMaxSubmitJobLimit"
    assert not slurm.calls("sbatch")
    assert not (prefix / STAMP).exists()
    submit(prefix, job())
    again = submit(prefix, job() | known)
    assert (again["created"], again["native_id"]) == (False, "77")
    intent = prefix / STAMP / "prefect" / "intent.1"
    assert intent.exists()
    record = prefix / STAMP / "status.csv"
    record.write_text(
        record.read_text().splitlines(keepends=True)[0]
    )  # an earlier call died before it wrote the id
    slurm.say("squeue", f"77|{prefix / STAMP}")
    assert submit(prefix, job() | known)["native_id"] == "77", "it may be in the queue already"
    assert len(slurm.calls("sbatch")) == 1


def test_one_that_got_the_last_place_and_lost_the_answer_is_found(slurm: Commands, tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    slurm.say("sbatch", code=1, error=f"sbatch: error: AssocMaxSubmitJobLimit\n{LIMITED}")
    slurm.say("squeue", f"91|{prefix / STAMP}")  # sbatch repeated a request that had been carried out
    assert submit(prefix, job() | {"line": LINE})["native_id"] == "91"


def test_in_one_call_the_first_refusal_speaks_for_its_line_alone(slurm: Commands, tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    slurm.say("sbatch", code=1, error=f"sbatch: error: AssocMaxSubmitJobLimit\n{LIMITED}")
    many = [job() | {"stamp": str(number), "line": LINE} for number in range(1, 61)]
    other = job() | {"stamp": "99", "line": ["other", None, "debug"]}
    answers = call(prefix, "submit", *many, other)["jobs"]
    assert {answer["error"]["kind"] for answer in answers.values()} == {"full"}
    asked = slurm.calls("sbatch")
    assert len(asked) <= PARALLEL_SUBMITS + 1
    assert any("/99" in line for line in asked), "the other account was asked for"


def test_what_the_option_parser_refused_is_final_although_slurm_does_not_answer(
    slurm: Commands, tmp_path: Path
) -> None:
    slurm.say("sbatch", code=255, error="sbatch: error: Invalid --time specification\n")
    slurm.say("squeue", code=1, error="squeue: error: Socket timed out on send/recv operation\n")
    trouble(submit(tmp_path / "p", job()), "rejected")


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        *((1, f"{FAILED}{reason}\n", reason) for reason in UNCLEAR),
        (1, "sbatch: fatal: Could not establish a configuration source\n", "Could not establish a configuration"),
        (1, "sbatch: fatal: Unable to process configuration file\n", "Unable to process configuration file"),
        # A site's sbatch that runs another one elsewhere: 255 is ssh's, too.
        (255, "ssh: connect to host login1 port 22: Connection timed out\n", "ssh: connect to host login1"),
        (137, "Killed\n", "Killed"),
        (0, "sbatch: error: what a strange day\n", "what a strange day"),
    ],
)
def test_what_is_unclear_is_looked_for_and_keeps_sbatchs_words(
    slurm: Commands, tmp_path: Path, code: int, error: str, words: str
) -> None:
    prefix = tmp_path / "p"
    slurm.say("sbatch", code=code, error=error)
    first = trouble(submit(prefix, job()), "busy")
    slurm.say("sbatch", "Submitted batch job 88")
    later = trouble(submit(prefix, job()), "busy")
    slurm.say("squeue", code=1, error="squeue: error: not today\n")
    unasked = trouble(submit(prefix, job()), "busy")
    for message in (first, later, unasked):
        assert message.startswith("Slurm did not confirm the submission: ")
        assert words in message
    assert "but there is no trace of it yet" in later
    assert "not today" in unasked
    slurm.say("squeue", f"77|{prefix / STAMP}")
    assert submit(prefix, job())["native_id"] == "77"
    assert len(slurm.calls("sbatch")) == 1


@pytest.mark.parametrize(
    "said",
    [
        "Submitted batch job 12",
        "Submitted batch job 12 on cluster nautilus",
        "Welcome to nautilus, 640 nodes\nSubmitted batch job 12 on cluster nautilus\nYou have 99 hours left: 7",
        "12",
        "12;nautilus",
        "Welcome to nautilus\n12;nautilus",
    ],
)
def test_the_id_is_the_number_in_sbatchs_words(slurm: Commands, tmp_path: Path, said: str) -> None:
    slurm.say("sbatch", *said.split("\n"))
    assert submit(tmp_path / "p", job())["native_id"] == "12"
    assert rows(tmp_path / "p") == ["1,queued,12"]


def test_words_without_a_number_are_no_id(slurm: Commands, tmp_path: Path) -> None:
    slurm.say("sbatch", "The job of project 12 was taken")
    message = trouble(submit(tmp_path / "p", job()), "busy")
    assert "did not confirm the submission: The job of project 12 was taken" in message
    assert rows(tmp_path / "p") == []


def test_slurms_commands_read_no_options_from_the_environment(
    slurm: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How to reach Slurm stays; what the process and its other threads see stays, too."""
    options = {
        "SBATCH_ARRAY_INX": "0-2",
        "SBATCH_EXCLUSIVE": "user",
        "SBATCH_WAIT": "1",
        "SLURM_CLUSTERS": "other",
        "SLURM_EXIT_ERROR": "200",
        "SLURM_HINT": "nomultithread",
        "SQUEUE_PARTITION": "other",
        "SACCT_FEDERATION": "1",
    }
    reach = {"SLURM_CONF": "/etc/slurm/other.conf", "SLURM_JWT": "token", "MODULEPATH": "/opt/modules"}
    for name, value in (options | reach).items():
        monkeypatch.setenv(name, value)
    for name in ("sbatch", "squeue"):
        command = slurm.directory / name
        command.write_text(f"#!/bin/sh\nenv > {tmp_path}/{name}.seen\nexit 1\n")
    whole = dict(os.environ)
    submit(tmp_path / "p", job())  # refused, and looked for
    for name in ("sbatch", "squeue"):
        seen = (tmp_path / f"{name}.seen").read_text().splitlines()
        assert {f"{key}={value}" for key, value in reach.items()} <= set(seen)
        assert [line for line in seen if line.partition("=")[0] in options] == []
    assert dict(os.environ) == whole


def test_options_of_the_environment_that_do_not_count_are_named(
    slurm: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "proj9")
    monkeypatch.setenv("SLURM_CLUSTERS", "other")
    [warning] = submit(tmp_path / "p", job())["warnings"]
    assert warning.startswith("Jobs ignore SBATCH_ACCOUNT, SLURM_CLUSTERS from the environment of the endpoint")
    assert "proj9" not in warning
