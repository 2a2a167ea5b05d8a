"""Tests of what runs at the facility, in this process and without jobs: whatever comes in, a sentence goes out."""

from __future__ import annotations

import ast
import base64
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_psik.blocks import PsikBackend
from prefect_psik.jobs.preflight import preflight_payload
from prefect_psik.remote import PARTS, letter
from prefect_psik.spec.identity import Identity
from prefect_psik.spec.jobspec import JobSpec

#: The letter as it arrives: one text, in a namespace of its own.
remote: Any = ModuleType("the_letter")
exec(compile(letter(), "<letter>", "exec"), remote.__dict__)

OPERATIONS = ["submit", "status", "cancel", "check", "fetch"]
KINDS = {"payload", "setup", "foreign", "spec", "rejected", "conflict", "busy", "missing"}
BAD_STAMPS = [
    "../x",
    "1/2",
    "..",
    "",
    ".",
    "1.2.3",
    "1.",
    ".1",
    "1\n",
    " 1",
    "-1",
    "１２",
    "1\0",
    "x",
    "~",
    "$HOME",
]
STAMP = "12345678901234567890"


def make_job(prefix: Path, stamp: str = STAMP, *, rows: tuple[str, ...] = ("0,new,{}",), **record: Any) -> Path:
    """A job directory as it lies at the facility, without a job."""
    base = prefix / stamp
    for name in ("prefect", "work", "log"):
        (base / name).mkdir(parents=True)
    (base / "status.csv").write_text("".join(f"{time.time()},{row}\n" for row in rows))
    known: dict[str, Any] = {
        "key": "k",
        "digest": "d",
        "canonical": "{}",
        "outputs": [],
        "expect": [],
        "owner": None,
    }
    known |= {"version": 1, "type": "local", "directory": str(base / "work"), "created": 1.0}
    (base / "prefect" / "job.json").write_text(json.dumps(known | record))
    return base


def new_job(**changes: Any) -> dict[str, Any]:
    """One job as our side sends it to be submitted, some of it changed."""
    identity = Identity(key="k", stamp=STAMP, attempt=[1, 1])
    return PsikBackend().submission(JobSpec(script="true\n"), identity, {"flow_run": "x"}) | changes


@contextmanager
def nothing_is_started() -> Iterator[mock.Mock]:
    """Submit up to the point where psik would fork."""
    with mock.patch.object(remote, "_launch", return_value=("1", [])) as launch:
        yield launch


@contextmanager
def nothing_is_run() -> Iterator[None]:
    """Neither is a job started nor another command, and no process gets a signal."""
    absent = FileNotFoundError(2, "No such file or directory")
    with (
        nothing_is_started(),
        mock.patch.object(subprocess, "run", side_effect=absent),
        mock.patch.object(os, "kill") as kill,
    ):
        yield
    assert not kill.called


