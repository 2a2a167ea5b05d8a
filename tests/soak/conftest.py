"""Fixtures of the tests that need a facility."""

from tests.testbed.fixtures import facility

__all__ = ["facility"]
