"""Tests of YAML as people write it: text keeps its spelling, numbers are plain, and bombs do not go off."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_psik import JobSpec
from prefect_psik.exceptions import SpecError
from prefect_psik.spec.spelling import MAX_BYTES, plain_values, read_yaml


def job(tmp_path: Path, text: str) -> JobSpec:
    path = tmp_path / "job.yaml"
    path.write_text(f"script: 'true'\n{text}")
    return JobSpec.from_file(path)


@pytest.mark.parametrize(
    "text",
    [
        "20211222_125057",
        "0123",
        "1:30:00",
        "1e3",
        "1.10",
        "0x1F",
        "2026-11-27",
        "yes",
        "Off",
        "True",
        ".5",
        "+5",
        "=",
    ],
)
def test_text_is_what_the_file_has(tmp_path: Path, text: str) -> None:
    spec = job(
        tmp_path,
        f"name: {text}\nenvironment: {{SCAN: {text}}}\narguments: [{text}]\nattributes: {{--comment: '{text}'}}\n"
        f"files: {{a.txt: {text}}}\noutputs: [{text}]\n",
    )
    assert (spec.name, spec.environment, spec.arguments) == (text, {"SCAN": text}, [text])
    assert (spec.attributes, spec.files["a.txt"].text, spec.outputs) == ({"--comment": text}, text, [text])


@pytest.mark.parametrize("text", ["2026-11-27", "16:00:00", "1_000", "010", "no"])
def test_option_is_what_the_file_has(tmp_path: Path, text: str) -> None:
    assert job(tmp_path, f"attributes: {{--begin: {text}}}\n").attributes == {"--begin": text}


@pytest.mark.parametrize(("text", "option"), [("true", "--hold"), ("True", "--hold"), ("'true'", "true")])
def test_only_an_unquoted_true_is_a_flag(tmp_path: Path, text: str, option: str) -> None:
    assert job(tmp_path, f"attributes: {{--hold: {text}}}\n").attributes == {"--hold": option}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[END, FAIL]", "has a list as its value: write one string, as sbatch takes it: 'END,FAIL'"),
        ("false", "is false: leave it out"),
        ("", "has an empty value"),
        ("~", "has an empty value"),
        ("{a: b}", "has a dict as its value"),
        ("!!timestamp 2026-11-27", "has a date or time as its value: write it as text, '2026-11-27'"),
    ],
)
def test_option_that_is_no_text_is_refused_by_its_own_name(tmp_path: Path, value: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        job(tmp_path, f"attributes: {{--mail-type: {value}}}\n")
    assert f"the option --mail-type {words}" in str(caught.value)


def test_variable_without_a_value_is_refused_with_the_way_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="write '' for empty text"):
        job(tmp_path, "environment: {A: }\n")
    assert job(tmp_path, "environment: {A: '', B: 'null'}\n").environment == {"A": "", "B": "null"}


def test_empty_field_is_not_given(tmp_path: Path) -> None:
    spec = job(tmp_path, "name:\ndirectory: ~\nresources: {node_count: null}\n")
    assert (spec.name, spec.directory, spec.resources.node_count) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("090", 90),
        ("1:30", 2),  # minutes and seconds
        ("1:30:00", 90),
        ("01:30:01", 91),
        ("0:90:00", 90),
        ("1-0", 1440),
        ("1-12:30", 2190),
        ("1-00:00:00", 1440),
        ("'2-00:00:01'", 2881),
    ],
)
def test_duration_takes_all_of_slurms_forms(tmp_path: Path, text: str, minutes: int) -> None:
    assert job(tmp_path, f"resources: {{duration: {text}}}\n").resources.duration == minutes


@pytest.mark.parametrize(
    "text",
    ["1_0", "0x10", "1e2", "1.5", "10.0", "+10", "1h", "1:2:3:4", "1-2-3", "1-", ":30", "-5", "0", "٣", "true"],
)
@pytest.mark.parametrize("field", ["duration", "node_count"])
def test_number_and_time_are_nothing_else(tmp_path: Path, field: str, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        job(tmp_path, f"resources: {{{field}: '{text}'}}\n")
    assert f"resources.{field}" in str(caught.value)
    with pytest.raises(SpecError):
        job(tmp_path, f"resources: {{{field}: {text}}}\n")


def test_counts_of_results_are_plain_numbers(tmp_path: Path) -> None:
    (entry,) = job(tmp_path, 'expect: [{"rec/*.tiff": 2160}]\n').expect
    assert not isinstance(entry, str)
    assert entry.count == 2160
    with pytest.raises(SpecError, match="plain digits"):
        job(tmp_path, 'expect: [{"rec/*.tiff": 2_160}]\n')


def test_truth_values_are_read_where_they_are_meant(tmp_path: Path) -> None:
    spec = job(tmp_path, "inherit_environment: false\nresources: {exclusive_node_use: no}\n")
    assert (spec.inherit_environment, spec.resources.exclusive_node_use) == (False, False)


def test_aliases_and_merge_keys_work(tmp_path: Path) -> None:
    spec = job(tmp_path, "resources: &r {duration: 5}\nenvironment:\n  <<: &e {A: '1'}\n  B: 0x2\n")
    assert (spec.resources.duration, spec.environment) == (5, {"A": "1", "B": "0x2"})


BOMB = "expect:\n- &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"- &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)
)
HOSTILE = {
    "aliases": (BOMB, "aliases"),
    "texts": (f"name: &x {'y' * 900_000}\nexpect: [{','.join(['*x'] * 30)}]\n", "aliases"),
    "itself": ("expect: &a [*a]\n", "contains itself"),
    "itself in a mapping": ("environment: &a {A: *a}\n", "contains itself"),
    "deep": ("expect: " + "[" * 10_000, "levels deep"),
    "deep mappings": ("name: " + '{"a":' * 10_000, "levels deep"),
    "many": ("expect:\n" + "- x\n" * 110_000, "more than 100,000 values"),
    "large": ("x" * (MAX_BYTES + 1), "more than 10,000,000 bytes"),
}


#: Reads files one after the other, and prints what is said of each and the MiB that it took.
READER = """
import json, resource, sys
from pathlib import Path
from prefect_psik.spec.spelling import read_yaml
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read_yaml(Path(path))
    except ValueError as err:
        print(json.dumps([str(err), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024]))
