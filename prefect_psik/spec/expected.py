"""The files that a job must write: entries of `expect` and `outputs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from prefect_psik.spec.input_files import check_inside, check_length
from prefect_psik.spec.strict import CONTROL, Count, Typed, explain, shown

#: How many entries one list may have.
MAX_ENTRIES = 1000


class Expected(Typed):
    """Files that must exist when a job's script has succeeded.

    A match counts if it is a regular file of at least `min_bytes` (links are followed) or a directory with a file
    in it, and was written since the run began.
    """

    path: str = Field(
        description="Path or glob. A path that exists exactly as written is not read as a glob. Write [*], [?] or "
        "[[] for the character itself."
    )
    count: Count | None = Field(
        default=None, ge=1, description="Exactly this many must match, and all of them must count."
    )
    at_least: Count = Field(default=1, ge=1, description="At least this many matches must count.")
    min_bytes: Count = Field(
        default=1, ge=0, description="Minimum size of a file in bytes; 0 for marker files such as `done`."
    )
    fresh: Literal["run", "job", "any"] = Field(
        default="run",
        description="When files must have been written: since this run of the job began, since the job's first "
        "run began, or at any time.",
    )

    @model_validator(mode="after")
    def _one_number(self) -> Expected:
        if self.count is not None and self.at_least != 1:
            raise ValueError("give count or at_least, not both")
        return self

    def plain(self) -> str | dict[str, Any]:
        """The entry as it is stored and sent: just the path, if no other field is set."""
        fields = self.model_dump(exclude_defaults=True)
        return self.path if set(fields) == {"path"} else fields


def _entry(value: Any) -> Any:
    """Accept a path, a mapping with `path`, or an entry; an entry with no other field becomes its path."""
    if not isinstance(value, str | Mapping | Expected):
        raise ValueError(
            f"{shown(value)} is neither a path nor a mapping with path, count, at_least, min_bytes, fresh"
        )
    if isinstance(value, Expected):
        found = value
    else:
        try:
            found = Expected.model_validate({"path": value} if isinstance(value, str) else value)
        except ValidationError as err:
            raise ValueError(explain(err)) from None
    return found.path if isinstance(found.plain(), str) else found


def plain_entry(entry: str | Expected) -> str | dict[str, Any]:
    """An entry as the facility reads it."""
    return entry if isinstance(entry, str) else entry.plain()


def _path_of(entry: str | Expected) -> str:
    return entry if isinstance(entry, str) else entry.path


def _expectable(entry: str | Expected) -> str | Expected:
    path = _path_of(entry)
    if not path.strip("/") or path.rstrip("/").rsplit("/", 1)[-1] in (".", "..") or CONTROL.search(path):
        raise ValueError(
            f"{path!r} is not a path or glob: it must end in a file name and contain no control characters"
        )
    check_length(path)
    return entry


def _returnable(entry: str | Expected) -> str | Expected:
    check_inside(_path_of(entry))
    return entry


def listed(value: Any) -> Any:
    """Read a list of entries; mappings from paths to counts or fields may replace the list or be part of it."""
    if isinstance(value, str | Mapping | Expected):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    found: list[Any] = []
    for entry in value:
        found += (
            _by_path(entry) if isinstance(entry, Mapping) and not isinstance(entry.get("path"), str) else [entry]
        )
    if len(found) > MAX_ENTRIES:
        raise ValueError(f"{len(found):,} entries are over the limit of {MAX_ENTRIES:,}: use globs")
    return found


def _by_path(entries: Mapping[Any, Any]) -> list[Any]:
    if not entries or Expected.model_fields.keys() & entries.keys():
        raise ValueError(
            f"{dict(entries)!r} has no path: write {{path: …, count: …}}, or the path itself with its count"
        )
    found: list[Any] = []
    for path, asked in entries.items():
        fields = asked if isinstance(asked, Mapping) else {} if asked is None else {"count": asked}
        if not isinstance(path, str) or "path" in fields:
            raise ValueError(
                f"{shown(path)}: {shown(asked)} is neither a path with a count nor a path with a mapping of fields"
            )
        found.append({"path": path, **fields})
    return found


Result = Annotated[str | Expected, BeforeValidator(_entry), AfterValidator(_expectable)]
Output = Annotated[str | Expected, BeforeValidator(_entry), AfterValidator(_returnable)]
