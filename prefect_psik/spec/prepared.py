"""A spec prepared for one backend: the job's fields first, then its script's directives, then the backend's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect_psik.exceptions import SpecError
from prefect_psik.spec.directives import Note, read_header, without_effect
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.resources import ResourceSpec
from prefect_psik.spec.sbatch import long_name, setting
from prefect_psik.spec.time_warning import WARNING_SIGNAL, BatchSignal, batch_signal

#: Fields of a spec, beside its resources, that a directive can set.
_OWN_FIELDS = ("name", "directory", "warn_before")


@dataclass(frozen=True)
class Prepared:
    """A spec in the form in which a backend runs it.

    Args:
        spec: With name, directory, resources and `warn_before` filled in. The key stays that of the spec as it was
            given.
        options: The sbatch options of the script and the backend that the spec does not replace.
        notes: How each directive of the script was handled.
    """

    spec: JobSpec
    options: dict[str, str]
    notes: list[Note]

    @property
    def warning(self) -> BatchSignal | None:
        """The signal that warns the script before its time limit."""
        if self.spec.warn_before is not None:
            return BatchSignal(WARNING_SIGNAL, self.spec.warn_before)
        given = [*self.spec.attributes.items(), *self.options.items()]
        asked = next((value for name, value in given if long_name(name) == "--signal"), None)
        return batch_signal(asked) if asked else None


def prepare(spec: JobSpec, *, scheduler: str, options: Mapping[str, str], resources: ResourceSpec) -> Prepared:
    """Combine a spec with its script's directives and with the backend's settings.

    Args:
        spec: As the user gave it.
        scheduler: `slurm` or `local`.
        options: The backend's sbatch options.
        resources: The backend's, for anything the job does not set.

    Raises:
        SpecError: A directive cannot be honoured, or the warning would come before the job begins.
    """
    values: dict[str, Any] = {}
    notes: list[Note] = []
    given: dict[str, Any] = {name: getattr(spec, name) for name in _OWN_FIELDS}
    given = {name: value for name, value in given.items() if value is not None} | spec.resources.given()
    given |= {long_name(name): value for name, value in spec.attributes.items()}
    if spec.directives == "read" and scheduler == "slurm":
        values, notes = read_header(spec.script, given)
    elif spec.directives == "read":
        notes = without_effect(spec.script)
    # One setting can have several names, such as --mem-per-cpu and memory: setting one replaces the others.
    chosen = {setting(name) for name in (*given, *values)}
    rest = {name: value for name, value in resources.given().items() if setting(name) not in chosen}
    fields = {name: value for name, value in values.items() if not name.startswith("-")}
    filled: dict[str, Any] = {name: fields.pop(name) for name in _OWN_FIELDS if name in fields}
    filled["resources"] = ResourceSpec(**{**rest, **fields, **spec.resources.given()})
    left = {name: value for name, value in options.items() if setting(name) not in chosen}
    left |= {name: value for name, value in values.items() if name.startswith("-")}
    prepared = Prepared(spec.model_copy(update=filled), left, notes)
    _check_warning(prepared.spec)
    return prepared


def _check_warning(spec: JobSpec) -> None:
    minutes = spec.resources.complete()["duration"]
    if spec.warn_before is not None and spec.warn_before >= 60 * minutes:
        raise SpecError(
            f"warn_before is {spec.warn_before} s, but the job may run for only {minutes} min, so the warning "
            "would come before its script begins. Ask for a longer duration, or a shorter warn_before."
        )
