"""A smoke test against the real Globus and a real endpoint, started by a person; neither pytest nor CI runs it."""
