"""HOW a call gets to the facility: the `Transport` protocol and its implementations."""

from prefect_psik.transport.base import Transport

__all__ = ["Transport"]
