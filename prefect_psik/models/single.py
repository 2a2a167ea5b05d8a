"""Models that Prefect's `.map` passes to every task as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


class Single:
    """Makes a pydantic model a single value for `.map`, while `dict(model)`, which Prefect uses, still works.

    pydantic models iterate over their fields, so `run_job.map(block, specs)` would treat the block as a list.
    """

    if not TYPE_CHECKING:  # type checkers do not let a subclass remove a method
        __iter__ = None

    def keys(self) -> list[str]:
        """Names of the fields, for `dict(model)`."""
        extra: dict[str, Any] = getattr(self, "model_extra", None) or {}
        return [name for name in (*vars(self), *extra) if not name.startswith("_")]

    def __getitem__(self, name: str) -> Any:
        """The value of a field, for `dict(model)`."""
        return getattr(self, name)
