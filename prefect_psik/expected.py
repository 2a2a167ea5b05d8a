"""What stored results of older releases name; see `prefect_psik.spec.expected`."""

from prefect_psik.spec.expected import Expected

__all__ = ["Expected"]
