"""What people type: strict models, plain words, and errors that say what would have been valid."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

#: Control characters, and halves of surrogate pairs, which are no text.
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

_CALLBACK_FIELDS = frozenset({"callback", "cb_headers", "cb_secret"})


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value} is no number")
    return value


Count = Annotated[int, BeforeValidator(_no_truth_value)]


class Typed(BaseModel):
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


def explain(err: ValidationError) -> str:
    """Turn pydantic's report into one line: where, what, and what was given."""
    found = []
    for error in err.errors(include_url=False):
        place = ".".join(str(part) for part in error["loc"])
        text = error["msg"].removeprefix("Value error, ")
        given = f" (given: {error['input']!r})" if error["type"] not in {"value_error", "missing"} else ""
        found.append(f"{place}: {text}{given}" if place else f"{text}{given}")
    return "; ".join(found)
