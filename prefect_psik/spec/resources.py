"""The resources that a job asks for; anything not set stays empty until psik needs a value."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from prefect_psik.spec.strict import Count, Minutes, Typed

#: psik's own values, for anything that neither the job nor the backend sets.
PSIK_DEFAULTS: dict[str, Any] = {
    "duration": 10,
    "cpu_cores_per_process": 1,
    "gpu_cores_per_process": 0,
    "exclusive_node_use": True,
}


class ResourceSpec(Typed):
    """The resources that the job asks for: psik's fields, plus `memory`.

    Anything not set comes from the backend's `default_resources`, or else from psik.
    """

    duration: Minutes | None = Field(
        default=None,
        ge=1,
        description="Walltime limit in minutes, at least 1, or as Slurm writes it: 1:30:00. psik's default: 10.",
    )
    node_count: Count | None = Field(default=None, ge=1, description="Number of compute nodes.")
    process_count: Count | None = Field(
        default=None, ge=1, description="Total number of processes. Cannot be combined with processes_per_node."
    )
    processes_per_node: Count | None = Field(default=None, ge=1, description="Number of processes on each node.")
    cpu_cores_per_process: Count | None = Field(
        default=None, ge=1, description="CPU cores per process. psik's default: 1."
    )
    gpu_cores_per_process: Count | None = Field(
        default=None, ge=0, description="GPUs per process. psik's default: 0."
    )
    exclusive_node_use: bool | None = Field(
        default=None, description="Whether to use whole nodes, shared with no other job. psik's default: true."
    )
    memory: str | None = Field(
        default=None,
        pattern=r"^[0-9]+[KMGT]?$",
        description="Memory per node, written as for sbatch's --mem: 16G.",
    )

    @model_validator(mode="after")
    def _one_process_count(self) -> ResourceSpec:
        if self.process_count is not None and self.processes_per_node is not None:
            raise ValueError("give process_count or processes_per_node, not both")
        return self

    def given(self) -> dict[str, Any]:
        """The fields that are set."""
        return self.model_dump(exclude_none=True)

    def complete(self) -> dict[str, Any]:
        """The fields that are set, and psik's defaults for the others where psik has any."""
        return PSIK_DEFAULTS | self.given()

    def remarkable(self) -> dict[str, Any]:
        """The fields that are set and differ from psik's defaults."""
        return {name: value for name, value in self.given().items() if PSIK_DEFAULTS.get(name) != value}
