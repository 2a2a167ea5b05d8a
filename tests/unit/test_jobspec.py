"""Tests of the job spec: what a person may type, what is refused and how, its digest, and its form for psik."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import psik.models
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_psik.exceptions import SpecError
from prefect_psik.spec.input_files import MAX_FILES_BYTES
from prefect_psik.spec.jobspec import (
    MAX_SCRIPT_BYTES,
    PSIK_TIMER_EXTRA_MINUTES,
    RESERVED_VARIABLES,
    JobSpec,
    sbatch_argument,
)
from prefect_psik.spec.resources import ResourceSpec
from prefect_psik.spec.strict import explain

FIXTURES = Path(__file__).parents[1] / "fixtures"
UNUSUAL_NAMES = ["a/b", "a\nb", "a\tb", "-x", "", " ", " a", "a ", "a\0b", "a\x7fb"]


def refusal(**fields: Any) -> str:
    """The words with which a spec is refused."""
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({"script": "true"} | fields)
    return explain(caught.value)


def slurm(spec: JobSpec, options: dict[str, str] | None = None) -> dict[str, Any]:
    return spec.to_psik(scheduler="slurm", options=options or {}, umask="0027")


# --------------------------------------------------------------------------------------------- fields


def test_misspelt_field_is_refused_with_the_nearest_name_and_all_known_ones() -> None:
    text = refusal(environments={"A": "1"})
    assert "environments" in text
    assert "did you mean environment?" in text
    assert all(name in text for name in JobSpec.model_fields)


def test_misspelt_resource_is_refused_with_its_place_and_the_known_ones() -> None:
    text = refusal(resources={"node_counts": 2})
    assert text.startswith("resources: ")
    assert "did you mean node_count?" in text
    assert all(name in text for name in ResourceSpec.model_fields)


def test_field_that_resembles_nothing_is_refused_without_a_guess() -> None:
    text = refusal(zzzzzz=1)
    assert "did you mean" not in text
    assert "Known fields: name, script" in text


def test_all_unknown_fields_are_named_at_once() -> None:
    text = refusal(zzz=1, yyy=2)
    assert "zzz, yyy" in text


@pytest.mark.parametrize("number", [1, 2])
def test_field_that_is_no_word_is_refused_as_unknown(number: int) -> None:
    with pytest.raises(ValidationError, match=f"unknown field {number}"):
        JobSpec.model_validate({"script": "true", number: "x"})


@pytest.mark.parametrize("field", ["callback", "cb_headers", "cb_secret"])
def test_callback_fields_are_refused_with_the_reason(field: str) -> None:
    text = refusal(**{field: "https://example.org"})
    assert field in text
    assert "cb_secret in plain text" in text


@pytest.mark.parametrize("duration", [0, -1, "ten", 1.5, "", "1h"])
def test_bad_duration_is_refused_with_place_and_value(duration: object) -> None:
    text = refusal(resources={"duration": duration})
    assert "resources.duration" in text
    assert f"given: {duration!r}" in text


def test_truth_value_is_no_duration() -> None:
    assert "resources.duration" in refusal(resources={"duration": True})


@pytest.mark.parametrize("field", ["node_count", "process_count", "processes_per_node", "cpu_cores_per_process"])
def test_counts_begin_at_one(field: str) -> None:
    assert f"resources.{field}" in refusal(resources={field: 0})


def test_process_count_and_processes_per_node_exclude_each_other() -> None:
    text = refusal(resources={"process_count": 4, "processes_per_node": 2})
    assert "process_count or processes_per_node, not both" in text


@pytest.mark.parametrize("memory", ["16 G", "16GB", "G", "-1G", "1.5G", "16G\n"])
def test_memory_is_spelled_as_sbatch_does(memory: str) -> None:
    assert "resources.memory" in refusal(resources={"memory": memory})


@pytest.mark.parametrize("name", UNUSUAL_NAMES)
def test_unusual_job_name_is_refused(name: str) -> None:
    assert "the job's name" in refusal(name=name)


def test_job_name_may_have_blanks_and_umlauts() -> None:
    assert JobSpec(script="true", name="Größe of scan 7").name == "Größe of scan 7"


@pytest.mark.parametrize("script", ["", " \n\t", "echo \0", "#" * (MAX_SCRIPT_BYTES + 1)])
def test_script_that_cannot_run_is_refused(script: str) -> None:
    assert refusal(script=script).startswith("script: the script ")


@pytest.mark.parametrize("directory", ["work", "./x", "", "../x", "/a\nb", "/a\0b"])
def test_directory_must_be_absolute_there(directory: str) -> None:
    assert repr(directory) in refusal(directory=directory)


@pytest.mark.parametrize("directory", ["/data/x", "$SCRATCH/x", "~/x", "/with blank/é"])
def test_directory_of_the_facility_is_kept_as_given(directory: str) -> None:
    assert JobSpec(script="true", directory=directory).directory == directory


@pytest.mark.parametrize("name", sorted(RESERVED_VARIABLES))
def test_reserved_variable_is_refused(name: str) -> None:
    text = refusal(environment={name: "x"})
    assert repr(name) in text
    assert "set by psik" in text


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A=B", "A B", "A\n", "é"])
def test_impossible_variable_name_is_refused(name: str) -> None:
    assert repr(name) in refusal(environment={name: "x"})


def test_numbers_become_text_in_the_environment() -> None:
    spec = JobSpec.model_validate({"script": "true", "environment": {"N": 4, "X": 0.5}})
    assert spec.environment == {"N": "4", "X": "0.5"}


@pytest.mark.parametrize("value", [True, False])
def test_truth_value_in_the_environment_is_refused_as_ambiguous(value: bool) -> None:
    assert "ambiguous" in refusal(environment={"FLAG": value})


def test_nul_in_the_environment_is_refused() -> None:
    assert "NUL" in refusal(environment={"A": "x\0y"})


@pytest.mark.parametrize("glob", ["", "a\nb", "\0", ".", "..", "rec/..", "/", "rec/."])
def test_impossible_glob_is_refused(glob: str) -> None:
    assert "is not a path or glob" in refusal(expect=[glob])


@pytest.mark.parametrize(
    "fields",
    [
        {"script": "\ud800"},
        {"name": "\ud800"},
        {"environment": {"A": "\udcff"}},
        {"directory": "/\udcff"},
        {"expect": ["\udcff"]},
        {"outputs": ["\udcff"]},
        {"files": {"\udcff": "x"}},
        {"files": {"a": "\ud800"}},
        {"attributes": {"--comment": "\ud800"}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_text_that_no_file_can_hold_is_refused_before_it_is_hashed(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate({"script": "true"} | fields)


def test_spec_cannot_be_changed_in_place() -> None:
    spec = JobSpec(script="true")
    with pytest.raises(ValidationError, match="frozen"):
        spec.script = "false"  # type: ignore[misc]


# ---------------------------------------------------------------------------------------- files and outputs


@pytest.mark.parametrize("path", ["../x", "a/../../x", "..", "/abs", "~/x", "-x", "a\nb", "a\0b", ""])
@pytest.mark.parametrize("field", ["files", "outputs"])
def test_path_that_leaves_the_job_directory_is_refused(field: str, path: str) -> None:
    text = refusal(**{field: {path: "x"} if field == "files" else [path]})
    assert repr(path) in text
    assert "inside the job's directory" in text


@pytest.mark.parametrize("path", [".", "./", "dir/", "dir/."])
def test_input_file_path_that_names_a_directory_is_refused(path: str) -> None:
    assert repr(path) in refusal(files={path: "x"})


def test_two_spellings_of_one_input_file_are_refused_and_none_is_lost() -> None:
    assert "./a" in refusal(files={"a": "one", "./a": "two"})


def test_files_take_text_bytes_and_local_paths(tmp_path: Path) -> None:
    (tmp_path / "local.bin").write_bytes(b"\x00\xff")
    given: dict[str, Any] = {"t": "é\n", "b": b"plain", "r": b"\xff\xfe", "p": tmp_path / "local.bin"}
    files = JobSpec(script="true", files=given).files
    assert files["t"].text == "é\n"
    assert files["b"].text == "plain"
    assert base64.b64decode(files["r"].base64 or "") == b"\xff\xfe"
    assert base64.b64decode(files["p"].base64 or "") == b"\x00\xff"


def test_input_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    text = refusal(files={"a": tmp_path / "absent.txt"})
    assert "absent.txt" in text
    assert "No such file" in text


@pytest.mark.parametrize(
    "content", [{}, {"text": "a", "base64": "YQ=="}, {"base64": "not base64!"}, 5, None, ["a"]]
)
def test_content_that_is_no_content_is_refused(content: object) -> None:
    assert "files.a" in refusal(files={"a": content})


def test_files_over_the_limit_are_refused_with_the_limit_and_the_way_out() -> None:
    text = refusal(files={"small": "x", "big.csv": "é" * (MAX_FILES_BYTES // 2)})
    assert f"{MAX_FILES_BYTES:,}" in text
    assert f"{MAX_FILES_BYTES + 1:,}" in text
    assert "big.csv" in text
    assert "Globus Transfer" in text


@pytest.mark.parametrize(
    "content", ["x" * MAX_FILES_BYTES, b"\xff" * (MAX_FILES_BYTES - 2)], ids=["text", "bytes"]
)
def test_files_at_the_limit_are_taken(content: str | bytes) -> None:
    files: dict[str, Any] = {"big": content}
    assert JobSpec(script="true", files=files).files["big"].size <= MAX_FILES_BYTES


# ------------------------------------------------------------------------------------------------ from_file


def test_seeds_job_yaml_loads_unchanged() -> None:
    spec = JobSpec.from_file(FIXTURES / "job.yaml")
    assert spec.name == "test"
    assert spec.backend == "polaris"
    assert spec.script == "#!/bin/bash\nprintenv\nhostname\necho $mpirun\n"
    theirs = psik.models.load_jobspec(str(FIXTURES / "job.yaml"))  # type: ignore[no-untyped-call]
    assert (theirs.name, theirs.script, theirs.backend) == (spec.name, spec.script, spec.backend)
    for scheduler in ("slurm", "local"):
        converted = spec.to_psik(scheduler=scheduler, options={}, umask="0027")
        assert psik.models.JobSpec.model_validate(converted).name == "test"


def test_json_is_yaml_too(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"script": "true", "resources": {"duration": 3}}')
    assert JobSpec.from_file(tmp_path / "job.json").resources.duration == 3


def test_files_may_be_a_list_of_paths_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("A")
    (tmp_path / "b.bin").write_bytes(b"\xff")
    (tmp_path / "job.yaml").write_text("script: 'true'\nfiles: [in/a.txt, b.bin]\n")
    files = JobSpec.from_file(tmp_path / "job.yaml").files
    assert set(files) == {"a.txt", "b.bin"}
    assert files["a.txt"].text == "A"
    assert files["b.bin"].base64 == "/w=="


def test_two_listed_files_of_one_name_are_refused_and_none_is_lost(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
    (tmp_path / "job.yaml").write_text("script: 'true'\nfiles: [x/a.txt, y/a.txt]\n")
    with pytest.raises(SpecError, match=r"a\.txt"):
        JobSpec.from_file(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"script: [unclosed", "as YAML"),
        (b"a: b: c", "as YAML"),
        (b"\x00\x01\x02", "as YAML"),
        (b"\xff\xfe\x80binary\x80", "as YAML"),
        (b"script: !!python/object:os.system ls", "as YAML"),
        (b"- script", "not a mapping"),
        (b"just words", "not a mapping"),
        (b"", "not a mapping"),
        (b"5", "not a mapping"),
        (b"name: x", "script"),
        (b"script: [5]", "script"),
        (b"script: 'true'\nfiles: [7]\n", "files"),
        (b"script: 'true'\nfiles: [{a: b}]\n", "files"),
        (b"script: 'true'\nfiles: [absent.txt]\n", "absent.txt"),
        (b"script: 'true'\nresources: 5\n", "resources"),
        (b"script: 'true'\nduration: 5\n", "unknown field duration"),
        (b"script: 'true'\nattributes: {qos: debug}\n", "write '--qos'"),
    ],
)
def test_unusable_file_is_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        JobSpec.from_file(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(("name", "words"), [("absent.yaml", "No such file"), (".", "Is a directory")])
def test_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        JobSpec.from_file(tmp_path / name)


# ---------------------------------------------------------------------------------------------- from_script


def test_from_script_names_the_job_after_the_file(tmp_path: Path) -> None:
    (tmp_path / "recon.sh").write_text("#!/bin/bash\ntrue\n")
    spec = JobSpec.from_script(tmp_path / "recon.sh", environment={"A": "1"}, outputs=["x.txt"])
    assert (spec.name, spec.script) == ("recon", "#!/bin/bash\ntrue\n")
    assert (spec.environment, spec.outputs) == ({"A": "1"}, ["x.txt"])
    assert JobSpec.from_script(str(tmp_path / "recon.sh"), name="other").name == "other"


def test_from_script_leaves_unset_what_was_not_given(tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text("true")
    assert JobSpec.from_script(tmp_path / "a.sh").model_fields_set == {"name", "script"}


@pytest.mark.parametrize(
    ("name", "content"), [("absent.sh", None), ("binary.sh", b"\x7fELF\xff"), ("empty.sh", b"")]
)
def test_script_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError) as caught:
        JobSpec.from_script(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_from_script_checks_the_other_fields(tmp_path: Path) -> None:
    (tmp_path / "a.sh").write_text("true")
    with pytest.raises(SpecError, match="--array"):
        JobSpec.from_script(tmp_path / "a.sh", attributes={"--array": "1-3"})


# -------------------------------------------------------------------------------------------------- replace


def test_replace_keeps_unset_fields_unset_and_the_original_as_it_was() -> None:
    spec = JobSpec(script="true", resources=ResourceSpec(node_count=2))
    changed = spec.replace(name="x")
    assert changed.model_fields_set == {"script", "resources", "name"}
    assert changed.resources.model_fields_set == {"node_count"}
    assert spec.name is None


def test_replace_with_nothing_is_the_same_spec() -> None:
    spec = JobSpec(script="true", attributes={"--hold": "--hold"}, files={"a": b"\xff"})
    assert spec.replace() == spec
    assert spec.replace().digest() == spec.digest()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": "x"}, "did you mean name?"),
        ({"resources": {"duration": 0}}, "resources.duration"),
        ({"files": {"../x": "y"}}, "inside the job's directory"),
        ({"attributes": {"--output": "x"}}, "--output"),
        ({"environment": {"jobid": "1"}}, "jobid"),
    ],
)
def test_replace_checks_like_a_new_spec(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words.replace("?", r"\?")):
        JobSpec(script="true", name="before").replace(**changes)


# --------------------------------------------------------------------------------------------------- digest

#: Pinned: another value here means that keys of running jobs change with an upgrade.
GOLDEN = {
    "smallest": (
        JobSpec(script="true"),
        "3f6f9c76c9f5251e904487c8745e87fd0bd15b039c0fbfa60b1baa588bfda4e8",
    ),
    "seed": (
        JobSpec.from_file(FIXTURES / "job.yaml"),
        "c95c1eb897b01c1d4decc7fbeb990f6adaf9e64f0b24826dfe7f63f21b207ec1",
    ),
    "everything": (
        JobSpec.model_validate(
            {
                "name": "Größe",
                "script": "#!/bin/bash\necho ☃\n",
                "directory": "$SCRATCH/x",
                "environment": {"B": "2", "A": 1},
                "inherit_environment": False,
                "resources": {"duration": 90, "node_count": 2, "processes_per_node": 4, "memory": "16G"},
                "attributes": {"--qos": "debug", "--hold": True},
                "files": {"b.bin": b"\xff\x00", "a.txt": "é"},
                "outputs": ["o/*.txt"],
                "expect": ["/data/*.h5"],
                "backend": "anywhere",
            }
        ),
        "0ea9c529566f47297112414439b6b6b559659483c3017694df90a23378106d3a",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_digest_stays_the_same_from_release_to_release(name: str) -> None:
    spec, digest = GOLDEN[name]
    assert spec.digest() == digest


def test_canonical_form_leaves_defaults_out() -> None:
    assert JobSpec(script="true").canonical() == '{"script":"true","version":1}'
    spelled_out = JobSpec(
        script="true",
        name=None,
        environment={},
        inherit_environment=True,
        resources=ResourceSpec(duration=10, exclusive_node_use=True),
        outputs=[],
    )
    assert spelled_out.digest() == JobSpec(script="true").digest()


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    one = JobSpec.model_validate({"script": "x", "name": "n", "environment": {"A": "1", "B": "2"}})
    two = JobSpec.model_validate({"environment": {"B": "2", "A": "1"}, "name": "n", "script": "x"})
    assert one.digest() == two.digest()


def test_backends_name_is_no_part_of_the_digest() -> None:
    assert JobSpec(script="x", backend="a").digest() == JobSpec(script="x", backend="b").digest()


@pytest.mark.parametrize(
    "change",
    [
        {"script": "y"},
        {"name": "n"},
        {"environment": {"A": "1"}},
        {"inherit_environment": False},
        {"directory": "/d"},
        {"resources": {"duration": 11}},
        {"resources": {"memory": "1G"}},
        {"attributes": {"--qos": "debug"}},
        {"files": {"a": "x"}},
        {"outputs": ["a"]},
        {"expect": ["a"]},
    ],
    ids=str,
)
def test_every_other_field_is_part_of_the_digest(change: dict[str, Any]) -> None:
    assert JobSpec(script="x").replace(**change).digest() != JobSpec(script="x").digest()


# -------------------------------------------------------------------------------------------- random specs

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
WORD = st.text("abcXYZ019 _.é☃", min_size=1, max_size=12).map(str.strip).filter(bool)
PATHS = st.lists(st.text("ab*é _", min_size=1, max_size=5), min_size=1, max_size=3).map("/".join)
OPTIONS = st.builds(
    dict[str, object].__or__,
    st.dictionaries(
        st.sampled_from(["--qos", "--licenses", "-C", "--mem", "--nice", "-p", "--comment"]),
        st.one_of(WORD, st.integers(0, 9)),
        max_size=3,
    ),
    st.dictionaries(st.sampled_from(["--requeue", "--hold", "--contiguous"]), st.just(True), max_size=2),
)
RESOURCES = st.fixed_dictionaries(
    {},
    optional={
        "duration": st.integers(1, 10_000),
        "node_count": st.none() | st.integers(1, 100),
        "process_count": st.none() | st.integers(1, 100),
        "cpu_cores_per_process": st.integers(1, 64),
        "gpu_cores_per_process": st.integers(0, 8),
        "exclusive_node_use": st.booleans(),
        "memory": st.none() | st.from_regex(r"\A[0-9]{1,4}[KMGT]?\Z"),
    },
)
SPECS = st.fixed_dictionaries(
    {"script": TEXT.filter(str.strip)},
    optional={
        "name": st.none() | WORD,
        "directory": st.none() | WORD.map(lambda word: f"/{word}"),
        "environment": st.dictionaries(
            st.from_regex(r"\A[A-Z_][A-Z0-9_]{0,5}\Z"), TEXT | st.integers(-9, 9) | st.floats(), max_size=3
        ),
        "inherit_environment": st.booleans(),
        "resources": RESOURCES,
        "attributes": OPTIONS,
        "files": st.dictionaries(PATHS, st.one_of(TEXT, st.binary(max_size=30)), max_size=3),
        "outputs": st.lists(PATHS, max_size=3),
        "expect": st.lists(PATHS, max_size=3),
        "backend": st.none() | WORD,
    },
)


@given(SPECS)
def test_any_spec_survives_json_with_the_same_digest(fields: dict[str, Any]) -> None:
    spec = JobSpec.model_validate(fields)
    back = JobSpec.model_validate_json(spec.model_dump_json())
    assert back == spec
    assert back.digest() == spec.digest()
    assert spec.replace().digest() == spec.digest()


@given(SPECS, OPTIONS, st.sampled_from(["slurm", "local"]))
def test_any_spec_becomes_one_of_psiks(fields: dict[str, Any], options: dict[str, Any], scheduler: str) -> None:
    spec = JobSpec.model_validate(fields)
    block_options = JobSpec.model_validate({"script": "x", "attributes": options}).attributes
    converted = spec.to_psik(scheduler=scheduler, options=block_options, umask="0027")
    theirs = psik.models.JobSpec.model_validate(converted)
    assert theirs.name == spec.name
    assert theirs.environment == spec.environment
    assert theirs.script.startswith("#!/bin/bash\n")
    assert all(
        key == value and key.startswith("-") and "\n" not in key for key, value in theirs.attributes.items()
    )
    assert bool(theirs.attributes) == (scheduler == "slurm")


# ------------------------------------------------------------------------------------------------- to_psik


def test_slurm_gets_exactly_the_time_that_was_asked_for_and_psiks_timer_is_longer() -> None:
    converted = slurm(JobSpec(script="true", resources=ResourceSpec(duration=15)))
    assert converted["attributes"]["--time=15"] == "--time=15"
    assert [key for key in converted["attributes"] if key.startswith("--time")] == ["--time=15"]
    assert converted["resources"]["duration"] == 15 + PSIK_TIMER_EXTRA_MINUTES


def test_local_jobs_are_ended_by_psiks_timer_at_the_time_that_was_asked_for() -> None:
    converted = JobSpec(script="true", resources=ResourceSpec(duration=15)).to_psik(
        scheduler="local", options={"--qos": "x"}, umask="0027"
    )
    assert converted["resources"]["duration"] == 15
    assert converted["attributes"] == {}


def test_endpoints_environment_stays_out_of_slurm_jobs() -> None:
    for inherit in (True, False):
        converted = slurm(JobSpec(script="true", inherit_environment=inherit))
        assert "--export=NIL" in converted["attributes"]
        assert converted["inherit_environment"] is inherit
        assert "export SLURM_EXPORT_ENV=ALL\n" in converted["script"]


def test_slurm_does_not_requeue_unless_asked() -> None:
    assert "--no-requeue" in slurm(JobSpec(script="true"))["attributes"]


@pytest.mark.parametrize("option", ["--requeue", "--requeu"])
def test_who_asks_for_requeue_gets_it(option: str) -> None:
    for by_job, by_block in (({option: True}, {}), ({}, {option: True})):
        options = JobSpec.model_validate({"script": "x", "attributes": by_block}).attributes
        spec = JobSpec.model_validate({"script": "true", "attributes": by_job})
        attributes = slurm(spec, options)["attributes"]
        assert option in attributes
        assert "--no-requeue" not in attributes


@pytest.mark.parametrize(("block", "job"), [("--requeue", "--no-requeue"), ("--no-requeue", "--requeue")])
def test_jobs_word_on_requeue_comes_after_the_blocks_so_that_sbatch_heeds_it(block: str, job: str) -> None:
    attributes = list(slurm(JobSpec(script="true", attributes={job: job}), {block: block})["attributes"])
    assert attributes.index(job) > (attributes.index(block) if block in attributes else -1)


def test_memory_is_passed_on_as_mem_and_stays_out_of_psiks_resources() -> None:
    converted = slurm(JobSpec(script="true", resources=ResourceSpec(memory="16G")))
    assert converted["attributes"]["--mem=16G"] == "--mem=16G"
    assert "memory" not in converted["resources"]
    assert not any(key.startswith("--mem") for key in slurm(JobSpec(script="true"))["attributes"])


def test_jobs_memory_wins_over_the_blocks_option() -> None:
    spec = JobSpec(script="true", resources=ResourceSpec(memory="16G"))
    mem = [key for key in slurm(spec, {"--mem": "1G"})["attributes"] if key.startswith("--mem")]
    assert mem == ["--mem=16G"]


def test_jobs_options_win_over_the_blocks() -> None:
    spec = JobSpec(script="true", attributes={"--qos": "debug"})
    attributes = slurm(spec, {"--qos": "normal", "--licenses": "cfs"})["attributes"]
    assert "--qos=debug" in attributes
    assert "--qos=normal" not in attributes
    assert "--licenses=cfs" in attributes


def test_every_option_is_one_argument_and_the_same_twice() -> None:
    spec = JobSpec(script="true", attributes={"--hold": "--hold", "-C": "gpu", "--qos": "debug"})
    attributes = slurm(spec, {"--licenses": "cfs:2"})["attributes"]
    assert all(key == value for key, value in attributes.items())
    assert {"--hold", "-Cgpu", "--qos=debug", "--licenses=cfs:2"} <= set(attributes)


@pytest.mark.parametrize(
    ("key", "value", "argument"),
    [
        ("--hold", "", "--hold"),
        ("--hold", "--hold", "--hold"),
        ("-H", "-H", "-H"),
        ("--qos", "debug", "--qos=debug"),
        ("-q", "debug", "-qdebug"),
        ("--comment", "two words=x", "--comment=two words=x"),
    ],
)
def test_option_and_value_become_one_argument(key: str, value: str, argument: str) -> None:
    assert sbatch_argument(key, value) == argument


def test_users_script_is_no_part_of_what_psik_pipes() -> None:
    converted = slurm(JobSpec(script="#!/usr/bin/env python3\nprint('unmistakable')\n", name="n"))
    assert "unmistakable" not in converted["script"]
    assert "/usr/bin/env python3" in converted["script"]
    assert "umask 0027" in converted["script"]
    assert {"memory", "files", "outputs", "expect", "backend"}.isdisjoint(converted)


def test_home_directory_of_this_machine_is_not_expanded_into_a_spec() -> None:
    spec = JobSpec(script="true", directory="$HOME/x")
    assert slurm(spec)["directory"] == "$HOME/x"
    assert os.path.expandvars("$HOME/x") not in spec.canonical()
