"""A facility on this machine: real Slurm, a real Globus Compute endpoint, an emulator of Globus."""