def only(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer for the only job of a call, or its error."""
    [found] = answer["jobs"].values()
    return dict(found)


def check_error(error: dict[str, Any]) -> str:
    assert error["kind"] in KINDS
    message = str(error["message"])
    assert len(message) > 10
    assert message.endswith(".")
    assert "Traceback" not in message
    return message


def check_answer(answer: dict[str, Any]) -> dict[str, Any]:
    """Every answer is JSON with the facility's clock, and every error a sentence."""
    json.dumps(answer)
    assert isinstance(answer["now"], float)
    if "error" in answer:
        check_error(answer["error"])
        return answer
    for found in answer.get("jobs", {}).values():
        if "error" in found:
            check_error(found["error"])
    return answer


def refusal(operation: str, payload: Any) -> str:
    answer = check_answer(remote.call(operation, payload))
    assert "error" in answer, answer
    return check_error(answer["error"])


def snapshot(directory: Path, without: Path) -> dict[str, bytes | None]:
    """All paths below a directory with their bytes, except below one of them."""
    found: dict[str, bytes | None] = {}
    for path in sorted(directory.rglob("*")):
        if path != without and without not in path.parents:
            found[str(path)] = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    return found


# ------------------------------------------------------------------------------------------------ the letter


def test_no_two_parts_define_the_same_name() -> None:
    """Joined, the later one would silently replace the other."""
    folder = resources.files("prefect_psik.remote")
    defined: list[str] = []
    for part in PARTS:
        for node in ast.parse(folder.joinpath(f"{part}.py").read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.append(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                defined += [
                    name.id
                    for name in ast.walk(node)
                    if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
                ]
    assert len(defined) == len(set(defined)), [name for name in defined if defined.count(name) > 1]
    modules = {path.name.removesuffix(".py") for path in folder.iterdir() if path.name.endswith(".py")}
    assert set(PARTS) == modules - {"__init__"}


def test_the_letter_imports_the_standard_library_only() -> None:
    tree = ast.parse(letter())
    top = {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
    top |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in top} <= sys.stdlib_module_names


# -------------------------------------------------------------------------------------------------- payloads


def test_hello_says_who_answers() -> None:
    answer = check_answer(remote.call("hello", {}))
    assert answer["protocol"] == remote.PROTOCOL
    assert answer["host"]
    assert answer["user"]


@pytest.mark.parametrize("name", ["", "Submit", "__import__", "exec", "preflight "])
def test_unknown_operation_is_named(name: str) -> None:
    assert repr(name) in refusal(name, {})


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("payload", [None, [], "x", 5], ids=repr)
def test_payload_that_is_no_mapping_is_refused(operation: str, payload: Any) -> None:
    assert refusal(operation, payload)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "broken",
    [
        {"prefix": None},
        {"prefix": 5},
        {"prefix": "/a\nb"},
        {"prefix": "/a\0b"},
        {"jobs": None},
        {"jobs": "x"},
        {"jobs": {"1": {}}},
        {"jobs": [None]},
        {"jobs": [{}]},
        {"jobs": ["1"]},
        {"jobs": [{"stamp": 1}]},
        {"jobs": [{"stamp": "1", "jobndx": "1"}]},
        {"jobs": [{"stamp": "1", "jobndx": 1.5}]},
        {"jobs": [{"stamp": "1", "jobndx": [1]}]},
    ],
    ids=str,
)
def test_malformed_payload_is_refused_with_a_sentence(
    tmp_path: Path, operation: str, broken: dict[str, Any]
) -> None:
    with nothing_is_started() as launch:
        assert refusal(operation, {"prefix": str(tmp_path / "p"), "jobs": []} | broken)
    assert not launch.called


@pytest.mark.parametrize("absent", ["prefix", "jobs"])
def test_payload_without_what_it_needs_is_refused_with_a_sentence(tmp_path: Path, absent: str) -> None:
    payload = {"prefix": str(tmp_path), "jobs": [{"stamp": STAMP}]}
    del payload[absent]
    for operation in OPERATIONS:
        assert absent in refusal(operation, payload)


@pytest.mark.parametrize("offsets", ["x", {"stdout": "x"}, {"stdout": [1]}, {"stdout": float("inf")}], ids=repr)
def test_malformed_offsets_are_refused_with_a_sentence(tmp_path: Path, offsets: Any) -> None:
    make_job(tmp_path)
    job = {"stamp": STAMP, "offsets": offsets}
    answer = check_answer(remote.call("status", {"prefix": str(tmp_path), "jobs": [job]}))
    check_error(answer["jobs"][STAMP]["error"])


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": None},
        {"backend": {"type": "local", "colour": "red"}},
        {"spec": {}},
        {"spec": {"script": "x", "unknown": 1}},
        {"files": {"a": {}}},
        {"files": {"a": {"base64": "é"}}},
        {"files": {"a\0b": {"text": "x"}}},
        {"script": 5},
    ],
    ids=str,
)
def test_malformed_job_is_refused_with_a_sentence_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    prefix = tmp_path / "p"
    with nothing_is_started() as launch:
        answer = check_answer(remote.call("submit", {"prefix": str(prefix), "jobs": [new_job(**changes)]}))
    if "error" not in answer:
        assert "error" in only(answer)
    assert not launch.called
    assert not (prefix / STAMP).exists()


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("stamp", BAD_STAMPS)
def test_stamp_that_is_a_path_is_refused_and_nothing_is_made(tmp_path: Path, operation: str, stamp: str) -> None:
    prefix = tmp_path / "p"
    prefix.mkdir()
    with nothing_is_started() as launch:
        text = refusal(operation, {"prefix": str(prefix), "jobs": [new_job(stamp=stamp)]})
    assert repr(stamp) in text
    assert not launch.called
    assert list(tmp_path.rglob("*")) == [prefix]


