"""What Prefect's `.map` hands to every task whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


class Single:
    """Mixed into a pydantic model: it is one thing, and still becomes a dict where Prefect makes one of it.

    pydantic's models iterate over their fields, so `run_job.map(block, specs)` would take the block for a list.
    """

    if not TYPE_CHECKING:  # for the type checker a subclass cannot take a method back
        __iter__ = None

    def keys(self) -> list[str]:
        """Names of the fields, for `dict(model)`."""
        extra: dict[str, Any] = getattr(self, "model_extra", None) or {}
        return [name for name in (*vars(self), *extra) if not name.startswith("_")]

    def __getitem__(self, name: str) -> Any:
        """The value of a field, for `dict(model)`."""
        return getattr(self, name)
