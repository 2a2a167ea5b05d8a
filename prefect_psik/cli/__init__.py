"""The command line: `prefect-psik`. Each module adds its commands to `app`."""

from prefect_psik.cli import backends, functions, jobs, run
from prefect_psik.cli.app import app, main

__all__ = ["app", "backends", "functions", "jobs", "main", "run"]
