"""Delete data of which a second copy is proven to exist; deploy it once, and `schedule_prune` finds it."""

from datetime import timedelta

from prefect import flow

from prefect_psik import prune


@flow(name="prune", flow_run_name="prune {source}:{path}")
def prune_data(source: str, path: str, check: str, min_age_days: float = 0.0, dry_run: bool = False) -> None:
    """Delete the files below a path that a check collection is proven to hold.

    Args:
        source: Name of the globus-collection block where files are deleted.
        path: A file or directory below its base path.
        check: Name of the globus-collection block that holds a copy under the same path.
        min_age_days: Only files that were not changed for this long.
        dry_run: Delete nothing, only show the plan.
    """
    prune(source, path, check=check, min_age=timedelta(days=min_age_days), dry_run=dry_run)
