"""A spec made ready for one backend: what the job gives, then its script's directives, then the backend's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect_psik.directives import Note, read_header, without_effect
from prefect_psik.jobspec import JobSpec
from prefect_psik.resources import ResourceSpec
from prefect_psik.sbatch import long_name, setting


@dataclass(frozen=True)
class Prepared:
    """A spec as a backend runs it.

    Args:
        spec: With name, directory and resources filled in. The key stays that of the spec as it was given.
        options: sbatch's options of the script and of the backend, as far as the spec does not replace them.
        notes: What was done with the directives of the script.
    """

    spec: JobSpec
    options: dict[str, str]
    notes: list[Note]


def prepare(spec: JobSpec, *, scheduler: str, options: Mapping[str, str], resources: ResourceSpec) -> Prepared:
    """Put a spec together with the directives of its script and with what the backend sets.

    Args:
        spec: As the user gave it.
        scheduler: `slurm` or `local`.
        options: sbatch's options of the backend.
        resources: Of the backend, for what the job does not ask for.

    Raises:
        SpecError: A directive cannot be honoured.
    """
    values: dict[str, Any] = {}
    notes: list[Note] = []
    given: dict[str, Any] = {"name": spec.name, "directory": spec.directory}
    given = {name: value for name, value in given.items() if value is not None} | spec.resources.given()
    given |= {long_name(name): value for name, value in spec.attributes.items()}
    if spec.directives == "read" and scheduler == "slurm":
        values, notes = read_header(spec.script, given)
    elif spec.directives == "read":
        notes = without_effect(spec.script)
    # One setting has several spellings, and whoever chooses one of them has chosen: --mem-per-cpu and memory.
    chosen = {setting(name) for name in (*given, *values)}
    rest = {name: value for name, value in resources.given().items() if setting(name) not in chosen}
    fields = {name: value for name, value in values.items() if not name.startswith("-")}
    filled: dict[str, Any] = {name: fields.pop(name) for name in ("name", "directory") if name in fields}
    filled["resources"] = ResourceSpec(**{**rest, **fields, **spec.resources.given()})
    left = {name: value for name, value in options.items() if setting(name) not in chosen}
    left |= {name: value for name, value in values.items() if name.startswith("-")}
    return Prepared(spec.model_copy(update=filled), left, notes)
