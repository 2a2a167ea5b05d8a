"""What the documents say is true: every Python block runs as written, every job.yaml is one, no link is dead."""

from __future__ import annotations

import inspect
import re
import runpy
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import prefect_psik
from prefect_psik import (
    BackendAttributes,
    FailureCause,
    JobSpec,
    JobState,
    PrefectPsikError,
    PsikBackend,
    ResourceSpec,
)

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^([ ]*)```([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """One fenced block of a text."""

    where: str
    language: str
    text: str


def fenced(where: str, text: str) -> Iterator[Example]:
    for number, found in enumerate(_FENCE.finditer(text), start=1):
        yield Example(f"{where} block {number}", found[2].strip(), textwrap.dedent(found[3]))


def in_documents() -> list[Example]:
    return [
        example
        for path in DOCUMENTS
        for example in fenced(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    ]


def in_docstrings() -> list[Example]:
    found = list(fenced("prefect_psik", inspect.getdoc(prefect_psik) or ""))
    for name in prefect_psik.__all__:
        thing: Any = getattr(prefect_psik, name)
        thing = getattr(thing, "fn", thing)
        found += fenced(f"prefect_psik.{name}", inspect.getdoc(thing) or "")
        for part, member in vars(thing).items() if inspect.isclass(thing) else ():
            if not part.startswith("_"):
                found += fenced(f"prefect_psik.{name}.{part}", inspect.getdoc(member) or "")
    return found


PYTHON = [example for example in [*in_documents(), *in_docstrings()] if example.language.split()[:1] == ["python"]]


@pytest.mark.parametrize("example", PYTHON, ids=lambda example: example.where)
def test_an_example_runs_as_written(
    prefect_server: None, example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile(example.text, example.where, "exec")
    if "notest" in example.language:
        pytest.skip("the text says that it needs a facility")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text("name: test\nscript: |\n  #!/bin/bash\n  hostname\n")
    (tmp_path / "recon.sh").write_text("#!/bin/bash\nmkdir -p rec\necho done > rec/0.tiff\n")
    (tmp_path / "example.py").write_text(example.text, encoding="utf-8")
    runpy.run_path(str(tmp_path / "example.py"), run_name="__main__")


def test_there_are_examples_to_run() -> None:
    places = {example.where.split(" block")[0] for example in PYTHON if "notest" not in example.language}
    assert "README.md" in places
    assert "docs/how-to/write-a-job.md" in places
    assert "prefect_psik.JobSpec" in places


def job_files() -> list[Example]:
    return [
        example
        for example in in_documents()
        if example.language == "yaml" and re.search(r"^script:", example.text, re.MULTILINE)
    ]


@pytest.mark.parametrize("example", job_files(), ids=lambda example: example.where)
def test_a_job_yaml_of_the_documents_is_one(example: Example, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(example.text, encoding="utf-8")
    for name in ("table.csv", "mask.npy"):
        (tmp_path / name).write_text("x")
    JobSpec.from_file(tmp_path / "job.yaml")


def test_there_is_a_job_yaml() -> None:
    assert job_files()


# ------------------------------------------------------------------------------- the reference is complete


def document(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_job_reference_has_every_field() -> None:
    text = document("reference/job-spec.md")
    for model in (JobSpec, ResourceSpec):
        for name in model.model_fields:
            assert f"| `{name}` |" in text, name


def test_the_block_reference_has_every_field() -> None:
    text = document("how-to/register-blocks.md") + (ROOT / "README.md").read_text(encoding="utf-8")
    for model in (PsikBackend, BackendAttributes):
        for name in model.model_fields:
            assert f"`{name}`" in text, name


def test_the_error_reference_has_every_class_and_cause() -> None:
    text = document("reference/errors.md")
    errors = [
        name
        for name in prefect_psik.__all__
        if inspect.isclass(getattr(prefect_psik, name))
        and issubclass(getattr(prefect_psik, name), PrefectPsikError)
    ]
    for name in [*errors, *(f"`{cause.value}`" for cause in FailureCause)]:
        assert name in text, name
    for state in JobState:
        assert f"`{state.value}`" in document("concepts.md"), state


def test_no_link_is_dead() -> None:
    dead = []
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
            if "://" not in target and not (path.parent / target).exists():
                dead.append(f"{path.relative_to(ROOT)} -> {target}")
    assert dead == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
