"""Checks of what people type: strict models, plain words, and errors that say what would have been valid."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from prefect_psik.models.single import Single

#: Control characters, and halves of surrogate pairs, which are not text.
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
#: How many characters of a value an error shows.
_SHOWN = 200

_CALLBACK_FIELDS = frozenset({"callback", "cb_headers", "cb_secret"})


class Plain(str):
    """The text of an unquoted scalar in a YAML file; the field it is for decides what it means."""

    __slots__ = ()


def _digits(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
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
    """Base of models that people type: unknown fields are refused with a list of the known ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if callbacks := sorted(_CALLBACK_FIELDS.intersection(data)):
            raise ValueError(
                f"{', '.join(callbacks)}: psik's callbacks are not supported here, because psik stores "
                "cb_secret in plain text at the facility. Remove the field; waiting for a job works without it"
            )
        known = list(cls.model_fields)
        unknown = [str(field) for field in data if field not in known]
        if unknown and cls.model_config.get("extra") == "forbid":
            close = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ValueError(f"unknown field {', '.join(unknown)}{hint}. Known fields: {', '.join(known)}")
        return data


def plain_word(text: str, what: str) -> str:
    """Refuse text that would be awkward or dangerous in a path, a command line or a table.

    Raises:
        ValueError: It is empty, contains a slash or a control character, begins with a dash, or begins or
            ends with a blank.
    """
    if not text or text != text.strip() or "/" in text or text.startswith("-") or CONTROL.search(text):
        raise ValueError(
            f"{what} {text!r} must not be empty, contain slashes, newlines or other control characters, begin "
            "with a dash, or begin or end with a blank"
        )
    return text


def shown(value: Any) -> str:
    """A value shortened for an error message."""
    text = repr(str(value) if isinstance(value, Plain) else value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 20]}…{text[-19:]}"


def kind_of(value: Any) -> str:
    """Python's name for the type of a value from a YAML file."""
    return "str" if isinstance(value, str) else type(value).__name__


def explain(err: ValidationError, *, with_input: bool = True) -> str:
    """Turn pydantic's report into one line: which field, what is wrong, and the value given.

    Args:
        err: The report.
        with_input: Off where the value may be a secret.
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
