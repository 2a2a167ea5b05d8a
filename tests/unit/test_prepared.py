"""Tests of a spec made ready for a backend: the same however it travelled, and the choice of the job first."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from prefect.utilities.collections import isiterable
from pydantic import BaseModel

import prefect_psik
from prefect_psik import (
    BackendAttributes,
    Expected,
    GlobusCollection,
    GlobusCredentials,
    Growth,
    JobHandle,
    JobSpec,
    PsikBackend,
    ResourceSpec,
    WaitLimits,
)
from prefect_psik.spec.identity import Identity
from tests.unit.test_jobspec import SPECS

BLOCK = PsikBackend(
    attributes=BackendAttributes(type="slurm"),
    default_resources={
        "duration": 30,
        "node_count": 4,
        "processes_per_node": 2,
        "cpu_cores_per_process": 8,
        "exclusive_node_use": False,
        "memory": "8G",
    },
)


def payload(spec: JobSpec, block: PsikBackend = BLOCK) -> dict[str, Any]:
    return block.submission(spec, Identity("k", "1"), {})


def options(spec: JobSpec, block: PsikBackend) -> set[str]:
    return {option for option in payload(spec, block)["spec"]["attributes"] if option.startswith("--mem")}


def travelled(spec: JobSpec) -> list[JobSpec]:
    """A spec after JSON with all of its fields, as Prefect keeps parameters; blanks of a form are null."""
    return [
        JobSpec.model_validate_json(spec.model_dump_json()),
        JobSpec.model_validate(spec.model_dump(mode="json")),
        JobSpec.model_validate(JobSpec.model_validate(spec.model_dump(mode="json")).model_dump()),
    ]


def test_block_gives_what_a_spec_does_not_after_json_too() -> None:
    spec = JobSpec(script="true")
    for found in [spec, *travelled(spec)]:
        assert payload(found) == payload(spec)
        assert payload(found)["asked"] == {"duration": 30, "memory": "8G"}
        assert payload(found)["spec"]["resources"]["node_count"] == 4


def test_spec_that_asks_for_psiks_default_keeps_it_after_json_too() -> None:
    spec = JobSpec(
        script="true",
        resources=ResourceSpec(duration=10, cpu_cores_per_process=1, exclusive_node_use=True, process_count=3),
    )
    for found in [spec, *travelled(spec)]:
        resources = payload(found)["spec"]["resources"]
        assert payload(found)["asked"]["duration"] == 10
        assert (resources["cpu_cores_per_process"], resources["exclusive_node_use"]) == (1, True)
        assert (resources["process_count"], resources.get("processes_per_node")) == (3, None)
        assert found.digest() == spec.digest()


def test_form_offers_no_resource_that_the_user_did_not_choose() -> None:
    properties = ResourceSpec.model_json_schema()["properties"]
    assert {name: field.get("default") for name, field in properties.items()} == dict.fromkeys(properties)


@settings(max_examples=30, deadline=None)
@given(SPECS)
def test_any_spec_is_the_same_job_however_it_travelled(fields: dict[str, Any]) -> None:
    spec = JobSpec.model_validate(fields | {"directives": "ignore"})
    for found in travelled(spec):
        assert payload(found) == payload(spec)
        assert found == spec


def test_block_is_the_same_after_it_was_stored() -> None:
    stored = PsikBackend.model_validate(BLOCK.model_dump(mode="json"))
    assert payload(JobSpec(script="true"), stored) == payload(JobSpec(script="true"))


@pytest.mark.parametrize("choice", ["--mem-per-cpu", "--mem", "--mem-per-gpu"])
@pytest.mark.parametrize(
    "block",
    [
        {"default_resources": {"memory": "8G"}},
        {"attributes": {"type": "slurm", "options": {"--mem": "8G"}}},
        {"attributes": {"type": "slurm", "options": {"--mem-per-cpu": "8G"}}},
        {"attributes": {"type": "slurm", "options": {"--mem-per-gpu": "8G"}}},
    ],
    ids=str,
)
def test_jobs_choice_of_memory_replaces_the_blocks(block: dict[str, Any], choice: str) -> None:
    backend = PsikBackend.model_validate({"attributes": {"type": "slurm"}} | block)
    assert options(JobSpec(script="true", attributes={choice: "1G"}), backend) == {f"{choice}=1G"}
    assert options(JobSpec(script="true", resources=ResourceSpec(memory="2G")), backend) == {"--mem=2G"}
    assert len(options(JobSpec(script="true"), backend)) == 1


def test_jobs_short_option_replaces_the_blocks_long_one() -> None:
    block = PsikBackend(attributes=BackendAttributes(type="slurm", qos="normal", constraint="cpu"))
    attributes = payload(JobSpec(script="true", attributes={"-q": "debug"}), block)["spec"]["attributes"]
    assert "-qdebug" in attributes
    assert "--qos=normal" not in attributes
    assert "--constraint=cpu" in attributes


@pytest.mark.parametrize(
    "model",
    [
        *(JobSpec(script="true"), ResourceSpec(), Expected(path="a"), WaitLimits(), Growth()),
        *(PsikBackend(), BackendAttributes(), GlobusCollection(), GlobusCredentials()),
        JobHandle(prefix="/p", stamp="1", jobndx=1, native_id=None, key="k", type="local", name=None),
    ],
    ids=lambda model: type(model).__name__,
)
def test_model_is_one_thing_for_map(model: object) -> None:
    assert not isiterable(model)
    assert isinstance(model, BaseModel)
    assert dict(BaseModel.__iter__(model)) == dict(model)


def test_no_public_model_is_taken_for_a_list() -> None:
    public = [getattr(prefect_psik, name) for name in prefect_psik.__all__]
    models = [kind for kind in public if hasattr(kind, "model_fields")]
    assert len(models) > 15
    assert [kind.__name__ for kind in models if kind.__iter__ is not None] == []
