"""Entries of `expect` and `outputs`, as people write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefect_psik import Expected, JobSpec, SpecError


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"expect": ["a/" * 100 + "b"]}, "at most 1,000 bytes, 64 parts"),
        ({"outputs": ["x" * 300]}, "255 bytes per part"),
        ({"files": {"a/" * 200 + "b": "x"}}, "at most 1,000 bytes, 64 parts"),
        ({"expect": [{"path": "a", "count": 2, "at_least": 1, "at_most": 3}]}, "unknown field at_most"),
        ({"expect": [{"path": "a", "count": 2, "at_least": 2}]}, "give count or at_least, not both"),
        ({"expect": {"a": "many"}}, "count: "),
        ({"expect": {"a": True}}, "write a number in plain digits"),
        ({"expect": [{}]}, "has no path"),
        ({"expect": [{"count": 3}]}, "has no path"),
        ({"expect": {"file": "a", "count": 3}}, "has no path"),
        ({"expect": [{"path": None, "count": 3}]}, "has no path"),
        ({"expect": {"a": {"path": "b"}}}, "is neither a path with a count"),
        ({"expect": {f"{n}": 1 for n in range(1001)}}, "over the limit of 1,000: use globs"),
        ({"expect": [["a"]]}, "is neither a path nor a mapping"),
        ({"expect": ["a", ".."]}, "is not a path or glob"),
        ({"outputs": ["../a"]}, "must be a plain path"),
        ({"expect": [f"{n}" for n in range(1001)]}, "over the limit of 1,000: use globs"),
    ],
)
def test_an_entry_that_cannot_be_meant_is_refused_when_it_is_read(
    tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps({"script": "true", **fields}))
    with pytest.raises(SpecError, match=says):
        JobSpec.from_file(job)


def test_a_spec_with_entries_survives_json_and_keeps_its_digest() -> None:
    spec = JobSpec(script="true", expect=["a", {"path": "b", "count": 3}, {"path": "c"}], outputs={"d": None})
    assert spec.expect == ["a", Expected(path="b", count=3), "c"]
    assert spec.outputs == ["d"]
    again = JobSpec.model_validate_json(spec.model_dump_json())
    assert (again.canonical(), again.digest()) == (spec.canonical(), spec.digest())
    assert JobSpec(script="true", expect=["c"]).digest() == JobSpec(script="true", expect=[{"path": "c"}]).digest()


@pytest.mark.parametrize(
    ("written", "entries"),
    [
        ("a.h5", ["a.h5"]),
        ({"rec/*.tiff": 2160, "b": None}, [Expected(path="rec/*.tiff", count=2160), "b"]),
        ({"path": "a", "at_least": 2}, [Expected(path="a", at_least=2)]),
        (
            ["a", {"b": "3"}, {"c": {"min_bytes": 0}}],
            ["a", Expected(path="b", count=3), Expected(path="c", min_bytes=0)],
        ),
        (Expected(path="a", count=2), [Expected(path="a", count=2)]),
    ],
)
def test_ways_to_write_entries(written: Any, entries: list[Any]) -> None:
    assert JobSpec(script="true", expect=written).expect == entries
