"""flows/sweep.py on this machine: a limit at once, a table of results, and a restart that repeats nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.sweep import read_table, sweep
from prefect_psik import ResourceSpec
from tests.integration.local import backend_at, job_directories, runs, spec_of

pytestmark = pytest.mark.usefixtures("prefect_server")

ROWS: list[dict[str, str | int | float]] = [{"N": n} for n in range(6)]
#: Counts in `$GATE` how many run at once, once row 0 is not alone; row 3 fails while `$GATE/broken` is there.
SCRIPT = """#!/bin/bash
set -eu
touch "$GATE/now.$N"
if [ "$N" = 0 ]; then for _ in {1..600}; do ls "$GATE" | grep -q "now[.][1-9]" && break; sleep 0.1; done; fi
ls "$GATE" | grep -c now >"$GATE/seen.$N"
sleep 0.5
rm "$GATE/now.$N"
if [ "$N" = 3 ] && [ -e "$GATE/broken" ]; then echo "No beam in row $N" >&2; exit 4; fi
echo "{\\"square\\": $((N * N))}" >result.json
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    gate = tmp_path / "gate"
    gate.mkdir()
    path = tmp_path / "square.sh"
    path.write_text(SCRIPT.replace("$GATE", str(gate)))
    return path


@pytest.fixture
def backend(prefix: Path) -> str:
    backend_at(prefix).save("sweep-here", overwrite=True)
    return "sweep-here"


def artifact(key: str) -> str:
    with get_client(sync_client=True) as api:
        found = api.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return str(max(found, key=lambda one: str(one.created)).data)


async def test_each_row_is_one_job_and_no_more_than_the_limit_at_once(
    prefix: Path, script: Path, backend: str
) -> None:
    results = await sweep("squares", ROWS, script, backend, at_once=2)
    assert [row["square"] for row in results] == [0, 1, 4, 9, 16, 25]
    assert runs(prefix) == [[1]] * len(ROWS)
    seen = [int(path.read_text()) for path in (script.parent / "gate").glob("seen.*")]
    assert len(seen) == len(ROWS)
    assert max(seen) == 2
    assert '"square": 25' in artifact("sweep-squares")


async def test_a_sweep_goes_on_where_it_stopped(prefix: Path, script: Path, backend: str) -> None:
    broken = script.parent / "gate/broken"
    broken.touch()
    with pytest.raises(RuntimeError, match=r"1 of 6 rows .* failed"):
        await sweep("stopped", ROWS, script, backend)
    assert "ended with exit code 4" in artifact("sweep-stopped")
    first = {path.name for path in job_directories(prefix)}
    assert len(first) == len(ROWS)

    broken.unlink()
    results = await sweep("stopped", ROWS, script, backend, tries=2)
    assert [row["square"] for row in results] == [0, 1, 4, 9, 16, 25]
    (again,) = [path for path in job_directories(prefix) if path.name not in first]
    assert spec_of(again)["name"] == "square"
    assert runs(prefix) == [[1]] * (len(ROWS) + 1), "only the failed row has another job"


async def test_a_retry_in_prefect_runs_the_failed_row_again(prefix: Path, script: Path, backend: str) -> None:
    (script.parent / "gate/broken").touch()
    retried = sweep.with_options(retries=1)
    with pytest.raises(RuntimeError, match="1 of 6 rows"):
        await retried("retried", ROWS, script, backend)
    assert runs(prefix) == [[1]] * 5 + [[1, 2]]


@pytest.mark.parametrize("wrong", ["[1, 2]", "no JSON", "\\xff"])
async def test_a_result_that_is_no_mapping_fails_its_row_only(
    prefix: Path, tmp_path: Path, backend: str, wrong: str
) -> None:
    path = tmp_path / "wrong.sh"
    path.write_text(f"""#!/bin/bash
if [ "$N" = 1 ]; then printf '{wrong}'; else echo '{{"square": 4}}'; fi >result.json
""")
    with pytest.raises(RuntimeError, match="1 of 2 rows"):
        await sweep("wrong", [{"N": 1}, {"N": 2}], path, backend)
    assert "its result.json is not a JSON mapping" in artifact("sweep-wrong")
    assert '"square": 4' in artifact("sweep-wrong")


def test_a_table_is_csv_or_json(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["ANGLE", "MODE"], [1, "a b"], [2, "c,d"]])
    assert read_table(tmp_path / "t.csv") == [{"ANGLE": "1", "MODE": "a b"}, {"ANGLE": "2", "MODE": "c,d"}]
    (tmp_path / "t.json").write_text('[{"ANGLE": 1.5}]')
    assert read_table(tmp_path / "t.json") == [{"ANGLE": 1.5}]


def test_the_resources_are_a_form() -> None:
    form = sweep.parameters.model_dump()
    assert form["properties"]["at_once"]["anyOf"][0]["minimum"] == 1
    assert "queue" in form["properties"]["at_once"]["description"]
    assert set(form["definitions"]["ResourceSpec"]["properties"]) == set(ResourceSpec.model_fields)