# --------------------------------------------------------------------------------------------------- prefix


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "prefix", ["$PSIK_TEST_UNSET/x", "${PSIK_TEST_UNSET}/x", "psik/jobs", "./x", "", "~nosuchuser_/x"]
)
def test_prefix_that_is_no_absolute_path_there_is_refused_with_what_it_becomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, prefix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with nothing_is_started() as launch:
        text = refusal(operation, {"prefix": prefix, "jobs": [new_job()]})
    assert repr(prefix) in text
    assert "not an absolute path" in text
    assert not launch.called
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_unset_variable_in_the_middle_of_a_prefix_makes_no_directory_of_its_name(
    tmp_path: Path, operation: str
) -> None:
    with nothing_is_started() as launch:
        text = refusal(operation, {"prefix": f"{tmp_path}/$PSIK_TEST_UNSET/x", "jobs": [new_job()]})
    assert "$PSIK_TEST_UNSET" in text
    assert not launch.called
    assert list(tmp_path.iterdir()) == []


def test_variables_of_the_facility_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSIK_TEST_SCRATCH", str(tmp_path))
    make_job(tmp_path / "jobs")
    payload = {"prefix": "$PSIK_TEST_SCRATCH/jobs/", "jobs": [{"stamp": STAMP}]}
    assert only(remote.call("status", payload))["type"] == "local"


def test_prefix_that_cannot_be_written_is_told_with_place_user_and_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    prefix = tmp_path / "file" / "psik"
    with nothing_is_started() as launch:
        text = refusal("submit", {"prefix": str(prefix), "jobs": [new_job()]})
    assert f"The prefix {prefix} on " in text
    assert "not writable" in text
    assert "Not a directory" in text
    assert not launch.called
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("operation", ["submit", "preflight"])
@pytest.mark.parametrize("above", ["user", ""], ids=["made before", "made by the first job"])
def test_prefix_whose_file_system_is_not_mounted_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, above: str
) -> None:
    elsewhere, mount_point = tmp_path / "file system", tmp_path / "scratch"
    prefix = mount_point / "user" / "psik jobs"
    (elsewhere / above).mkdir(parents=True)
    payload = preflight_payload(PsikBackend(prefix=str(prefix)), JobSpec(script="true")) | {"jobs": [new_job()]}
    mounted = {str(mount_point)}
    monkeypatch.setattr(os.path, "ismount", lambda path: path in {"/", *mounted})
    elsewhere.rename(mount_point)
    with nothing_is_started() as launch:
        assert "error" not in only(remote.call("submit", payload))
        assert launch.call_count == 1
        assert stat.S_IMODE(prefix.stat().st_mode) == 0o700
        mount_point.rename(elsewhere)
        mount_point.mkdir()
        mounted.clear()
        answer = remote.call(operation, payload)
        assert launch.call_count == 1
    error = (answer.get("prefix") or answer)["error"]
    text = error["message"] if operation == "submit" else error
    assert f"The prefix {prefix} on " in text
    assert f"{prefix.parent} does not exist" in text
    assert f"mkdir -p {prefix.parent}" in text
    assert list(mount_point.iterdir()) == []


