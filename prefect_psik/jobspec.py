"""What stored results of older releases name; see `prefect_psik.spec.jobspec`."""

from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.resources import ResourceSpec

__all__ = ["JobSpec", "ResourceSpec"]
