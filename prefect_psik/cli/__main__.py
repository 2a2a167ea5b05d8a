"""`python -m prefect_psik.cli`."""

from prefect_psik.cli import main

main()