@pytest.mark.parametrize(
    ("operation", "kind"), [("status", "busy"), ("cancel", "busy"), ("check", "setup"), ("fetch", "setup")]
)
def test_prefix_that_is_not_there_says_nothing_of_its_jobs(tmp_path: Path, operation: str, kind: str) -> None:
    (tmp_path / "file").write_text("")
    for prefix in (tmp_path / "absent", tmp_path / "file" / "x"):
        error = remote.call(operation, {"prefix": str(prefix), "jobs": [{"stamp": STAMP}]})["error"]
        assert error["kind"] == kind
        assert f"The prefix {prefix} " in error["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_job_that_is_missing_is_a_fact_and_stays_the_same_fact(tmp_path: Path) -> None:
    payload = {"prefix": str(tmp_path), "jobs": [{"stamp": STAMP}]}
    facts = only(remote.call("status", payload))
    assert facts == {"missing": True, "token": "missing"}
    payload = {"prefix": str(tmp_path), "jobs": [{"stamp": STAMP, "seen": facts["token"]}]}
    assert only(remote.call("status", payload)) == {"same": True}


def test_unchanged_job_is_answered_with_same_and_a_changed_one_in_full(tmp_path: Path) -> None:
    base = make_job(tmp_path, rows=("0,new,{}", "1,queued,x", "1,active,", "1,completed,"))

    def look(seen: str | None) -> dict[str, Any]:
        return only(remote.call("status", {"prefix": str(tmp_path), "jobs": [{"stamp": STAMP, "seen": seen}]}))

    token = look(None)["token"]
    assert look(token) == {"same": True}
    (base / "log" / "stdout.1").write_text("more")
    assert look(token)["tails"]["stdout"] == "more"


# ------------------------------------------------------------------------------------------------------ logs


def read_log(prefix: Path, offset: int, stream: str = "stdout") -> dict[str, Any]:
    job = {"stamp": STAMP, "jobndx": 1, "offsets": {stream: offset}}
    answer = check_answer(remote.call("status", {"prefix": str(prefix), "jobs": [job]}))
    return dict(only(answer)["logs"][stream])


@pytest.mark.parametrize("shift", range(4))
def test_long_log_is_read_in_chunks_and_no_character_is_broken(tmp_path: Path, shift: int) -> None:
    base = make_job(tmp_path)
    text = "x" * shift + "é☃𝄞\n" * 6000
    (base / "log" / "stdout.1").write_text(text)
    parts, offset, size = [], 0, len(text.encode())
    while offset < size:
        log = read_log(tmp_path, offset)
        assert log["size"] == size
        assert log["next"] > offset
        parts.append(log["text"])
        offset = log["next"]
    assert "".join(parts) == text
    assert len(parts) > 3
    assert max(len(part.encode()) for part in parts) <= remote.LOG_CHUNK_BYTES


@settings(max_examples=60)
@given(st.text("aé☃𝄞\n", max_size=40), st.lists(st.integers(0, 160), max_size=6))
def test_log_that_grows_in_the_middle_of_characters_comes_whole(text: str, cuts: list[int]) -> None:
    data = text.encode()
    with tempfile.TemporaryDirectory() as directory:
        prefix = Path(directory)
        base = make_job(prefix)
        received, offset = "", 0
        for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
            (base / "log" / "stdout.1").write_bytes(data[:cut])
            log = read_log(prefix, offset)
            received, offset = received + log["text"], log["next"]
            assert "\ufffd" not in received
        assert received == text
        assert offset == len(data)


def test_bytes_that_are_no_text_do_not_stop_the_log(tmp_path: Path) -> None:
    base = make_job(tmp_path)
    (base / "log" / "stdout.1").write_bytes(b"a\xff\xfeb\n")
    log = read_log(tmp_path, 0)
    assert log["text"] == "a\ufffd\ufffdb\n"
    assert log["next"] == 5


def test_log_that_was_begun_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    base = make_job(tmp_path)
    (base / "log" / "stdout.1").write_text("a long first text\n")
    offset = read_log(tmp_path, 0)["next"]
    (base / "log" / "stdout.1").write_text("short\n")
    assert read_log(tmp_path, offset) == {"text": "short\n", "next": 6, "size": 6}


@pytest.mark.parametrize("offset", [-1, 10**30])
def test_impossible_offset_reads_from_the_beginning(tmp_path: Path, offset: int) -> None:
    base = make_job(tmp_path)
    (base / "log" / "stdout.1").write_text("text")
    assert read_log(tmp_path, offset)["text"] == "text"


def test_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    make_job(tmp_path)
    assert read_log(tmp_path, 0) == {"text": "", "next": 0, "size": 0}


def test_logs_of_many_jobs_together_stay_within_the_size_of_a_call(tmp_path: Path) -> None:
    stamps = [str(number) for number in range(100, 180)]
    for stamp in stamps:
        base = make_job(tmp_path, stamp)
        (base / "log" / "stdout.1").write_bytes(b"x" * 2 * remote.LOG_CHUNK_BYTES)
    jobs = [{"stamp": stamp, "jobndx": 1, "offsets": {}} for stamp in stamps]
    answer = remote.call("status", {"prefix": str(tmp_path), "jobs": jobs})
    logs = [facts["logs"]["stdout"] for facts in answer["jobs"].values()]
    assert sum(len(log["text"]) for log in logs) <= remote.LOG_CALL_BYTES
    assert all(log["next"] == len(log["text"]) for log in logs)
    assert logs[-1] == {"text": "", "next": 0, "size": 2 * remote.LOG_CHUNK_BYTES}


# ----------------------------------------------------------------------------------------------------- fetch


def fetched(prefix: Path) -> dict[str, bytes]:
    answer = check_answer(remote.call("fetch", {"prefix": str(prefix), "jobs": [{"stamp": STAMP}]}))
    return {name: base64.b64decode(data) for name, data in only(answer)["files"].items()}


def checked(prefix: Path) -> list[dict[str, Any]]:
    answer = check_answer(remote.call("check", {"prefix": str(prefix), "jobs": [{"stamp": STAMP, "jobndx": 1}]}))
    return list(only(answer)["found"])


def test_fetch_brings_the_bytes_of_what_the_outputs_match(tmp_path: Path) -> None:
    base = make_job(tmp_path, outputs=["*.txt", "deep/**/x.bin", "absent"])
    (base / "work" / "a.txt").write_text("é")
    (base / "work" / "b.dat").write_text("not asked for")
    (base / "work" / "deep" / "er").mkdir(parents=True)
    (base / "work" / "deep" / "er" / "x.bin").write_bytes(b"\x00\xff")
    assert fetched(tmp_path) == {"a.txt": "é".encode(), "deep/er/x.bin": b"\x00\xff"}


def test_fetch_refuses_links_that_lead_out_of_the_jobs_directory(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    base = make_job(
        tmp_path / "p",
        outputs=["*", "**/*", "dirlink/*", "../spec.json", "../../../outside/*", str(outside / "*")],
    )
    (base / "spec.json").write_text("{}")
    (base / "work" / "link").symlink_to(outside / "secret")
    (base / "work" / "dirlink").symlink_to(outside)
    (base / "work" / "dangling").symlink_to(tmp_path / "nowhere")
    (base / "work" / "inner").symlink_to("own.txt")
    (base / "work" / "own.txt").write_text("own")
    assert fetched(tmp_path / "p") == {"own.txt": b"own", "inner": b"own"}


def test_link_out_of_the_directory_does_not_count_as_an_output(tmp_path: Path) -> None:
    base = make_job(tmp_path / "p", rows=("1,queued,x", "1,active,", "1,completed,"), outputs=["result"])
    (tmp_path / "elsewhere").write_text("x")
    (base / "work" / "result").symlink_to(tmp_path / "elsewhere")
    [found] = checked(tmp_path / "p")
    assert (found["matches"], found["good"]) == (1, 0)
    assert found["wrong"] == [{"name": "result", "why": "outside", "target": str(tmp_path / "elsewhere")}]


def test_what_does_not_fit_into_an_answer_is_named_with_its_size(tmp_path: Path) -> None:
    base = make_job(tmp_path, outputs=["*"])
    with (base / "work" / "big").open("wb") as file:
        file.truncate(remote.OUTPUT_BYTES + 1)
    (base / "work" / "small").write_text("s")
    answer = remote.call("fetch", {"prefix": str(tmp_path), "jobs": [{"stamp": STAMP}]})
    assert only(answer)["left"] == [{"name": "big", "why": "size", "size": remote.OUTPUT_BYTES + 1}]
    assert set(only(answer)["files"]) == {"small"}


def test_fetch_brings_nothing_that_is_no_plain_file(tmp_path: Path) -> None:
    base = make_job(tmp_path, outputs=["*"])
    (base / "work" / "directory").mkdir()
    os.mkfifo(base / "work" / "pipe")
    assert fetched(tmp_path) == {}


def test_output_whose_name_is_no_text_comes_under_a_name_that_json_can_hold(tmp_path: Path) -> None:
    base = make_job(tmp_path, outputs=["*"])
    with open(os.fsencode(base / "work") + b"/\xe9.txt", "wb") as file:
        file.write(b"x")
    [(name, data)] = fetched(tmp_path).items()
    assert data == b"x"
    assert name.encode("utf-8")


def test_directory_with_glob_characters_is_taken_literally(tmp_path: Path) -> None:
    base = make_job(
        tmp_path / "p[1]*", rows=("1,queued,x", "1,active,", "1,completed,"), outputs=["a"], expect=["a"]
    )
    (base / "work" / "a").write_text("x")
    assert [(found["path"], found["good"]) for found in checked(tmp_path / "p[1]*")] == [("a", 1), ("a", 1)]


# ---------------------------------------------------------------------------------------------------- submit


def test_job_directory_is_private_whatever_the_umask(tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    before = os.umask(0)
    try:
        with nothing_is_started():
            files = {"d/a.txt": {"text": "é"}, "b.bin": {"base64": "/w=="}}
            answer = remote.call("submit", {"prefix": str(prefix), "jobs": [new_job(files=files)]})
    finally:
        found = os.umask(before)
    assert found == 0, "remote code must not change the umask of its process"
    assert only(answer)["created"] is True
    base = prefix / STAMP
    modes = {str(path.relative_to(base)): stat.S_IMODE(path.stat().st_mode) for path in (base, *base.rglob("*"))}
    assert modes.pop("prefect/script") == 0o700
    assert {
        path: mode for path, mode in modes.items() if mode != (0o700 if (base / path).is_dir() else 0o600)
    } == {}
    assert (base / "work" / "d" / "a.txt").read_text() == "é"
    assert (base / "work" / "b.bin").read_bytes() == b"\xff"
    assert (base / "prefect" / "script").read_text() == "true\n"
    assert stat.S_IMODE((prefix / ".locks").stat().st_mode) == 0o700


def test_every_level_above_a_job_is_private_whatever_the_umask(tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    owner = {"flow_runs": ["0f6a9d9e-5d0c-4e43-8a5a-3b7d3a1f2c11"]}
    before = os.umask(0)
    try:
        with nothing_is_started():
            remote.call("submit", {"prefix": str(prefix), "jobs": [new_job()]})
        remote._note_owner(str(prefix), new_job(owner=owner))
    finally:
        os.umask(before)
    made = (prefix, prefix / ".locks", *prefix.glob(".runs"), *prefix.glob(".runs/*"))
    assert len(made) == 4
    assert {str(path): f"{stat.S_IMODE(path.stat().st_mode):o}" for path in made} == {
        str(path): "700" for path in made
    }


def test_another_spec_under_the_same_stamp_is_a_conflict_that_shows_the_first(tmp_path: Path) -> None:
    with nothing_is_started() as launch:
        remote.call("submit", {"prefix": str(tmp_path), "jobs": [new_job()]})
        changed = new_job(digest="other", canonical="{}", script="false\n")
        answer = check_answer(remote.call("submit", {"prefix": str(tmp_path), "jobs": [changed]}))
    error = only(answer)["error"]
    assert (error["kind"], error["key"]) == ("conflict", "k")
    assert error["canonical"] == new_job()["canonical"]
    assert launch.call_count == 1
    assert (tmp_path / STAMP / "prefect" / "script").read_text() == "true\n"


def test_directory_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / STAMP).mkdir()
    (tmp_path / STAMP / "data").write_text("precious")
    with nothing_is_started() as launch:
        answer = check_answer(remote.call("submit", {"prefix": str(tmp_path), "jobs": [new_job()]}))
    assert "not a job directory of prefect-psik" in only(answer)["error"]["message"]
    assert (tmp_path / STAMP / "data").read_text() == "precious"
    assert not launch.called


def test_half_made_directory_of_a_call_that_died_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / STAMP / "prefect").mkdir(parents=True)
    (tmp_path / STAMP / "prefect" / "script").write_text("half")
    with nothing_is_started() as launch:
        answer = remote.call("submit", {"prefix": str(tmp_path), "jobs": [new_job()]})
    assert only(answer)["created"] is True
    assert launch.call_count == 1
    assert (tmp_path / STAMP / "prefect" / "script").read_text() == "true\n"


def test_one_bad_job_does_not_keep_the_others_of_a_call_from_being_submitted(tmp_path: Path) -> None:
    bad = new_job(stamp="1", files={"../../x": {"text": "x"}})
    with nothing_is_started() as launch:
        answer = check_answer(remote.call("submit", {"prefix": str(tmp_path), "jobs": [bad, new_job()]}))
    assert answer["jobs"]["1"]["error"]["kind"] == "spec"
    assert answer["jobs"][STAMP]["created"] is True
    assert launch.call_count == 1


@pytest.mark.parametrize("given", ["{absent}", "$PSIK_TEST_UNSET/x", "{file}"])
def test_directory_that_is_none_is_refused_by_name_and_leaves_nothing(tmp_path: Path, given: str) -> None:
    (tmp_path / "file").write_text("")
    directory = given.format(absent=tmp_path / "absent", file=tmp_path / "file")
    spec = new_job()["spec"] | {"directory": directory}
    with nothing_is_started() as launch:
        answer = check_answer(remote.call("submit", {"prefix": str(tmp_path / "p"), "jobs": [new_job(spec=spec)]}))
    error = only(answer)["error"]
    assert error["kind"] == "spec"
    assert directory in error["message"]
    assert not launch.called
    assert not (tmp_path / "p" / STAMP).exists()


@pytest.mark.parametrize("name", ["link/x", "link/deep/x", "link/../link/x"])
def test_input_file_through_a_link_out_of_the_directory_is_refused_and_touches_nothing(
    tmp_path: Path, name: str
) -> None:
    outside, work = tmp_path / "outside", tmp_path / "work"
    outside.mkdir()
    work.mkdir()
    (work / "link").symlink_to(outside)
    spec = new_job()["spec"] | {"directory": str(work)}
    job = new_job(spec=spec, files={name: {"text": "x"}})
    with nothing_is_started() as launch:
        answer = check_answer(remote.call("submit", {"prefix": str(tmp_path / "p"), "jobs": [job]}))
    error = only(answer)["error"]
    assert error["kind"] == "spec"
    assert repr(name) in error["message"]
    assert not launch.called
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "p" / STAMP).exists()


def test_input_file_never_replaces_what_a_link_of_its_name_points_to(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "precious").write_text("kept")
    (work / "a.txt").symlink_to(tmp_path / "precious")
    job = new_job(spec=new_job()["spec"] | {"directory": str(work)}, files={"a.txt": {"text": "x"}})
    with nothing_is_started() as launch:
        answer = check_answer(remote.call("submit", {"prefix": str(tmp_path / "p"), "jobs": [job]}))
    assert "a.txt" in only(answer)["error"]["message"]
    assert (tmp_path / "precious").read_text() == "kept"
    assert not launch.called


# ---------------------------------------------------------------------------------------------------- cancel


def test_cancel_of_a_job_that_never_began_is_recorded(tmp_path: Path) -> None:
    base = make_job(tmp_path)
    facts = only(check_answer(remote.call("cancel", {"prefix": str(tmp_path), "jobs": [{"stamp": STAMP}]})))
    assert facts["cancel_asked"] is not None
    assert (base / "status.csv").read_text().splitlines()[-1].endswith(",1,canceled,")


def test_job_that_has_ended_keeps_its_end(tmp_path: Path) -> None:
    base = make_job(tmp_path, rows=("0,new,{}", "1,queued,x", "1,active,", "1,failed,3"))
    before = (base / "status.csv").read_bytes()
    facts = only(remote.call("cancel", {"prefix": str(tmp_path), "jobs": [{"stamp": STAMP}]}))
    assert facts["cancel_asked"] is None
    assert (base / "status.csv").read_bytes() == before


@pytest.mark.parametrize("noted", [False, True], ids=["no note", "note of another start"])
def test_process_that_got_a_recycled_pid_is_not_ended(tmp_path: Path, noted: bool) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        base = make_job(tmp_path, rows=())
        yesterday = time.time() - 86_400
        (base / "status.csv").write_text(f"{yesterday},0,new,{{}}\n{yesterday},1,queued,{stranger.pid}\n")
        if noted:
            note = {"pid": stranger.pid, "start": "1", "session": None}
            (base / "prefect" / "native.1").write_text(json.dumps(note))
        remote.call("cancel", {"prefix": str(tmp_path), "jobs": [{"stamp": STAMP}]})
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


# -------------------------------------------------------------------------------------------------- anything

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abc", max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)
PLACE = "<the prefix>"
PREFIXES = st.one_of(
    st.just(PLACE),
    st.just(PLACE),
    st.sampled_from(["$PSIK_TEST_UNSET/x", "relative/x", "", f"{PLACE}/../p", None, 5]),
)
STAMPS = st.one_of(st.sampled_from(["12", "12.5", "404", *BAD_STAMPS]), st.text(max_size=5))
NUMBERS = st.one_of(st.integers(-2, 3), st.integers(), st.none(), st.floats(), st.text(max_size=2))
LOOKS = st.fixed_dictionaries(
    {"stamp": STAMPS},
    optional={
        "jobndx": NUMBERS,
        "seen": JSON,
        "owner": JSON,
        "offsets": st.one_of(
            JSON, st.dictionaries(st.sampled_from(["stdout", "stderr", "console", "x"]), NUMBERS, max_size=2)
        ),
    },
)
#: Whole jobs, some of whose fields are anything.
BROKEN_JOBS = st.builds(
    lambda look, changes: new_job() | look | changes,
    LOOKS,
    st.dictionaries(st.sampled_from(sorted(new_job())), JSON, max_size=2),
)
#: What `list` and `preflight` read beside prefix and jobs.
OTHER_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "skip": NUMBERS,
    "limit": NUMBERS,
    "flow_run": st.one_of(JSON, st.sampled_from(["../x", "12345678-", "a" * 36])),
    "backend": st.one_of(JSON, st.just({"type": "slurm"}), st.just({"type": "local"})),
    "spec": st.one_of(JSON, st.just(new_job()["spec"])),
}
MANY = st.one_of(st.lists(LOOKS, max_size=3), st.lists(BROKEN_JOBS, max_size=2), JSON)
PAYLOADS = st.one_of(
    JSON,
    st.fixed_dictionaries({}, optional={"prefix": PREFIXES, "jobs": MANY, **OTHER_FIELDS}),
    st.fixed_dictionaries({"prefix": st.just(PLACE), "jobs": MANY}, optional=OTHER_FIELDS),
)
#: Operations that change nothing; all others may change what is below the prefix.
READING = {"status", "fetch", "list", "hello"}