"""


def test_bombs_are_refused_with_little_memory(tmp_path: Path) -> None:
    for name, (text, _) in HOSTILE.items():
        (tmp_path / f"{name}.yaml").write_text(f"script: 'true'\n{text}")
    paths = [str(tmp_path / f"{name}.yaml") for name in HOSTILE]
    done = subprocess.run([sys.executable, "-c", READER, *paths], capture_output=True, text=True, timeout=240)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(HOSTILE), done.stderr
    for (said, mebibytes), (name, (_, words)) in zip(answers, HOSTILE.items(), strict=True):
        assert words in said, name
        assert len(said) < 1000, name
        assert mebibytes < 200, name


def test_bomb_is_refused_by_the_name_of_its_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"job\.yaml as YAML: with its aliases"):
        job(tmp_path, BOMB)


def test_wrong_value_is_shown_short(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        job(tmp_path, "resources: {duration: " + "x" * 100_000 + "}\n")
    assert len(str(caught.value)) < 1000
    with pytest.raises(SpecError) as caught:
        job(tmp_path, "environment: [" + "x," * 10_000 + "]\n")
    assert len(str(caught.value)) < 1000


def test_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(ValueError, match="more than 10,000,000 bytes"):
        read_yaml(Path("/dev/zero"))


def test_values_of_any_type_are_numbers_only_where_json_would_say_so(tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_text("a: 5\nb: 1.5\nc: true\nd: yes\ne: 20211222_125057\nf: '5'\ng: [1:30:00, 007]\nh:\ni: NaN\n")
    assert plain_values(read_yaml(path)) == {
        **{"a": 5, "b": 1.5, "c": True, "d": "yes", "e": "20211222_125057", "f": "5"},
        **{"g": ["1:30:00", "007"], "h": None, "i": "NaN"},
    }
