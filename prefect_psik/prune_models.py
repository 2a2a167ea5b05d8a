"""What stored results of older releases name; see `prefect_psik.models.prunes`."""

from prefect_psik.models.prunes import PruneFile, PruneReport, PruneVerdict, ScheduledPrune

__all__ = ["PruneFile", "PruneReport", "PruneVerdict", "ScheduledPrune"]
