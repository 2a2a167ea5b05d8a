"""Signals for psik's batch script, really sent: the text that hands them on, in a process like psik's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from prefect_psik.remote import letter
from prefect_psik.remote.signals import HAND_ON_SIGNALS, _signals
from tests.unit.test_remote_jobs import job, slurm, submit
from tests.unit.test_remote_status import Commands

__all__ = ["slurm"]

#: As psik does it: the script in a process group of its own, waited for with a time limit.
PSIK = """
import subprocess, sys, time
time.sleep(float(sys.argv[2]))
script = subprocess.Popen(["/bin/bash", "-c", sys.argv[1]], preexec_fn=lambda: os.setpgid(0, 0))
sys.exit(script.wait(timeout=60) % 256)
"""
#: What the launcher notes, then what the script is.
NOTE = """{ read -r s < /proc/$$/stat; echo "$s" > prefect/process.1.77; ln -s 77 prefect/owner.1; }; """


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = tmp_path / "psik [jobs] é" / "1"
    (directory / "prefect").mkdir(parents=True)
    return directory


@contextmanager
def batch_shell(base: Path, script: str, *, delay: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """Start the batch shell in the directory of the job, and wait until it takes signals."""
    text = f"{HAND_ON_SIGNALS}\nprint('takes signals', flush=True)\n{PSIK}"
    process = subprocess.Popen(
        [sys.executable, "-c", text, script, str(delay)],
        cwd=base,
        env={**os.environ, "SLURM_JOB_ID": "77"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "takes signals\n"
        yield process
    finally:
        process.kill()
        for note in (base / "prefect").glob("process.*"):  # what the script left, too
            with suppress(ProcessLookupError):
                os.killpg(int(note.read_text().split()[0]), signal.SIGKILL)
        process.communicate(timeout=60)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("name", ["HUP", "QUIT", "USR1", "USR2", "ALRM", "XCPU", "RTMIN"])
def test_the_script_gets_the_signal_once_and_ends_as_it_wants(base: Path, name: str) -> None:
    number = getattr(signal, f"SIG{name}")
    script = f"{NOTE} trap 'echo got; exit 5' {number}; echo ready; sleep 60 & wait"
    with batch_shell(base, script) as process:
        assert line(process) == "ready"
        process.send_signal(number)
        assert line(process) == "got"
        assert process.wait(60) == 5
    assert _signals(str(base), 1) == [f"SIG{name}"]


def test_a_signal_that_comes_before_the_script_is_kept_for_it(base: Path) -> None:
    script = f"{NOTE} sleep 0.5; trap 'echo got; exit 5' USR1; sleep 60 & wait"
    with batch_shell(base, script, delay=1.0) as process:
        process.send_signal(signal.SIGUSR1)
        assert line(process) == "got"
        assert process.wait(60) == 5


def test_what_the_script_started_is_left_alone(base: Path) -> None:
    child = "echo ready; for _ in 1 2 3 4; do sleep 0.2; done; echo child ended well"
    with batch_shell(base, f'{NOTE} trap "echo got" USR1; ({child}) & wait; wait') as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGUSR1)
        assert (line(process), line(process)) == ("got", "child ended well")
        assert process.wait(60) == 0


@pytest.mark.parametrize("name", ["{me}", "process.1"])
def test_the_path_of_the_job_may_have_any_name(tmp_path: Path, name: str) -> None:
    base = tmp_path / name / "1"
    (base / "prefect").mkdir(parents=True)
    script = f"{NOTE} trap 'echo got; exit 5' USR1; echo ready; sleep 60 & wait"
    with batch_shell(base, script) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGUSR1)
        assert line(process) == "got"
        assert process.wait(60) == 5
    assert _signals(str(base), 1) == ["SIGUSR1"]


def test_a_job_runs_although_its_signals_cannot_be_handed_on(base: Path) -> None:
    (base / "prefect" / "signals.1.77").mkdir()
    with batch_shell(base, "echo ran") as process:
        assert line(process) == "ran"
    text = HAND_ON_SIGNALS.replace("signal.valid_signals()", "signal.no_such_name()")
    done = subprocess.run([sys.executable, "-c", text], cwd=base, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "are not passed on" in done.stderr) == (0, True)


def test_a_script_without_a_handler_is_killed_and_not_the_batch_shell(base: Path) -> None:
    with batch_shell(base, f"{NOTE} echo ready; sleep 60") as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 256 - signal.SIGUSR1


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_what_psik_handles_is_left_to_it(base: Path, name: str) -> None:
    number = getattr(signal, f"SIG{name}")
    with batch_shell(base, f"{NOTE} echo ready; exec sleep 60") as process:
        assert line(process) == "ready"
        process.send_signal(number)
        assert process.wait(60) in (-number, 128 + number)
    assert _signals(str(base), 1) == []


def test_a_process_that_is_not_psiks_own_gets_no_signal(base: Path) -> None:
    """A requeued job finds the note of its earlier start, whose pid may be another process by now."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        (base / "prefect" / "process.1.77").write_text(f"{other.pid} (sleep) S 1\n")
        (base / "prefect" / "signals.1.77").write_text("SIGUSR1\n")
        with batch_shell(base, "true", delay=1.0) as process:
            assert not (base / "prefect" / "signals.1.77").exists(), "those of the earlier start"
            process.send_signal(signal.SIGUSR1)
            assert process.wait(60) == 0
            assert other.poll() is None  # what the note names is ended next


# ------------------------------------------------------------------------------------- on its way to sbatch


def test_psiks_batch_script_gets_the_text_before_its_first_import(slurm: Commands, tmp_path: Path) -> None:
    (slurm.directory / "sbatch").write_text(f"#!/bin/sh\ncat > {tmp_path}/sent\necho Submitted batch job 77\n")
    assert submit(tmp_path / "p", job())["native_id"] == "77"
    sent = (tmp_path / "sent").read_text()
    header, mark, rest = sent.partition(HAND_ON_SIGNALS)
    assert mark
    assert all(text.startswith("#") or not text for text in header.splitlines())
    assert rest.lstrip("\n").startswith("import asyncio\n")
    assert "await job.execute(" in rest
    compile(sent, "sent", "exec")


def test_the_text_travels_in_the_letter() -> None:
    names: dict[str, object] = {}
    exec(compile(letter(), "letter", "exec"), names)
    assert names["HAND_ON_SIGNALS"] == HAND_ON_SIGNALS
