"""Faults injected at random into running flows, and what became of their jobs compared with the truth."""
