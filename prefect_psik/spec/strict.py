"""What people type: strict models, plain words, and errors that say what would have been valid."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from prefect_psik.models.single import Single

#: Control characters, and halves of surrogate pairs, which are no text.
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
#: Characters of a value that an error shows.
_SHOWN = 200

_CALLBACK_FIELDS = frozenset({"callback", "cb_headers", "cb_secret"})


class Plain(str):
    """The text of an unquoted scalar of a YAML file: the field that it is for decides what it means."""

    __slots__ = ()


def _digits(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value} is no number")
    if isinstance(value, str) and not re.fullmatch("-?[0-9]+", value):
        raise ValueError(f"write a number in plain digits (given: {shown(value)})")
    return value


def _minutes(value: Any) -> Any:
    """Read a time as Slurm does: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S; seconds are rounded up to minutes."""
    if not isinstance(value, str):
        return _digits(value)
    found = re.fullmatch("(?:([0-9]+)-)?([0-9]+)(?::([0-9]+))?(?::([0-9]+))?", value)
    if found is None or len(value) > 20:
        raise ValueError(
            "write minutes in plain digits, or a time as Slurm does: 90, 1:30:00, 1-00:00:00 "
            f"(given: {shown(value)})"
        )
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)  # without days and hours, minutes come first
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    total = (int(days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds
    return -(-total // 60)


def _decimal(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        raise ValueError(f"write a number in plain digits (given: {shown(value)})")
    return value


Seconds = Annotated[float, BeforeValidator(_decimal)]
Count = Annotated[int, BeforeValidator(_digits)]
Minutes = Annotated[int, BeforeValidator(_minutes)]


class Typed(Single, BaseModel):
    """What people type: unknown fields are refused, with the list of known ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if callbacks := sorted(_CALLBACK_FIELDS.intersection(data)):
            raise ValueError(
                f"{', '.join(callbacks)}: psik's callbacks are not supported here, because psik stores "
                "cb_secret in clear at the facility. Remove the field; waiting for the job needs none"
            )
        known = list(cls.model_fields)
        unknown = [str(field) for field in data if field not in known]
        if unknown and cls.model_config.get("extra") == "forbid":
            close = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ValueError(f"unknown field {', '.join(unknown)}{hint}. Known fields: {', '.join(known)}")
        return data


def plain_word(text: str, what: str) -> str:
    """Refuse what would be awkward or dangerous in a path, a command line or a table.

    Raises:
        ValueError: It is empty, has a slash, a leading dash or a control character, or blanks around it.
    """
    if not text or text != text.strip() or "/" in text or text.startswith("-") or CONTROL.search(text):
        raise ValueError(
            f"{what} {text!r} must not be empty, nor contain slashes, newlines or other control characters, nor "
            "begin with a dash or end with a blank"
        )
    return text


def shown(value: Any) -> str:
    """A value as an error shows it: short."""
    text = repr(str(value) if isinstance(value, Plain) else value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 20]}…{text[-19:]}"


def kind_of(value: Any) -> str:
    """The type of a value of a YAML file, as Python calls it."""
    return "str" if isinstance(value, str) else type(value).__name__


def explain(err: ValidationError, *, with_input: bool = True) -> str:
    """Turn pydantic's report into one line: where, what, and what was given.

    Args:
        err: The report.
        with_input: Off where what was given may be a secret.
    """
    found = []
    for error in err.errors(include_url=False):
        place = ".".join(str(part) for part in error["loc"])
        text = error["msg"].removeprefix("Value error, ")
        given = (
            f" (given: {shown(error['input'])})"
            if with_input and error["type"] not in {"value_error", "missing"}
            else ""
        )
        found.append(f"{place}: {text}{given}" if place else f"{text}{given}")
    return "; ".join(found)
