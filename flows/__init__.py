"""Runnable pipelines: the examples that the tests run."""
