"""Tests of the launcher: scripts as their authors wrote them, really run by bash from stdin as psik does it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from prefect_psik.spec.launcher import (
    CANCELED,
    NOT_THE_OWNER,
    NOT_WRITABLE,
    SCRIPT_FILE,
    launcher_script,
    normalize_script,
)

ODD_NAMES = ["two words", "it's", 'say "so"', "Größe ☃", "$HOME `id` $(id)", " edges ", "*?[a]", "-n", "a\\b;c&d"]


@dataclass
class Place:
    """A job directory as the facility has it, and psik's way of starting what is in it."""

    base: Path

    def write(self, script: str) -> list[str]:
        (self.base / "prefect").mkdir(parents=True, exist_ok=True)
        (self.base / "work").mkdir(exist_ok=True)
        interpreter, text = normalize_script(script)
        (self.base / SCRIPT_FILE).write_bytes(text.encode())
        return interpreter

    def start(
        self,
        interpreter: list[str],
        arguments: Sequence[str] = (),
        *,
        jobid: str,
        jobndx: int = 1,
        umask: str = "0027",
        scheduler: str = "slurm",
        warn_after: int | None = None,
    ) -> tuple[subprocess.Popen[bytes], bytes]:
        """Start bash as psik does; what it waits for on stdin is left to the caller."""
        launcher = launcher_script(interpreter, arguments, umask=umask, scheduler=scheduler, warn_after=warn_after)
        process = subprocess.Popen(
            launcher[2:].split("\n", 1)[0].split(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.base / "work",
            env={"PATH": os.environ["PATH"], "base": str(self.base), "jobndx": str(jobndx), "jobid": jobid},
        )
        return process, launcher.encode()

    def run(
        self,
        script: str,
        *,
        arguments: Sequence[str] = (),
        jobid: str = "100",
        jobndx: int = 1,
        umask: str = "0027",
        scheduler: str = "local",
        interpreter: list[str] | None = None,
        warn_after: int | None = None,
    ) -> subprocess.CompletedProcess[str]:
        words = self.write(script)
        process, launcher = self.start(
            interpreter or words,
            arguments,
            jobid=jobid,
            jobndx=jobndx,
            umask=umask,
            scheduler=scheduler,
            warn_after=warn_after,
        )
        out, err = process.communicate(launcher, timeout=60)
        return subprocess.CompletedProcess([], process.returncode, out.decode(), err.decode())

    @property
    def ours(self) -> set[str]:
        return {path.name for path in (self.base / "prefect").iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "psik jobs é" / "12345")


# ----------------------------------------------------------------------------------------- normalize_script


@pytest.mark.parametrize(
    ("script", "interpreter", "text"),
    [
        ("echo hi", ["/bin/bash"], "echo hi\n"),
        ("echo hi\n", ["/bin/bash"], "echo hi\n"),
        ("\n\necho hi\n", ["/bin/bash"], "\n\necho hi\n"),
        ("#!/bin/sh\nexit 1\n", ["/bin/sh"], "#!/bin/sh\nexit 1\n"),
        ("#! /bin/sh -e \nx\n", ["/bin/sh", "-e"], "#! /bin/sh -e \nx\n"),
        ("#!/bin/bash\r\nexit 0\r\n", ["/bin/bash"], "#!/bin/bash\nexit 0\n"),
        ("\ufeff#!/usr/bin/python3\nx", ["/usr/bin/python3"], "#!/usr/bin/python3\nx\n"),
        ("\n#!/usr/bin/python3\nx\n", ["/usr/bin/python3"], "#!/usr/bin/python3\nx\n"),
        ("\ufeff\r\n \r\n#!/bin/sh\r\nx\r\n", ["/bin/sh"], "#!/bin/sh\nx\n"),
        ("#!/usr/bin/env bash -e\nx\n", ["/usr/bin/env", "bash", "-e"], "#!/usr/bin/env bash -e\nx\n"),
        ("#!\nx\n", ["/bin/bash"], "#!\nx\n"),
        ("# no shebang\n#!/bin/sh\n", ["/bin/bash"], "# no shebang\n#!/bin/sh\n"),
    ],
)
def test_script_is_read_as_its_author_meant_it(script: str, interpreter: list[str], text: str) -> None:
    assert normalize_script(script) == (interpreter, text)


def test_normalizing_twice_changes_nothing_more() -> None:
    words, text = normalize_script("\ufeff\r\n#!/usr/bin/env bash -e\r\nexit 3")
    assert normalize_script(text) == (words, text)


# ------------------------------------------------------------------------------------------------- real runs


def test_command_that_reads_stdin_does_not_eat_the_rest_of_the_script(place: Place) -> None:
    done = place.run("#!/bin/bash\ncat\necho after\nexit 5\n")
    assert (done.returncode, done.stdout) == (5, "after\n")


def test_script_without_shebang_is_run_by_bash(place: Place) -> None:
    done = place.run("words=(a b); echo ${words[1]} ${BASH_VERSION:+bash}")
    assert (done.returncode, done.stdout) == (0, "b bash\n")


def test_script_with_carriage_returns_ends_with_its_own_code(place: Place) -> None:
    done = place.run("#!/bin/bash\r\necho x\r\nexit 3\r\n")
    assert (done.returncode, done.stdout) == (3, "x\n")


@pytest.mark.parametrize("head", ["\n", "\ufeff", "\r\n", " \n\n"])
def test_what_stands_before_the_shebang_does_not_change_the_interpreter(place: Place, head: str) -> None:
    done = place.run(f"{head}#!{sys.executable}\nimport sys\nprint(sys.version_info[0])\nsys.exit(4)\n")
    assert (done.returncode, done.stdout) == (4, "3\n")


def test_env_with_an_argument_means_what_its_author_meant(place: Place) -> None:
    done = place.run("#!/usr/bin/env bash -e\nfalse\necho not reached\n")
    assert (done.returncode, done.stdout) == (1, "")


def test_env_with_split_string_keeps_all_words(place: Place) -> None:
    done = place.run("#!/usr/bin/env -S python3 -u\nimport sys\nprint(sys.stdout.write_through)\n")
    assert (done.returncode, done.stdout) == (0, "True\n")


def test_env_with_split_string_keeps_quoted_words_together(place: Place) -> None:
    done = place.run("#!/usr/bin/env -S 'ODD=two  words' bash\nprintf %s \"$ODD\"\n")
    assert (done.returncode, done.stdout) == (0, "two  words")


def test_python_script_finds_its_own_file(place: Place) -> None:
    done = place.run(
        f"#!{sys.executable}\nimport sys\nprint(__file__)\nprint(sys.argv)\nprint(open(__file__).readline())\n"
    )
    path = str(place.base / "prefect" / "script")
    assert done.stdout == f"{path}\n{[path]}\n#!{sys.executable}\n\n"


def test_stdin_of_the_script_is_dev_null(place: Place) -> None:
    done = place.run(
        f"#!{sys.executable}\nimport os\nprint(os.readlink('/proc/self/fd/0'), repr(open(0).read()))\n"
    )
    assert done.stdout == "/dev/null ''\n"


def test_script_begins_in_the_jobs_working_directory(place: Place) -> None:
    assert place.run("pwd -P").stdout == f"{place.base / 'work'}\n"


@pytest.mark.parametrize("code", [0, 1, 9, NOT_THE_OWNER, 126, 255])
def test_scripts_own_exit_code_comes_through(place: Place, code: int) -> None:
    assert place.run(f"exit {code}").returncode == code
    assert not any(name.startswith("refused.") for name in place.ours)


def test_script_takes_the_launchers_place_so_that_signals_reach_it(place: Place) -> None:
    done = place.run("echo $$\nkill -KILL $$\n")
    assert done.returncode == -9
    [noted] = [name for name in place.ours if name.startswith("process.")]
    assert noted == "process.1.100"
    assert (place.base / "prefect" / noted).read_text().split()[0] == done.stdout.strip()


@pytest.mark.parametrize(("umask", "mode"), [("0027", 0o640), ("077", 0o600), ("0002", 0o664)])
def test_umask_of_the_block_holds_in_the_script(place: Place, umask: str, mode: int) -> None:
    assert place.run(f"#!{sys.executable}\nopen('made', 'w')\n", umask=umask).returncode == 0
    assert stat.S_IMODE((place.base / "work" / "made").stat().st_mode) == mode


@pytest.mark.parametrize(("scheduler", "value"), [("slurm", "ALL"), ("local", "")])
def test_steps_of_a_slurm_job_get_the_jobs_environment(place: Place, scheduler: str, value: str) -> None:
    assert place.run('echo "$SLURM_EXPORT_ENV"', scheduler=scheduler).stdout == f"{value}\n"


@pytest.mark.parametrize("word", ODD_NAMES)
def test_interpreter_words_reach_the_interpreter_as_they_are(place: Place, word: str) -> None:
    odd = f"ODD={word}"
    done = place.run('printf %s "$ODD"', interpreter=["/usr/bin/env", odd, "/bin/bash"])
    assert (done.returncode, done.stdout) == (0, word)


@pytest.mark.parametrize("word", ["$HOME", "`id`", "it's", '"quoted"', "a;b", "*"])
def test_shebang_is_not_expanded_by_any_shell(place: Place, word: str) -> None:
    done = place.run(f'#!/usr/bin/env ODD={word} bash\nprintf %s "$ODD"\n')
    assert (done.returncode, done.stdout) == (0, word)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_job_directory_may_have_any_name(tmp_path: Path, name: str) -> None:
    place = Place(tmp_path / name / "1")
    assert place.run("pwd -P; exit 6").returncode == 6
    assert place.run("true", jobid="200").returncode == NOT_THE_OWNER
    assert place.ours == {
        *("script", "process.1.100", "process.1.200", "nodes.1.100", "nodes.1.200"),
        *("owner.1", "refused.1.200"),
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_missing_interpreter_is_an_error_that_names_it(place: Place) -> None:
    done = place.run("#!/no/such/python\nx\n")
    assert done.returncode == 127
    assert "/no/such/python" in done.stderr


# -------------------------------------------------------------------------------------------- only one runs


def test_second_slurm_job_of_the_same_run_does_nothing(place: Place) -> None:
    script = "echo ran >> count"
    assert place.run(script, jobid="100").returncode == 0
    second = place.run(script, jobid="101")
    assert second.returncode == NOT_THE_OWNER
    assert "100" in second.stderr
    assert second.stdout == ""
    assert "refused.1.101" in place.ours
    assert (place.base / "work" / "count").read_text() == "ran\n"


def test_requeued_job_keeps_its_id_and_runs_again(place: Place) -> None:
    for _ in range(2):
        assert place.run("echo ran >> count", jobid="100").returncode == 0
    assert (place.base / "work" / "count").read_text() == "ran\nran\n"
    assert not any(name.startswith("refused.") for name in place.ours)


def test_next_run_of_the_job_has_an_owner_of_its_own(place: Place) -> None:
    assert place.run("exit 3", jobid="100", jobndx=1).returncode == 3
    assert place.run("exit 0", jobid="101", jobndx=2).returncode == 0
    assert {"owner.1", "owner.2"} <= place.ours
    assert not any(name.startswith("refused.") for name in place.ours)


def test_of_many_that_start_at_the_same_moment_exactly_one_runs(place: Place) -> None:
    interpreter = place.write("echo ran >> count")
    started = [place.start(interpreter, jobid=str(number)) for number in range(100, 112)]
    for process, launcher in started:
        assert process.stdin is not None
        process.stdin.write(launcher)
        process.stdin.close()
    codes = []
    for process, _ in started:
        codes.append(process.wait(timeout=60))
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
    assert sorted(codes) == [0] + [NOT_THE_OWNER] * 11
    assert (place.base / "work" / "count").read_text() == "ran\n"
    assert len([name for name in place.ours if name.startswith("refused.1.")]) == 11


def test_refused_job_does_not_run_the_script_even_if_its_directory_is_gone(place: Place) -> None:
    interpreter = place.write("touch ran")
    for path in (place.base / "prefect").iterdir():
        path.unlink()
    (place.base / "prefect").rmdir()
    process, launcher = place.start(interpreter, jobid="100")
    process.communicate(launcher, timeout=60)
    assert process.returncode == NOT_WRITABLE
    assert not (place.base / "work" / "ran").exists()


def test_a_run_that_was_to_end_before_it_began_does_nothing(place: Place) -> None:
    place.write("#!/bin/bash\ntouch ran\n")
    (place.base / "prefect" / "cancel.1").write_text("{}")
    done = place.run("#!/bin/bash\ntouch ran\n")
    assert done.returncode == CANCELED
    assert not (place.base / "work" / "ran").exists()
    assert place.run("#!/bin/bash\ntouch ran\n", jobndx=2).returncode == 0


PYTHON_ECHO = "#!/usr/bin/env python3\nimport sys\nprint(*sys.argv[1:], sep='\\0', end='\\0')\n"
ODD_ARGUMENTS = [*ODD_NAMES, "", "two\nlines", "--", "-e", "$1", "'\"'", "\t", "\\"]


@pytest.mark.parametrize(
    "interpreter", ['#!/bin/bash\nfor a in "$@"; do printf \'%s\\0\' "$a"; done', PYTHON_ECHO]
)
def test_script_gets_its_arguments_as_they_are(place: Place, interpreter: str) -> None:
    done = place.run(interpreter, arguments=ODD_ARGUMENTS)
    assert done.stdout.split("\0")[:-1] == ODD_ARGUMENTS
    assert place.run("#!/bin/bash\necho $#", jobid="101", jobndx=2).stdout == "0\n"


def test_submit_dir_is_where_the_script_starts(place: Place) -> None:
    script = 'cd /; cd "${SLURM_SUBMIT_DIR:?}" && echo r > result.txt'
    assert place.run(script, scheduler="slurm").returncode == 0
    assert (place.base / "work" / "result.txt").read_text() == "r\n"


def test_the_launchers_warning_reaches_the_trap_and_is_noted(place: Place) -> None:
    done = place.run("trap 'echo warned; exit 85' USR1; for _ in {1..300}; do sleep 0.2; done", warn_after=1)
    assert (done.returncode, done.stdout) == (85, "warned\n")
    assert (place.base / "prefect" / "signals.1.100").read_text() == "SIGUSR1\n"


def test_a_script_knows_nothing_of_the_timer_of_its_warning(place: Place) -> None:
    """It holds nothing open, is not a child that the script could wait for, and does not outlive it by long."""
    script = f"#!{sys.executable}\nimport os\ntry:\n    os.wait()\nexcept ChildProcessError:\n    print('none')\n"
    done = place.run(script, warn_after=600)
    assert (done.returncode, done.stdout) == (0, "none\n")
    assert not any(name.startswith("signals.") for name in place.ours)
