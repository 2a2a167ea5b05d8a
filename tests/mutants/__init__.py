"""Mutants: one change of the source at a time, to see whether the fast tests notice it."""
