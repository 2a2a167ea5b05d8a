"""How much a job asks for: what is not given stays empty, however the spec travels, until psik needs it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from prefect_psik.spec.strict import Count, Minutes, Typed

#: psik's own, for what neither the job nor the backend gives.
PSIK_DEFAULTS: dict[str, Any] = {
    "duration": 10,
    "cpu_cores_per_process": 1,
    "gpu_cores_per_process": 0,
    "exclusive_node_use": True,
}


class ResourceSpec(Typed):
    """How much the job asks for: psik's fields, plus `memory`.

    What is not given comes from the backend's `default_resources`, and else from psik.
    """

    duration: Minutes | None = Field(
        default=None,
        ge=1,
        description="Walltime limit in minutes, at least 1, or as Slurm writes it: 1:30:00. psik's default: 10.",
    )
    node_count: Count | None = Field(default=None, ge=1, description="Compute nodes.")
    process_count: Count | None = Field(
        default=None, ge=1, description="Processes in all; not together with processes_per_node."
    )
    processes_per_node: Count | None = Field(default=None, ge=1, description="Processes on each node.")
    cpu_cores_per_process: Count | None = Field(
        default=None, ge=1, description="CPU cores of each process. psik's default: 1."
    )
    gpu_cores_per_process: Count | None = Field(
        default=None, ge=0, description="GPUs of each process. psik's default: 0."
    )
    exclusive_node_use: bool | None = Field(default=None, description="Take whole nodes. psik's default: true.")
    memory: str | None = Field(
        default=None, pattern=r"^[0-9]+[KMGT]?$", description="Memory per node, as sbatch's --mem: 16G."
    )

    @model_validator(mode="after")
    def _one_process_count(self) -> ResourceSpec:
        if self.process_count is not None and self.processes_per_node is not None:
            raise ValueError("give process_count or processes_per_node, not both")
        return self

    def given(self) -> dict[str, Any]:
        """What is asked for, by field."""
        return self.model_dump(exclude_none=True)

    def complete(self) -> dict[str, Any]:
        """All fields but those that psik leaves to the scheduler, with psik's defaults for what is not given."""
        return PSIK_DEFAULTS | self.given()

    def remarkable(self) -> dict[str, Any]:
        """What is asked for and is not psik's default."""
        return {name: value for name, value in self.given().items() if PSIK_DEFAULTS.get(name) != value}
