"""Tests of the extra sbatch options: what would break psik's bookkeeping is refused, in every spelling."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from prefect_psik.spec.jobspec import sbatch_argument
from prefect_psik.spec.sbatch_options import FORBIDDEN_OPTIONS, Options, check_options

SHORT = {
    "-a": "--array",
    "-M": "--clusters",
    "-D": "--chdir",
    "-N": "--nodes",
    "-c": "--cpus-per-task",
    "-n": "--ntasks",
    "-e": "--error",
    "-h": "--help",
    "-i": "--input",
    "-J": "--job-name",
    "-o": "--output",
    "-Q": "--quiet",
    "-t": "--time",
    "-V": "--version",
    "-W": "--wait",
}
ABBREVIATIONS = sorted(
    {option[:length] for option in FORBIDDEN_OPTIONS for length in range(3, len(option))}
    - {*FORBIDDEN_OPTIONS, "--gpus"}  # an option of its own
)
#: sbatch's short options that take no value: getopt reads what is glued to them as further options.
SHORT_FLAGS = [("-H", "a1-4"), ("-O", "o/tmp/elsewhere"), ("-s", "W"), ("-v", "t600")]


class Holder(BaseModel):
    """A model with options, as blocks and specs have them."""

    options: Options = {}


def refusal(options: Any) -> str:
    with pytest.raises(ValueError, match=r".+") as caught:
        check_options(options)
    return str(caught.value)


def test_what_design_forbids_is_in_the_table() -> None:
    assert {
        "--array",
        "--wait",
        "--clusters",
        "--test-only",
        "--wrap",
        "--export",
        "--output",
        "--error",
        "--time",
        "--job-name",
        "--chdir",
        "--nodes",
        "--ntasks",
        "--ntasks-per-node",
        "--cpus-per-task",
        "--gpus-per-task",
    } <= set(FORBIDDEN_OPTIONS)


@pytest.mark.parametrize("option", sorted(FORBIDDEN_OPTIONS))
def test_forbidden_option_is_refused_with_what_to_do_instead(option: str) -> None:
    text = refusal({option: "x"})
    assert option in text
    assert FORBIDDEN_OPTIONS[option] in text


@pytest.mark.parametrize("option", sorted(FORBIDDEN_OPTIONS))
def test_forbidden_option_is_refused_as_a_bare_flag_too(option: str) -> None:
    assert option in refusal({option: True})
    assert option in refusal({option: option})


@pytest.mark.parametrize(("short", "full"), list(SHORT.items()))
def test_short_form_of_a_forbidden_option_is_refused(short: str, full: str) -> None:
    assert FORBIDDEN_OPTIONS[full] in refusal({short: "1"})


@pytest.mark.parametrize("option", ABBREVIATIONS)
def test_abbreviation_of_a_forbidden_option_is_refused(option: str) -> None:
    assert option in refusal({option: "x"})


@pytest.mark.parametrize("option", ["--array=1-3", "--output=x", "-a1-3", "-oout", "--time 5", "-J x"])
def test_value_in_the_name_is_refused(option: str) -> None:
    assert repr(option) in refusal({option: "x"})


@pytest.mark.parametrize(("flag", "value"), SHORT_FLAGS)
def test_further_options_cannot_hide_in_the_value_of_a_short_flag(flag: str, value: str) -> None:
    assert flag in refusal({flag: value})


def test_heterogeneous_job_is_refused_with_the_reason() -> None:
    text = refusal({":": ":"})
    assert "heterogeneous" in text
    assert "submit two jobs" in text


@pytest.mark.parametrize("option", ["qos", "mem-per-cpu"])
def test_option_without_dashes_is_refused_with_the_right_spelling(option: str) -> None:
    assert f"write '--{option}'" in refusal({option: "debug"})


@pytest.mark.parametrize(
    "option",
    ["", "-", "--", "---qos", "-qos", "--Qos", "--q os", "--qos\n", "\n--qos", "--é", "script.sh", 5, None],
)
def test_what_is_no_option_is_refused(option: object) -> None:
    assert repr(option) in refusal({option: "x"})


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--begin", datetime.date(2026, 11, 27), "write it as text, '2026-11-27'"),
        ("--begin", datetime.datetime(2026, 11, 27, 8, 30), "write it as text, '2026-11-27T08:30:00'"),
        ("--mail-type", ["END", "FAIL"], "write one string, as sbatch takes it: 'END,FAIL'"),
        ("--exclusive", False, "is false: leave it out, and write exclusive_node_use: false"),
        ("--hold", False, "is false: leave it out"),
        ("--gres", {"gpu": 2}, "has a dict as its value"),
    ],
)
def test_what_is_not_text_is_refused_by_its_own_name(option: str, value: object, words: str) -> None:
    text = refusal({option: value})
    assert option in text
    assert words in text
    assert "empty" not in text


@pytest.mark.parametrize("value", ["", " ", "\t", None])
def test_empty_value_is_refused_with_the_way_to_write_a_flag(value: object) -> None:
    text = refusal({"--qos": value})
    assert "--qos" in text
    assert "for a flag without a value, write true" in text


@pytest.mark.parametrize("value", ["-x", "--array=1", "a\nb", "a\0b", "a\rb", "a\x7fb", -5])
def test_value_with_a_leading_dash_or_control_character_is_refused(value: object) -> None:
    assert "--qos" in refusal({"--qos": value})


@pytest.mark.parametrize("option", ["--hold", "-H", "--requeue", "--exclusive"])
def test_bare_flag_is_written_true_and_kept_as_psik_does(option: str) -> None:
    assert check_options({option: True}) == {option: option}
    assert check_options({option: option}) == {option: option}


@pytest.mark.parametrize(
    "options",
    [
        {"--qos": "debug"},
        {"--account": "stf006"},
        {"-A": "stf006"},
        {"-p": "batch"},
        {"-C": "gpu&hbm80g"},
        {"--constraint": "[rack1|rack2]"},
        {"--exclude": "n[1-4]"},
        {"--dependency": "afterok:17"},
        {"--licenses": "cfs,scratch"},
        {"--time-min": "5"},
        {"--comment": "two words"},
        {"--mail-user": "a@example.org"},
        {"--wait-all-nodes": "1"},
        {"--nodelist": "n1"},
        {"--gpus": "4"},
        {"--mem": "16G"},
        {"--mem-per-cpu": "1G"},
    ],
    ids=str,
)
def test_allowed_option_passes_unchanged(options: dict[str, str]) -> None:
    assert check_options(options) == options


def test_number_becomes_text() -> None:
    assert check_options({"--nice": 5, "--priority": 0}) == {"--nice": "5", "--priority": "0"}


@pytest.mark.parametrize("options", ["--qos=debug", ["--qos"], 5, None])
def test_options_that_are_no_mapping_are_refused_by_the_model(options: Any) -> None:
    with pytest.raises(ValidationError):
        Holder(options=options)


def test_model_gives_the_sentence_of_the_check() -> None:
    with pytest.raises(ValidationError, match="submit one job for each element"):
        Holder(options={"--array": "1-3"})


OPTION_NAMES = st.one_of(
    st.text(max_size=8),
    st.text("-abqoW", max_size=6),
    st.sampled_from([*FORBIDDEN_OPTIONS, *SHORT, "--qos", "--hold", "-q", "-H", "--mem", ":"]),
    st.integers(),
    st.none(),
)
OPTION_VALUES = st.one_of(
    st.text(max_size=10),
    st.text("-\n\0 =ax", max_size=5),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.none(),
    st.lists(st.text(max_size=2), max_size=2),
    st.sampled_from(["--hold", "-q", "debug"]),
)


@settings(max_examples=300)
@given(st.dictionaries(OPTION_NAMES, OPTION_VALUES, max_size=4))
def test_whatever_is_given_becomes_single_arguments_or_is_refused(given_options: dict[Any, Any]) -> None:
    try:
        options = check_options(given_options)
    except ValueError:
        return
    assert set(options) == set(given_options)
    for key, value in options.items():
        argument = sbatch_argument(key, value)
        assert argument.startswith(key)
        assert argument.startswith("-")
        assert not {"\n", "\0", "\r"}.intersection(argument)
        assert not any(
            key == forbidden or (key.startswith("--") and key != "--gpus" and forbidden.startswith(key))
            for forbidden in FORBIDDEN_OPTIONS
        )
