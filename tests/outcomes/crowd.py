"""The case of many flow processes that wait at the same time."""
