"""Tests of reading psik's own psik.json: its backends become blocks, or the reader says what to mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from prefect_psik.cli.psik_json import read_psik_json
from prefect_psik.exceptions import SpecError

SEED = Path(__file__).parents[1] / "fixtures" / "psik.json"
ENDPOINT = "11111111-2222-3333-4444-555555555555"
INNER: dict[str, Any] = {"type": "slurm", "project_name": "stf006", "queue_name": "batch"}


def write(path: Path, backends: Any, **more: Any) -> Path:
    file = path / "psik.json"
    file.write_text(json.dumps({"prefix": "/tmp/psik/client", "backends": backends} | more))
    return file


def globus(**changes: Any) -> dict[str, Any]:
    return {"type": "globus", "queue_name": ENDPOINT, "project_name": "/lustre/p", "attributes": INNER} | changes


def refusal(path: Path, endpoints: dict[str, str] | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        read_psik_json(path, endpoints)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith(".")
    return str(caught.value)


def test_seeds_placeholder_is_refused_with_how_to_give_the_uuid() -> None:
    text = refusal(SEED)
    assert "'polaris'" in text
    assert "'UUID-for-your-Globus-compute-endpoint'" in text
    assert "--endpoint polaris=UUID" in text
    assert "globus-compute-endpoint list" in text


def test_seeds_backend_becomes_a_block_once_the_uuid_is_given() -> None:
    blocks = read_psik_json(SEED, {"polaris": ENDPOINT})
    assert set(blocks) == {"polaris"}
    block = blocks["polaris"]
    assert block.endpoint_id == UUID(ENDPOINT)
    assert block.prefix == "/lustre/stf006/psik_jobs"
    assert block.attributes.model_dump(exclude_defaults=True) == INNER
    assert block.attributes.options == {}


def test_placeholder_given_again_is_refused() -> None:
    assert "'not-a-uuid'" in refusal(SEED, {"polaris": "not-a-uuid"})


def test_uuid_of_the_file_serves_and_a_given_one_wins(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": globus()})
    assert read_psik_json(path)["a"].endpoint_id == UUID(ENDPOINT)
    other = "99999999-2222-3333-4444-555555555555"
    assert read_psik_json(path, {"a": other})["a"].endpoint_id == UUID(other)


@pytest.mark.parametrize("queue_name", [None, ""])
def test_missing_uuid_is_refused_with_how_to_give_it(tmp_path: Path, queue_name: str | None) -> None:
    text = refusal(write(tmp_path, {"a": globus(queue_name=queue_name)}))
    assert "--endpoint a=UUID" in text
    assert "'None'" not in text


@pytest.mark.parametrize("as_text", [False, True], ids=["mapping", "text"])
def test_nested_options_are_a_real_mapping_also_when_psik_keeps_them_as_text(
    tmp_path: Path, as_text: bool
) -> None:
    options = {"--qos": "debug", "--licenses": "cfs"}
    path = write(
        tmp_path, {"a": globus(attributes=INNER | {"attributes": json.dumps(options) if as_text else options})}
    )
    attributes = read_psik_json(path)["a"].attributes
    assert attributes.options == options
    assert attributes.queue_name == "batch"


def test_remote_side_as_a_whole_may_be_text(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": globus(attributes=json.dumps(INNER | {"attributes": {"--qos": "debug"}}))})
    attributes = read_psik_json(path)["a"].attributes
    assert (attributes.type, attributes.project_name, attributes.options) == (
        "slurm",
        "stf006",
        {"--qos": "debug"},
    )


def test_psik_python_is_a_field_of_the_block_and_no_option(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"a": globus(attributes=INNER | {"attributes": {"psik_python": "/opt/py", "--qos": "debug"}})}
    )
    attributes = read_psik_json(path)["a"].attributes
    assert attributes.psik_python == "/opt/py"
    assert attributes.options == {"--qos": "debug"}


def test_reservation_reaches_sbatch_although_psik_ignores_it(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": globus(attributes=INNER | {"reservation_id": "beam"})})
    assert read_psik_json(path)["a"].attributes.sbatch_options() == {"--reservation": "beam"}


def test_backend_without_a_prefix_gets_psiks_default(tmp_path: Path) -> None:
    assert read_psik_json(write(tmp_path, {"a": globus(project_name=None)}))["a"].prefix == "$HOME/psik_jobs"


@pytest.mark.parametrize("kind", ["slurm", "local"])
def test_backends_of_this_machine_keep_psiks_own_prefix(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, {"here": {"type": kind, "queue_name": "q", "attributes": {"--qos": "x"}}})
    block = read_psik_json(path)["here"]
    assert block.endpoint_id is None
    assert block.prefix == "/tmp/psik/client"
    assert (block.attributes.type, block.attributes.queue_name) == (kind, "q")
    assert block.attributes.options == {"--qos": "x"}


def test_uuid_for_a_backend_of_this_machine_is_refused_and_not_dropped(tmp_path: Path) -> None:
    assert "here" in refusal(write(tmp_path, {"here": {"type": "local"}}), {"here": ENDPOINT})


@pytest.mark.parametrize("more", [{}, {"prefix": None}], ids=["absent", "null"])
def test_file_without_a_prefix_is_read_with_the_default(tmp_path: Path, more: dict[str, Any]) -> None:
    path = tmp_path / "psik.json"
    path.write_text(json.dumps({"backends": {"here": {}}} | more))
    assert read_psik_json(path)["here"].prefix == "$HOME/psik_jobs"


def test_all_backends_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"z": globus(), "a": {"type": "local"}, "m": globus(project_name="/other")})
    blocks = read_psik_json(path)
    assert list(blocks) == ["z", "a", "m"]
    assert blocks["m"].prefix == "/other"


def test_unknown_attribute_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, {"a": globus(attributes=INNER | {"queue": "x"})}))
    assert "unknown attributes queue" in text
    assert "queue_name" in text


@pytest.mark.parametrize("kind", ["nersc", "iri", "psik", ""])
def test_other_type_is_refused_with_those_that_can_be_imported(tmp_path: Path, kind: str) -> None:
    text = refusal(write(tmp_path, {"a": globus(type=kind)}))
    assert repr(kind) in text
    assert "only globus, slurm and local" in text


def test_other_type_at_the_facility_is_refused(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, {"a": globus(attributes={"type": "pbs"})}))
    assert "'a'" in text
    assert "pbs" in text


def test_forbidden_option_is_refused_with_its_place(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, {"a": globus(attributes=INNER | {"attributes": {"--array": "1-9"}})}))
    assert "'a'" in text
    assert "--array" in text


@pytest.mark.parametrize("attributes", ["{not json", "[1]", [], 5])
def test_attributes_that_are_no_mapping_are_refused(tmp_path: Path, attributes: Any) -> None:
    assert "'attributes' that are" in refusal(write(tmp_path, {"a": globus(attributes=attributes)}))


@pytest.mark.parametrize("entry", ["text", 5, None, []])
def test_backend_that_is_no_mapping_is_refused(tmp_path: Path, entry: Any) -> None:
    assert "'a'" in refusal(write(tmp_path, {"a": entry}))


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b"\xff\xfe", b"prefix: x"])
def test_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "psik.json"
    path.write_bytes(content)
    assert "is not JSON" in refusal(path)


@pytest.mark.parametrize(
    "content", ["{}", "[]", "5", "null", '{"backends": {}}', '{"backends": []}', '{"backends": 1}']
)
def test_file_without_backends_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "psik.json"
    path.write_text(content)
    assert "nothing to import" in refusal(path)


@pytest.mark.parametrize(("name", "words"), [("absent.json", "No such file"), (".", "Is a directory")])
def test_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_psik_json(tmp_path / name)


def test_uuid_for_a_backend_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    text = refusal(SEED, {"polariss": ENDPOINT})
    assert "no backend polariss" in text
    assert "polaris." in text


# -------------------------------------------------------------------- the whole file, and chosen backends of it


MIXED = {"good": {"type": "local"}, "nersc": {"type": "nersc"}, "odd": {"type": "slurm", "queue": "x"}}


def test_all_that_cannot_be_used_is_named_with_how_to_import_the_rest(tmp_path: Path) -> None:
    text = refusal_of_many(tmp_path, MIXED)
    for words in ("'nersc'", "'odd'", "unknown attributes queue", "add --only good."):
        assert words in text
    assert list(read_psik_json(write(tmp_path, MIXED), only=["good"])) == ["good"]


def refusal_of_many(path: Path, backends: Any, **options: Any) -> str:
    with pytest.raises(SpecError) as caught:
        read_psik_json(write(path, backends), **options)
    return str(caught.value)


def test_a_chosen_backend_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    text = refusal_of_many(tmp_path, MIXED, only=["nersc"])
    assert "'nersc'" in text
    assert "'odd'" not in text
    assert "--only" not in text


@pytest.mark.parametrize("name", ["perl_mutter", "Perl Mutter", "PERL.MUTTER", "perl/mutter"])
def test_a_name_that_no_block_can_have_is_refused_with_one_that_it_can(tmp_path: Path, name: str) -> None:
    backends = {"fine": {"type": "local"}, name: {"type": "local"}}
    assert f"--rename {name}=perl-mutter" in refusal_of_many(tmp_path, backends)
    blocks = read_psik_json(write(tmp_path, backends), names={name: "perl-mutter"})
    assert list(blocks) == ["fine", "perl-mutter"]


def test_two_backends_with_one_name_of_a_block_are_refused(tmp_path: Path) -> None:
    backends = {"a": {"type": "local"}, "b": {"type": "local"}}
    assert "--rename b=NAME" in refusal_of_many(tmp_path, backends, names={"b": "a"})
    assert list(read_psik_json(write(tmp_path, backends), names={"b": "a", "a": "b"})) == ["b", "a"]


@pytest.mark.parametrize("options", [{"only": ["c"]}, {"names": {"c": "d"}}])
def test_what_is_chosen_must_be_in_the_file(tmp_path: Path, options: dict[str, Any]) -> None:
    assert "no backend c. It has: a." in refusal_of_many(tmp_path, {"a": {"type": "local"}}, **options)