@contextmanager
def facility() -> Iterator[tuple[Path, Path]]:
    """A directory with a secret beside a prefix with two jobs."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        (top / "secret").write_text("secret")
        (top / "work").mkdir()
        prefix = top / "p"
        make_job(prefix, "12", rows=("0,new,{}", "1,queued,x", "1,active,", "1,completed,"), outputs=["*"])
        make_job(prefix, "12.5", rows=("0,new,{}", "1,queued,x", "1,active,", "1,failed,3"))
        yield top, prefix


def placed(payload: Any, prefix: Path) -> Any:
    if isinstance(payload, dict) and isinstance(given_prefix := payload.get("prefix"), str):
        return payload | {"prefix": given_prefix.replace(PLACE, str(prefix))}
    return payload


@settings(max_examples=150)
@given(st.sampled_from([*sorted(READING), "nonsense"]), PAYLOADS)
def test_whatever_is_asked_gets_an_answer_in_words_and_changes_no_file(operation: str, payload: Any) -> None:
    with facility() as (top, prefix), nothing_is_run():
        before = snapshot(top, top / "none")
        check_answer(remote.call(operation, placed(payload, prefix)))
        assert snapshot(top, top / "none") == before


@pytest.mark.parametrize("operation", sorted(set(remote.OPERATIONS) - READING))
@settings(max_examples=60)
@given(payload=PAYLOADS)
def test_whatever_is_to_be_done_gets_an_answer_in_words_and_touches_only_the_prefix(
    operation: str, payload: Any
) -> None:
    with facility() as (top, prefix), nothing_is_run():
        before = snapshot(top, prefix)
        check_answer(remote.call(operation, placed(payload, prefix)))
        assert snapshot(top, prefix) == before


FILE_NAMES = st.one_of(
    st.sampled_from(
        [
            "a",
            "d/a",
            "../x",
            "../../x",
            "../../../x",
            "d/../../../x",
            "..",
            ".",
            "",
            "/",
            "{top}/evil",
            "~/x",
            "-x",
            "a/b/c",
        ]
    ),
    st.text("./a~", max_size=8).filter(lambda text: not text.startswith("/")),
)
CONTENTS = st.one_of(
    st.fixed_dictionaries({"text": st.text(max_size=5)}),
    st.fixed_dictionaries({"base64": st.sampled_from(["", "YQ==", "Y", "!!", "YQ="])}),
)
SUBMITS = st.fixed_dictionaries(
    {"stamp": st.sampled_from(["12", "404", "405"]), "files": st.dictionaries(FILE_NAMES, CONTENTS, max_size=3)},
    optional={
        "key": st.text(max_size=3),
        "digest": st.sampled_from(["d", "e"]),
        "attempt": st.lists(st.integers(0, 3), max_size=2),
        "outputs": st.lists(FILE_NAMES, max_size=2),
        "expect": st.lists(FILE_NAMES, max_size=2),
        "script": st.text(max_size=5),
        "rerun_after": st.integers(0, 2),
    },
)


@settings(max_examples=60)
@given(st.lists(SUBMITS, min_size=1, max_size=2), st.booleans())
def test_whatever_is_submitted_writes_no_file_outside_of_prefix_and_directory(
    jobs: list[dict[str, Any]], in_directory: bool
) -> None:
    with facility() as (top, prefix), nothing_is_started():
        spec = new_job()["spec"] | ({"directory": str(top / "work")} if in_directory else {})
        whole = [new_job(spec=spec) | job for job in jobs]
        for job in whole:
            job["files"] = {name.replace("{top}", str(top)): content for name, content in job["files"].items()}
        before = snapshot(top, prefix)
        answer = check_answer(remote.call("submit", {"prefix": str(prefix), "jobs": whole}))
        after = snapshot(top, prefix)
        changed = {path for path in {*before, *after} if before.get(path, b"-") != after.get(path, b"-")}
        assert all(path.startswith(f"{top / 'work'}/") for path in changed)
        assert in_directory or not changed
        for stamp, found in answer.get("jobs", {}).items():
            if "error" in found and [job["stamp"] for job in whole].count(stamp) == 1 and stamp != "12":
                assert not (prefix / stamp).exists()


def test_what_we_make_is_ours_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        prefix = tmp_path / "psik"
        job = new_job(owner={"flow_runs": ["0" * 8]})
        with nothing_is_started():
            assert "error" not in remote.call("submit", {"prefix": str(prefix), "jobs": [job]})["jobs"][STAMP]
        remote._note_owner(str(prefix), job)
    finally:
        os.umask(before)
    made = [prefix, *(path for path in prefix.rglob("*") if path.is_dir())]
    assert {".locks", ".runs", STAMP} <= {path.name for path in made}
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}
