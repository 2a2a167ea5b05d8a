"""Every way a batch job can end, provoked on a real Slurm: `python -m tests.outcomes`."""
