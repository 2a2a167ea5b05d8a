"""Hostile payloads and a hostile prefix: whatever is sent, no character acts and no file outside is touched."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefect_psik.blocks import BackendAttributes, PsikBackend
from prefect_psik.outcome.judge import parse_status
from prefect_psik.spec.identity import Identity
from prefect_psik.spec.jobspec import JobSpec
from tests.unit.test_remote import (
    STAMP,
    check_answer,
    make_job,
    nothing_is_run,
    nothing_is_started,
    remote,
    snapshot,
)

SECRET = "a secret that lies beside the prefix"

# ------------------------------------------------------------------------------------- characters that act

#: Each would make the file {canary} if it met a shell, or sbatch's or Python's reading of a batch script.
ACTING = (
    "$(touch {canary})",
    "`touch {canary}`",
    "; touch {canary};",
    "x && touch {canary} #",
    "x | touch {canary}",
    "'; touch {canary}; '",
    '"; touch {canary}; "',
    "\ntouch {canary}\n",
    "x\n#SBATCH --comment=evil\ntouch {canary}\n",
    "x\r\ntouch {canary}\r\n",
    '");import"os";open("{canary}","w");("',
    "%j\\",
)
#: What is run on purpose: the script, what starts it, and the interpreter that the block names.
RUN_ON_PURPOSE = {("script",), ("spec", "script"), ("backend", "type"), ("stamp",)}

_SBATCH = """\
#!/bin/sh
printf '%s\\n' "$@" > {top}/arguments
cat > {top}/batch
echo Submitted batch job 123
"""


def a_job(kind: str) -> dict[str, Any]:
    """A job with something in every field, as our side sends it."""
    block = PsikBackend(
        attributes=BackendAttributes.model_validate(
            {"type": kind, "queue_name": "queue", "project_name": "project", "options": {"--comment": "word"}}
        )
    )
    spec = JobSpec.model_validate(
        {
            "name": "name",
            "script": "#!/bin/sh\necho ran > ran\n",
            "environment": {"NAME": "value"},
            "files": {"a/file": "content"},
            "outputs": ["output"],
            "expect": ["ran"],
            "attributes": {"--qos": "word"},
        }
    )
    identity = Identity(key="key", stamp=STAMP, attempt=[1])
    return block.submission(spec, identity, {"flow_run": "x", "flow": "y"})


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """All strings of a payload and where they are, `key` or `value`."""
    if isinstance(value, str):
        yield way, "value"
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        if isinstance(key, str) and len(way) and way[-1] in ("environment", "attributes", "files"):
            yield (*way, key), "key"
        yield from places(inner, (*way, key))


def put(job: dict[str, Any], way: tuple[Any, ...], what: str, text: str) -> None:
    """Put a text in the place of a string, or behind it in the place of a key."""
    inner: Any = job
    for step in way[:-1]:
        inner = inner[step]
    if what == "key":
        inner[f"{way[-1]}{text}"] = inner.pop(way[-1])
    else:
        inner[way[-1]] = text


PLACES = sorted({place for kind in ("slurm", "local") for place in places(a_job(kind))}, key=str)
PLACES = [place for place in PLACES if place[0] not in RUN_ON_PURPOSE]


def submitted(top: Path, prefix: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Submit a job where sbatch is a script that keeps what it is given; run the batch script as Slurm would."""
    (top / "bin").mkdir(exist_ok=True)
    (top / "bin" / "sbatch").write_text(_SBATCH.format(top=top))
    (top / "bin" / "sbatch").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{top / 'bin'}:{os.environ['PATH']}")
        answer = check_answer(remote.call("submit", {"prefix": str(prefix), "jobs": [job]}))
    batch = top / "batch"
    if batch.exists():
        text = batch.read_text()
        directives = [line for line in text.splitlines() if line.lstrip().startswith("#SBATCH")]
        assert len(directives) == 2, text
        batch.chmod(0o700)
        slurms = {"SLURM_JOB_ID": "123", "SLURM_JOB_NUM_NODES": "1"}
        command = [str(batch)]
        subprocess.run(command, cwd=top, env=os.environ | slurms, timeout=300, check=False, capture_output=True)
    return answer


