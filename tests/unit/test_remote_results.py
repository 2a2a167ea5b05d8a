"""What counts as a result of a job: complete, fresh, and by its own name; with real files."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from prefect_psik import JobSpec, PsikBackend
from prefect_psik.outcome.answers import CheckAnswer, FetchAnswer
from prefect_psik.outcome.arrival import read
from prefect_psik.outcome.results import brought, unmet
from prefect_psik.spec.identity import Identity
from tests.unit.test_remote import STAMP, make_job, remote

#: Seconds since the second run began.
AGO = 1000.0


def a_job(prefix: Path, **wanted: Any) -> Path:
    """A job whose second run began a while ago, and whose spec asks for this; returns its directory."""
    spec = JobSpec(script="true\n", **wanted)
    sent = PsikBackend().submission(spec, Identity(key="k", stamp=STAMP, attempt=[1]), {})
    base = make_job(prefix, expect=sent["expect"], outputs=sent["outputs"])
    now = time.time()
    for run, began in ((1, now - AGO - 5000), (2, now - AGO)):
        (base / "prefect" / f"owner.{run}").symlink_to("77")
        mark = base / "prefect" / f"process.{run}.77"
        mark.write_text("77")
        os.utime(mark, (began, began))
    return base


def checked(prefix: Path, run: int = 2) -> list[str]:
    """What is missing of the job's results, as sentences."""
    answer = remote.call("check", {"prefix": str(prefix), "jobs": [{"stamp": STAMP, "jobndx": run}]})
    json.dumps(answer)
    for kept in (prefix / STAMP / "prefect").glob("found.*"):
        kept.unlink()
    found = read(CheckAnswer, answer["jobs"][STAMP], what="a job", place="here").found
    return [text for _, text in unmet(found)]


def fetched(prefix: Path) -> dict[str, Any]:
    answer = remote.call("fetch", {"prefix": str(prefix), "jobs": [{"stamp": STAMP, "jobndx": 2}]})
    json.dumps(answer)
    return dict(answer["jobs"][STAMP])


