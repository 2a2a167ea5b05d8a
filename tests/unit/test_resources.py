"""Tests of what a job asks for: the values that are possible, and what stands for those that are not given."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from prefect_psik.spec.resources import ResourceSpec

LEAST = {
    "duration": 1,
    "node_count": 1,
    "process_count": 1,
    "processes_per_node": 1,
    "cpu_cores_per_process": 1,
    "gpu_cores_per_process": 0,
}


@pytest.mark.parametrize("field", LEAST)
def test_number_has_a_least_value(field: str) -> None:
    assert getattr(ResourceSpec.model_validate({field: LEAST[field]}), field) == LEAST[field]
    with pytest.raises(ValidationError, match=field):
        ResourceSpec.model_validate({field: LEAST[field] - 1})


@pytest.mark.parametrize(
    ("memory", "is_possible"),
    [("16G", True), ("512", True), ("1T", True), ("16GB", False), ("G", False), (" 1G", False), ("1.5G", False)],
)
def test_memory_is_what_sbatch_takes(memory: str, is_possible: bool) -> None:
    if is_possible:
        assert ResourceSpec(memory=memory).memory == memory
    else:
        with pytest.raises(ValidationError, match="memory"):
            ResourceSpec(memory=memory)


def test_only_one_number_of_processes_can_be_given() -> None:
    with pytest.raises(ValidationError, match="give process_count or processes_per_node, not both"):
        ResourceSpec(process_count=2, processes_per_node=1)


@pytest.mark.parametrize(
    ("given", "complete", "remarkable"),
    [
        ({}, {}, {}),
        ({"duration": 10, "exclusive_node_use": True, "gpu_cores_per_process": 0}, {}, {}),
        ({"duration": 11, "exclusive_node_use": False}, {"duration": 11, "exclusive_node_use": False}, None),
        ({"node_count": 2, "memory": "1G"}, {"node_count": 2, "memory": "1G"}, None),
    ],
)
def test_psiks_defaults_stand_for_what_is_not_given(
    given: dict[str, Any], complete: dict[str, Any], remarkable: dict[str, Any] | None
) -> None:
    defaults = {
        "duration": 10,
        "cpu_cores_per_process": 1,
        "gpu_cores_per_process": 0,
        "exclusive_node_use": True,
    }
    spec = ResourceSpec.model_validate(given)
    assert spec.given() == given
    assert spec.complete() == defaults | complete
    assert spec.remarkable() == (given if remarkable is None else remarkable)


def test_form_explains_each_field() -> None:
    properties = ResourceSpec.model_json_schema()["properties"]
    assert [name for name, field in properties.items() if not field.get("description")] == []
