"""Runnable example pipelines; the tests run them, too."""
