"""What stored results of older releases name; see `prefect_psik.spec.resources`."""

from prefect_psik.spec.resources import ResourceSpec

__all__ = ["ResourceSpec"]