def wait_for_end(prefix: Path) -> list[str]:
    """Wait until the job of psik's local backend has ended; returns the states of its record."""
    record = prefix / STAMP / "status.csv"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        states = [row.state.value for row in parse_status(record.read_text())] if record.exists() else []
        if not states or states[-1] in ("completed", "failed"):
            return states
        time.sleep(0.05)
    raise AssertionError(f"{record} has no end: {record.read_text()}")


@pytest.mark.parametrize("kind", ["slurm", "local"])
def test_the_job_that_is_made_hostile_runs_as_it_is(tmp_path: Path, kind: str) -> None:
    """What follows shows something only if it does."""
    answer = submitted(tmp_path, tmp_path / "p", a_job(kind))
    assert answer["jobs"][STAMP]["created"] is True
    assert wait_for_end(tmp_path / "p")[-1] == "completed"
    assert (tmp_path / "p" / STAMP / "work" / "ran").read_text() == "ran\n"


@pytest.mark.parametrize("kind", ["slurm", "local"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{'.'.join(map(str, place[0]))} {place[1]}")
def test_each_character_in_each_string_is_taken_or_refused_and_touches_only_the_prefix(
    tmp_path: Path, kind: str, place: tuple[tuple[Any, ...], str]
) -> None:
    """All of them, up to where psik would start something; some of them are started below."""
    for number, text in enumerate(ACTING):
        top = tmp_path / str(number)
        top.mkdir()
        job = copy.deepcopy(a_job(kind))
        try:
            put(job, *place, text.format(canary=top / "canary"))
        except KeyError:
            return  # this kind of job has no such field
        with nothing_is_run():
            answer = check_answer(remote.call("submit", {"prefix": str(top / "p"), "jobs": [job]}))
        assert list(top.iterdir()) == [top / "p"], answer
        script = top / "p" / STAMP / "prefect" / "script"
        assert not script.exists() or script.read_text() == a_job(kind)["script"]


def link_of(prefix: Path) -> Path:
    """The one thing that is made outside of a prefix: beside an odd one, a link for Slurm that leads to it."""
    name = f".psik-{hashlib.sha256(os.fsencode(prefix)).hexdigest()[:16]}"
    return prefix.parent.parent / name


@pytest.mark.parametrize("kind", ["slurm", "local"])
@pytest.mark.parametrize("text", ACTING)
def test_each_character_in_a_prefix_is_taken_or_refused_and_nothing_but_a_link_is_made_beside_it(
    tmp_path: Path, kind: str, text: str
) -> None:
    odd = tmp_path / text.format(canary="canary").replace("/", "")
    odd.mkdir()
    with nothing_is_run():
        answer = check_answer(remote.call("submit", {"prefix": str(odd / "p"), "jobs": [a_job(kind)]}))
    made = set(tmp_path.iterdir()) - {odd}
    if "error" in answer or kind == "local":
        assert made == set(), answer
    else:
        assert made == {link_of(odd / "p")}
        assert link_of(odd / "p").readlink() == odd / "p"
    assert set(odd.iterdir()) <= {odd / "p"}


@settings(max_examples=25)
@given(st.sampled_from(["slurm", "local"]), st.sampled_from(PLACES), st.sampled_from(ACTING))
def test_no_character_acts_in_any_string_of_a_job(
    kind: str, place: tuple[tuple[Any, ...], str], text: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        job = copy.deepcopy(a_job(kind))
        try:
            put(job, *place, text.format(canary=top / "canary"))
        except KeyError:
            return  # this kind of job has no such field
        submitted(top, top / "p", job)
        if kind == "local":
            wait_for_end(top / "p")
        assert not (top / "canary").exists()


@settings(max_examples=12)
@given(st.sampled_from(["slurm", "local"]), st.sampled_from(ACTING), st.booleans())
@example("slurm", '");import"os";open("{canary}","w");("', True)
@example("slurm", "%j\\", True)
@example("slurm", "'; touch {canary}; '", True)
def test_no_character_acts_in_a_path(kind: str, text: str, is_prefix: bool) -> None:
    """In a path that exists, such a name is only a name: the job runs there."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        odd = top / text.format(canary="canary").replace("/", "")
        odd.mkdir()
        job = a_job(kind)
        if not is_prefix:
            job["spec"]["directory"] = str(odd)
        prefix = odd / "p" if is_prefix else top / "p"
        answer = submitted(top, prefix, job)
        if "error" not in answer:
            assert wait_for_end(prefix)[-1] == "completed", answer
            work = prefix / STAMP / "work" if is_prefix else odd
            assert (work / "ran").read_text() == "ran\n"
        else:
            assert is_prefix, answer
            assert set("$\n") & set(text), answer  # no prefix may have these
        assert list(top.rglob("canary")) == []
        # What the stand-in for sbatch needs and leaves, and by design a link to the odd prefix.
        beside = {top / name for name in ("bin", "arguments", "batch", "p")} | {odd, link_of(prefix)}
        assert set(top.iterdir()) <= beside


# ------------------------------------------------------------------------------------------ a planted prefix


def plant(top: Path) -> Path:
    """A prefix with links to what lies beside it, wherever a job directory or a part of one would be.

    Logs are not among what is secret: a job that links them could as well print what it links.
    """
    outside, prefix = top / "outside", top / "p"
    for name in ("work", "log", "prefect"):
        (outside / name).mkdir(parents=True)
    (outside / "secret").write_text(SECRET)
    done = ("0,new,{}", "1,queued,x", "1,active,", "1,completed,")
    whole = make_job(prefix, "12", rows=done, outputs=["**/*", "*"], expect=["*"])
    (whole / "work" / "file").symlink_to(outside / "secret")
    (whole / "work" / "directory").symlink_to(outside)
    for stamp, name in (("21", "work"), ("22", "log"), ("23", "prefect")):
        base = make_job(prefix, stamp, rows=done)
        remains = base / name
        for path in sorted(remains.rglob("*"), reverse=True):
            path.unlink()
        remains.rmdir()
        remains.symlink_to(outside / name)
    (prefix / "404").symlink_to(outside)
    (prefix / "405").symlink_to(top / "nowhere")
    (prefix / ".locks").symlink_to(outside / "log")
    return prefix


LONG = "x" * 300
NAMES = st.sampled_from(
    [
        *("..", "../x", "../../x", "{top}/outside/x", "d/../../x", "directory/x", "log/stdout.1", "*", "**/*"),
        *("a\0b", "a\nb", "\ud800", LONG, f"d/{LONG}", "d/" * 3000 + "x", "", ".", "/", "~/x", "$HOME/x"),
    ]
)


@settings(max_examples=60)
@given(st.data())
def test_nothing_outside_of_a_planted_prefix_is_read_or_written(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        prefix = plant(top)
        stamps = st.sampled_from([path.name for path in prefix.iterdir() if path.name != ".locks"] + ["9", LONG])
        if data.draw(st.booleans()):
            (prefix / ".locks").unlink()  # with it, everything is refused
        operation = data.draw(st.sampled_from(sorted(remote.OPERATIONS)))
        stamp = data.draw(stamps)
        files = {text.replace("{top}", str(top)): {"text": "x"} for text in data.draw(st.lists(NAMES, max_size=2))}
        globs = [text.replace("{top}", str(top)) for text in data.draw(st.lists(NAMES, max_size=2))]
        job = a_job("local") | {"stamp": stamp, "files": files, "outputs": globs, "expect": globs}
        job |= {"jobndx": 1, "offsets": {"stdout": 0}}
        before = snapshot(top, prefix)
        with nothing_is_started():
            answer = remote.call(operation, {"prefix": str(prefix), "jobs": [job]} | job)
        check_answer(answer)
        assert SECRET not in str(answer)
        assert snapshot(top, prefix) == before


@pytest.mark.parametrize("operation", ["submit", "preflight"])
def test_a_link_in_the_place_of_our_own_directory_is_named(tmp_path: Path, operation: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / ".locks").symlink_to(tmp_path / "outside")
    job = a_job("local")
    answer = check_answer(remote.call(operation, {"prefix": str(tmp_path / "p"), "jobs": [job]} | job))
    assert f"{tmp_path / 'p' / '.locks'} on " in str(answer)
    assert "is a link" in str(answer)
    assert list((tmp_path / "outside").iterdir()) == []
