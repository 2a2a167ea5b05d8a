"""What stored results of older releases name; see `prefect_psik.spec.retry`."""

from prefect_psik.spec.retry import Growth

__all__ = ["Growth"]
