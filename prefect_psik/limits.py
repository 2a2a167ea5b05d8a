"""What stored results of older releases name; see `prefect_psik.jobs.limits`."""

from prefect_psik.jobs.limits import WaitLimits

__all__ = ["WaitLimits"]
