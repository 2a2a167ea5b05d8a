"""Delete data that is proven to have a second copy; deploy this flow once, and `schedule_prune` finds it."""

from datetime import timedelta

from prefect import flow

from prefect_psik import prune


@flow(name="prune", flow_run_name="prune {source}:{path}")
def prune_data(source: str, path: str, check: str, min_age_days: float = 0.0, dry_run: bool = False) -> None:
    """Delete those files below a path of which a check collection is proven to hold a copy.

    Args:
        source: Name of the globus-collection block where files are deleted.
        path: A file or directory below its base path.
        check: Name of the globus-collection block that holds a copy under the same path.
        min_age_days: Delete only files that have not changed for this many days.
        dry_run: Only show the plan; delete nothing.
    """
    prune(source, path, check=check, min_age=timedelta(days=min_age_days), dry_run=dry_run)
