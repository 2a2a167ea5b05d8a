"""TASKS on data: move, list, delete and prune it, with Globus or on this machine."""