def make(kind: str, path: Path) -> None:
    """Make something of a kind at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "file":
            path.write_text("x")
        case "empty":
            path.touch()
        case "link to a file":
            (path.parent / "target").write_text("x")
            path.symlink_to("target")
        case "dangling":
            path.symlink_to("/x/y")
        case "FIFO":
            os.mkfifo(path)
        case "socket":
            path.parent.joinpath("s").mkdir()
            here = os.getcwd()
            os.chdir(path.parent)  # a socket's path has at most 108 bytes
            socket.socket(socket.AF_UNIX).bind(path.name)
            os.chdir(here)
        case "device":
            path.symlink_to("/dev/null")
        case "empty directory":
            path.mkdir()
        case "filled directory":
            path.mkdir()
            (path / ".zgroup").touch()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("file", None),
        ("link to a file", None),
        ("filled directory", None),
        ("empty", "r.h5 is empty"),
        ("dangling", "r.h5 is a link to /x/y, which does not exist"),
        ("FIFO", "r.h5 is a FIFO, not a file"),
        ("socket", "r.h5 is a socket, not a file"),
        ("device", "r.h5 is a device, not a file"),
        ("empty directory", "r.h5 is a directory that contains no files"),
        ("nothing", "nothing matches r.h5"),
    ],
)
@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_only_files_with_bytes_and_filled_directories_are_results(
    tmp_path: Path, kind: str, says: str | None, place: str
) -> None:
    name = "r.h5" if place == "here" else str(tmp_path / "data" / "r.h5")
    base = a_job(tmp_path / "p", expect=[name])
    make(kind, base / "work" / name)
    assert checked(tmp_path / "p") == ([] if says is None else [says.replace("r.h5", name)])


@pytest.mark.parametrize("path", ["**", "*", "**/*"])
def test_a_glob_does_not_find_the_jobs_directory_itself(tmp_path: Path, path: str) -> None:
    a_job(tmp_path, expect=[path])
    assert checked(tmp_path) == [f"nothing matches {path}"]


@pytest.mark.parametrize(
    ("entry", "made", "says"),
    [
        ({"rec/*.tiff": 3}, 3, None),
        ({"rec/*.tiff": 2160}, 3, "3 of 2160 match rec/*.tiff"),
        ({"rec/*.tiff": 2}, 3, "3 match rec/*.tiff instead of 2"),
        ({"path": "rec/*.tiff", "at_least": 3}, 4, None),
        ({"path": "rec/*.tiff", "at_least": 4}, 3, "3 of 4 match rec/*.tiff"),
        ({"path": "rec/*.tiff", "count": 3, "min_bytes": 1}, 3, None),
        ({"path": "rec/*.tiff", "min_bytes": 2}, 1, "rec/0.tiff has 1 byte, fewer than 2"),
        ("rec/*.tiff", 1, None),
    ],
)
def test_as_many_as_were_asked_for(tmp_path: Path, entry: Any, made: int, says: str | None) -> None:
    base = a_job(tmp_path, expect=[entry])
    for number in range(made):
        make("file", base / "work" / "rec" / f"{number}.tiff")
    assert checked(tmp_path) == ([] if says is None else [says])


def test_one_that_is_empty_is_told_beside_the_count(tmp_path: Path) -> None:
    base = a_job(tmp_path, expect={"rec/*.h5": 3}, outputs=[{"path": "done", "min_bytes": 0}])
    for name, kind in {"a": "file", "b": "empty", "c": "dangling"}.items():
        make(kind, base / "work" / "rec" / f"{name}.h5")
    make("empty", base / "work" / "done")
    assert checked(tmp_path) == [
        "1 of 3 match rec/*.h5 (2 more do not count); rec/b.h5 is empty; "
        "rec/c.h5 is a link to /x/y, which does not exist"
    ]


@pytest.mark.parametrize(("entry", "count"), [("*/*.tiff", 4), ("*/", 3), ("**/*.tiff", 4), ("latest/*.tiff", 3)])
def test_a_directory_under_two_names_has_its_files_once(tmp_path: Path, entry: str, count: int) -> None:
    """Else half of the slices would do. Links that match themselves count by their names, as `latest` does."""
    base = a_job(tmp_path, expect=[{"path": entry, "count": count}])
    work = base / "work"
    for name in ("scan/1", "scan/2", "scan/3", "dark/1"):
        make("file", work / f"{name}.tiff")
    (work / "latest").symlink_to("scan")
    assert checked(tmp_path) == []
    (work / "scan/3.tiff").unlink()
    if not entry.endswith("/"):
        assert checked(tmp_path) == [f"{count - 1} of {count} match {entry}"]


def test_a_count_has_no_upper_limit(tmp_path: Path) -> None:
    base = a_job(tmp_path, expect={"*.tiff": 2160})
    for number in range(2159):
        (base / "work" / f"{number}.tiff").write_text("x")
    assert checked(tmp_path) == ["2159 of 2160 match *.tiff"]
    (base / "work" / "last.tiff").write_text("x")
    assert checked(tmp_path) == []


# ----------------------------------------------------------------------------------------------------- fresh


def age(monkeypatch: pytest.MonkeyPatch, ages: dict[str, float]) -> None:
    """Let files of these names have been changed so long ago; no other way sets a time of change."""
    true = os.stat

    def stat(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        found = true(path, *args, **kwargs)
        old = ages.get(os.path.basename(os.fspath(path)) if isinstance(path, str | Path) else "")
        if old is None:
            return found
        times = {"st_mtime": time.time() - old, "st_ctime": time.time() - old, "st_dev": found.st_dev}
        return os.stat_result(tuple(found), times)

    monkeypatch.setattr(remote.os, "stat", stat)


@pytest.mark.parametrize(
    ("fresh", "old", "says"),
    [
        ("run", 500, False),
        ("run", 2000, True),
        ("job", 2000, False),
        ("job", 9000, True),
        ("any", 9000, False),
    ],
)
def test_what_was_written_before_is_no_result_of_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: str, old: float, says: bool
) -> None:
    base = a_job(tmp_path, expect=[{"path": "result.txt", "fresh": fresh}], outputs=["result.txt"])
    make("file", base / "work" / "result.txt")
    age(monkeypatch, {"result.txt": old})
    found = checked(tmp_path)
    told = [text for text in found if text.startswith("result.txt was written at 20")]
    assert bool(told) is (says or old > AGO)
    assert all("(if that is intended, set fresh: job or fresh: any)" in text for text in told)
    left = fetched(tmp_path)
    assert [one["why"] for one in left["left"]] == (["old"] if old > AGO else [])
    assert list(left["files"]) == ([] if old > AGO else ["result.txt"])


def test_a_file_that_kept_its_old_time_counts_when_it_was_put_there_now(tmp_path: Path) -> None:
    base = a_job(tmp_path, expect=["copied.h5"])
    make("file", base / "work" / "copied.h5")
    os.utime(base / "work" / "copied.h5", (1.0, 1.0))  # as cp -p, rsync -a and tar do
    assert checked(tmp_path) == []


def test_a_directory_is_as_fresh_as_the_newest_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = a_job(tmp_path, expect=["store.zarr"])
    for name in ("store.zarr/0/c", "store.zarr/.zgroup"):
        make("file", base / "work" / name)
    assert checked(tmp_path) == []
    (base / "prefect" / "process.2.77").touch()
    later = time.time() + 60
    os.utime(base / "prefect" / "process.2.77", (later, later))
    [text] = checked(tmp_path)
    assert text.startswith("store.zarr was written at 20")


def test_without_a_mark_of_the_launcher_the_submission_counts(tmp_path: Path) -> None:
    base = make_job(tmp_path, expect=["a"])
    (base / "prefect" / "intent.2").write_text("{}")
    (base / "work" / "a").write_text("x")
    assert checked(tmp_path) == []
    later = time.time() + 60
    os.utime(base / "prefect" / "intent.2", (later, later))
    assert len(checked(tmp_path)) == 1


# ----------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("path", "names", "good"),
    [
        ("scan[1].h5", ["scan[1].h5"], 1),
        ("scan[1].h5", ["scan1.h5"], 0),
        ("scan[1].h5", ["scan1.h5", "scan[1].h5"], 1),
        ("scan[12].h5", ["scan[12].h5"], 1),
        ("scan[12].h5", ["scan1.h5", "scan2.h5", "scan3.h5"], 2),
        ("scan[[]12].h5", ["scan1.h5", "scan[12].h5"], 1),
        ("a[*]b", ["a*b", "axb"], 1),
        ("a[?]", ["a?", "ab"], 1),
        ("*[1]", ["x[1]", "x1"], 1),
        ("what?", ["what?", "whatx"], 1),
        ("*", [".hidden", "shown"], 1),
        (".*", [".hidden", "shown"], 1),
        ("**", [".zgroup", "0/.zarray", "0/0/0", ".deep/x"], 4),
        ("z/**/*", ["z/.zgroup", "z/0/.zarray", "z/0/0"], 3 + 1),  # and the directory z/0
        ("**/c", ["c", "a/c", "a/b/c", ".a/c"], 4),
        ("**/a/**", ["a/a/x", "a/y"], 2),
        ("*/x", ["a/x", "b/x", "c/d/x"], 2),
        ("$NOT_SET/x", ["$NOT_SET/x"], 1),
        ("é*", ["é1", "e1"], 1),
    ],
)
def test_names_are_taken_as_they_are_before_they_are_globs(
    tmp_path: Path, path: str, names: list[str], good: int
) -> None:
    base = a_job(tmp_path, expect=[{"path": path, "count": 99}])
    for name in names:
        make("file", base / "work" / name)
    answer = remote.call("check", {"prefix": str(tmp_path), "jobs": [{"stamp": STAMP, "jobndx": 2}]})
    [found] = answer["jobs"][STAMP]["found"]
    assert found["good"] == good


def test_names_that_are_not_utf_8_stay_distinct(tmp_path: Path) -> None:
    base = a_job(tmp_path, outputs=["*.txt"])
    work = os.fsencode(base / "work")
    for name, text in {b"r\xe9.txt": "a", b"r\xe8.txt": "b", "ré.txt".encode(): "c", rb"r\xe9.txt": "d"}.items():
        with open(work + b"/" + name, "w") as file:
            file.write(text)
    found = fetched(tmp_path)
    contents = {name: base64.b64decode(data).decode() for name, data in found["files"].items()}
    assert contents.pop(r"r\xe8.txt") == "b"
    assert contents.pop("ré.txt") == "c"
    assert contents in ({r"r\xe9.txt": "a"}, {r"r\xe9.txt": "d"})
    assert found["left"] == [{"name": r"r\xe9.txt", "why": "name"}]


def test_a_directory_in_outputs_brings_all_of_it(tmp_path: Path) -> None:
    base = a_job(tmp_path, outputs=["store.zarr", "**/.zattrs"])
    for name in ("store.zarr/.zgroup", "store.zarr/0/.zarray", "store.zarr/0/0", "b/.zattrs", "b/other"):
        make("file", base / "work" / name)
    (base / "work" / "store.zarr" / "out").symlink_to("/etc/hostname")
    os.mkfifo(base / "work" / "store.zarr" / "pipe")
    found = fetched(tmp_path)
    brought = ["b/.zattrs", "store.zarr/.zgroup", "store.zarr/0/.zarray", "store.zarr/0/0"]
    assert sorted(found["files"]) == brought
    assert found["sizes"] == dict.fromkeys(brought, 1)
    assert {one["name"]: one["why"] for one in found["left"]} == {
        "store.zarr/out": "outside",
        "store.zarr/pipe": "special",
    }
    assert found["good"] == {"store.zarr": 3, "**/.zattrs": 1}


def test_one_jobs_outputs_do_not_crowd_out_those_of_another(tmp_path: Path) -> None:
    stamps = [f"{number}" for number in range(1, 4)]
    for stamp in stamps:
        base = make_job(tmp_path, stamp, outputs=["big"])
        (base / "work" / "big").write_bytes(b"x" * (remote.OUTPUT_BYTES // 2 + 1))
    brought: list[str] = []
    while stamps:
        jobs = [{"stamp": stamp, "jobndx": 1} for stamp in stamps]
        answers = remote.call("fetch", {"prefix": str(tmp_path), "jobs": jobs})["jobs"]
        assert all(answer.get("later") or answer["files"] for answer in answers.values())
        stamps = [stamp for stamp in stamps if answers[stamp].get("later")]
        brought += [stamp for stamp in answers if not answers[stamp].get("later")]
    assert sorted(brought) == ["1", "2", "3"]


# --------------------------------------------------------------------------------------------------- bounded


def test_a_tree_that_is_too_large_ends_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WALK_ENTRIES", 100)
    base = a_job(tmp_path, expect={"**/*.h5": 5}, outputs=["**"])
    for number in range(120):
        make("file", base / "work" / str(number % 3) / f"{number}.tiff")
    assert checked(tmp_path)[0] == (
        "the search for **/*.h5 stopped because there are more than 100 files and directories: use a narrower path"
    )
    found = fetched(tmp_path)
    assert found["trouble"] == "there are more than 100 files and directories"


def test_a_walk_that_takes_too_long_ends_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WALK_SECONDS", -1.0)
    base = a_job(tmp_path, expect=["**/*.h5"])
    for number in range(300):
        make("file", base / "work" / f"{number}.tiff")
    [text] = checked(tmp_path)
    assert "checking 64 files and directories took more than -1 s" in text


def test_a_tree_as_deep_as_the_file_system_takes(tmp_path: Path) -> None:
    base = a_job(tmp_path, expect=["**/end", "absent/**"], outputs=["**"])
    here = os.getcwd()
    os.chdir(base / "work")
    try:
        for _ in range(1500):
            os.mkdir("deep")
            os.chdir("deep")
        os.close(os.open("deepest", os.O_CREAT))
        os.chdir(here)
        found, answer = checked(tmp_path), fetched(tmp_path)
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", base / "work" / "deep"], check=True)  # pytest's own cleaning fails on it
    assert found[0].startswith("nothing matches **/end; deep/deep/deep")
    assert "cannot be read (File name too long)" in found[0]
    assert found[1] == "nothing matches absent/**"
    assert (answer["files"], answer["trouble"]) == ({}, None)


def test_what_was_found_stands_for_a_while_and_status_tells_it(tmp_path: Path) -> None:
    base = a_job(tmp_path, expect=["a"])
    jobs = {"prefix": str(tmp_path), "jobs": [{"stamp": STAMP, "jobndx": 2}]}
    assert remote.call("check", jobs)["jobs"][STAMP]["found"][0]["good"] == 0
    make("file", base / "work" / "a")
    assert remote.call("check", jobs)["jobs"][STAMP]["found"][0]["good"] == 0
    (base / "status.csv").write_text("1,2,queued,77\n2,2,active,\n3,2,completed,\n")
    facts = remote.call("status", jobs)["jobs"][STAMP]
    assert facts["to_check"] is True
    assert facts["found"][0]["good"] == 0
    kept = base / "prefect" / "found.2"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"time": time.time() - remote.FOUND_SECONDS - 1}))
    assert remote.call("check", jobs)["jobs"][STAMP]["found"][0]["good"] == 1


# -------------------------------------------------------------------------------------------- found by attack


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("rec/**/*.json", "rec/r.json"),
        ("a/**/b", "a/b"),
        ("z/**/*", "z/.zgroup"),
        ("**/**/x", "x"),
        ("scan[1]/*.txt", "scan[1]/a.txt"),
        ("*[1].h5", "x[1].h5"),
        ("r?.txt", os.fsdecode(b"r\xe9.txt")),
        ("r_$OF_A_TEST.txt", "r_al.txt"),
        ("d", "d/e/f"),
    ],
)
def test_what_an_entry_brings_is_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, name: str
) -> None:
    monkeypatch.setenv("OF_A_TEST", "al")
    base = a_job(tmp_path, outputs=[entry])
    make("file", base / "work" / name)
    assert checked(tmp_path) == []
    answer = read(FetchAnswer, fetched(tmp_path), what="a job", place="here")
    assert list(brought(answer, [entry], "here").values()) == [b"x"]


def test_a_directory_is_not_fresh_because_a_file_in_it_went(tmp_path: Path) -> None:
    base = a_job(tmp_path, expect=["out"], outputs=["out"])
    make("file", base / "work" / "out" / "r.txt")
    later = time.time() + 60
    os.utime(base / "prefect" / "process.2.77", (later, later))
    os.utime(base / "work" / "out", (later + 60, later + 60))
    assert [text.split(" was written at 20")[0] for text in checked(tmp_path)] == ["out", "out"]
    answer = fetched(tmp_path)
    assert (answer["files"], answer["good"]) == ({}, {})


def test_a_time_in_the_future_makes_no_file_fresh(tmp_path: Path) -> None:
    base = a_job(tmp_path, expect=["r.txt"])
    make("file", base / "work" / "r.txt")
    os.utime(base / "work" / "r.txt", (4e9, 4e9))
    assert checked(tmp_path) == []
    later = time.time() + 60
    os.utime(base / "prefect" / "process.2.77", (later, later))
    assert len(checked(tmp_path)) == 1


@pytest.mark.parametrize(
    ("entry", "made", "says"),
    [
        ({"path": "d", "min_bytes": 1000}, "d/small", "d is a directory that contains no files"),
        ("d", "d/e/f/", "d is a directory that contains no files"),
        ("d/", "d", "nothing matches d/"),
        ("d/", "d/x", None),
    ],
)
def test_what_a_directory_must_hold(tmp_path: Path, entry: Any, made: str, says: str | None) -> None:
    base = a_job(tmp_path, expect=[entry])
    if made.endswith("/"):
        (base / "work" / made).mkdir(parents=True)
    else:
        make("file", base / "work" / made)
    assert checked(tmp_path) == ([] if says is None else [says])


def test_a_path_with_a_variable_is_that_path_before_it_is_a_glob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_A_TEST", str(tmp_path / "scratch"))
    a_job(tmp_path, expect=["$OF_A_TEST/scan[12].h5", "$OF_A_TEST/absent"])
    make("file", tmp_path / "scratch" / "scan1.h5")
    make("empty", tmp_path / "scratch" / "scan[12].h5")
    assert checked(tmp_path) == [
        f"{tmp_path}/scratch/scan[12].h5 is empty",
        f"nothing matches $OF_A_TEST/absent ({tmp_path}/scratch/absent at the facility)",
    ]


def test_directories_that_cannot_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = a_job(tmp_path, expect=[{"path": "d/**/*.h5", "count": 1}], outputs=["d"])
    for name in ("d/1.h5", "d/s/2.h5"):
        make("file", base / "work" / name)
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("/s"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(remote.os, "scandir", refuse)
    assert checked(tmp_path) == ["1 of 1 match d/**/*.h5; d/s cannot be read (Permission denied)"]
    answer = fetched(tmp_path)
    assert list(answer["files"]) == ["d/1.h5"]
    assert answer["left"] == [{"name": "d/s", "why": "unread", "text": "Permission denied"}]


def test_many_files_that_do_not_come_hide_none_that_has_room_alone(tmp_path: Path) -> None:
    first = make_job(tmp_path, "1", outputs=["big"])
    (first / "work" / "big").write_bytes(b"x" * (remote.OUTPUT_BYTES * 2 // 3))
    second = make_job(tmp_path, "2", outputs=["*"])
    for number in range(remote.TOLD + 10):
        os.mkfifo(second / "work" / f"pipe-{number}")
    (second / "work" / "z").write_bytes(b"x" * (remote.OUTPUT_BYTES * 2 // 3))
    jobs = [{"stamp": stamp, "jobndx": 1} for stamp in ("1", "2")]
    answers = remote.call("fetch", {"prefix": str(tmp_path), "jobs": jobs})["jobs"]
    assert (list(answers["1"]["files"]), answers["2"]) == (["big"], {"later": True})


def test_several_double_stars_cost_no_more_than_one(tmp_path: Path) -> None:
    deep = "/".join(["d"] * 15)
    base = a_job(tmp_path, expect=["/".join(["**"] * 8) + "/x", "/".join(["**", "d"] * 6) + "/**/x"])
    make("file", base / "work" / deep / "x")
    assert checked(tmp_path) == []


def test_an_answer_is_no_larger_than_the_wire_takes(tmp_path: Path) -> None:
    stamps = [f"{number}" for number in range(1, 31)]
    for stamp in stamps:
        base = make_job(
            tmp_path, stamp, expect=[f"{'x' * 190}-{number}" for number in range(1000)], outputs=["**"]
        )
        for number in range(150):
            (base / "work" / f"{'щ' * 100}-{number}").write_text("x")
    for operation in ("check", "fetch"):
        jobs = [{"stamp": stamp, "jobndx": 1} for stamp in stamps]
        answer = remote.call(operation, {"prefix": str(tmp_path), "jobs": jobs})
        assert len(json.dumps(answer)) < 5_000_000
        assert any(one.get("later") for one in answer["jobs"].values())
        assert not answer["jobs"]["1"].get("later")


def test_a_requeued_job_of_its_first_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    base = a_job(tmp_path, expect=[{"path": "state.h5", "fresh": "job"}])
    intent = base / "prefect" / "intent.1"
    intent.write_text("{}")
    os.utime(intent, (time.time() - 100, time.time() - 100))
    make("file", base / "work" / "state.h5")
    later = time.time() + 60
    os.utime(base / "prefect" / "process.1.77", (later, later))  # Slurm started it again
    assert checked(tmp_path, run=1) == []


@pytest.mark.parametrize("known", [{"time": "x"}, {"time": None}, {}, {"found": []}, {"found": 7}])
def test_a_note_of_odd_content_is_looked_up_again(tmp_path: Path, known: dict[str, Any]) -> None:
    base = a_job(tmp_path, expect=["a"])
    (base / "prefect" / "found.2").write_text(json.dumps({"time": time.time(), **known}))
    assert checked(tmp_path) == ["nothing matches a"]


def test_links_to_directories_are_followed_where_they_are_named(tmp_path: Path) -> None:
    base = a_job(tmp_path, outputs=["named", "d", "**/x"])
    make("file", base / "work" / "real" / "x")
    for link, target in {"named": "real", "d/link": "../real", "d/loop": "..", "d/self": "self"}.items():
        path = base / "work" / link
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)
    make("file", base / "work" / "d" / "own")
    answer = fetched(tmp_path)
    assert sorted(answer["files"]) == ["d/own", "named/x", "real/x"]
    assert {one["name"]: one["why"] for one in answer["left"]} == {
        "d/link": "link",
        "d/loop": "link",
        "d/self": "dangling",
    }


def test_two_entries_of_one_path_are_both_told(tmp_path: Path) -> None:
    base = a_job(tmp_path, expect=[{"path": "*.h5", "count": 3}, {"path": "*.h5", "min_bytes": 9}])
    make("file", base / "work" / "a.h5")
    assert checked(tmp_path) == ["1 of 3 match *.h5", "a.h5 has 1 byte, fewer than 9"]


def test_names_do_not_disturb_a_log(tmp_path: Path) -> None:
    base = a_job(tmp_path, expect=["*"])
    os.mkfifo(base / "work" / "a\nERROR \x1b[31m\u202e")
    assert checked(tmp_path) == [r"a\nERROR \x1b[31m\u202e is a FIFO, not a file"]
