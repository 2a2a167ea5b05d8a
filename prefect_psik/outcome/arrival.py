"""Check each answer from the facility once, on arrival: the base class of all answers, and how one is read.

A malformed answer is an error for the job that it is about, and for no other. Unknown fields are ignored, since
the code there may be from another release. Text that is only shown is made plain; logs, and the names and
contents of output files, are kept as they were written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from prefect_psik.exceptions import (
    FacilityError,
    FacilitySetupError,
    KeyConflict,
    PrefectPsikError,
    RemoteCodeError,
    SpecError,
    SubmitRejected,
)
from prefect_psik.plain_text import plain

#: The last second that a date can be made of: the end of the year 9999.
LAST_SECOND = 253_402_300_799.0
#: More than any count of bytes or files; Python refuses to print numbers that are much longer.
_MOST = 10**24
#: Longest description of what is wrong with an answer, in characters.
_WORDS = 300


def _plain(value: object) -> object:
    return plain(value) if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_plain)]
"""Text that is shown; its acting characters are replaced."""
Word = Annotated[Text, Field(max_length=1000)]
Time = Annotated[float, Field(ge=0, le=LAST_SECOND)]
"""Unix time, seconds, by the facility's clock."""
Count = Annotated[int, Field(ge=0, le=_MOST)]
Run = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""psik's run number within a job."""


class Answer(BaseModel):
    """An answer, or part of one: no type is converted, and no number is infinite or none at all."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class Partial(Answer):
    """An answer that holds all of `promised`, unless one of `instead` says why it does not."""

    promised: ClassVar[frozenset[str]]
    instead: ClassVar[tuple[str, ...]] = ("later", "missing")

    @model_validator(mode="after")
    def _keeps_its_promise(self) -> Self:
        lacking = self.promised - self.model_fields_set
        if lacking and not any(getattr(self, name) for name in self.instead):
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
        return self


class Refusal(Answer):
    """Why an operation, or its part for one job, was not carried out."""

    kind: Text
    message: Text
    canonical: str = ""
    limit: Text = ""
    traceback: Text = ""


class NotOurs(FacilitySetupError):
    """Something at the facility belongs to somebody else and is not used; a wait ends with this error."""


class QueueFull(SubmitRejected):
    """The queue accepts no more jobs of this account for now; the submission waits for a free place.

    Args:
        message: What sbatch said.
        limit: The limit that is reached, as Slurm calls it.
    """

    def __init__(self, message: str, *, transient: bool = False, limit: str = "") -> None:
        super().__init__(message, transient=transient)
        self.limit = limit


A = TypeVar("A", bound=Answer)


def read(model: type[A], answer: object, *, what: str, place: str) -> A:
    """Check an answer.

    Args:
        model: The model that it should fit.
        answer: The decoded JSON.
        what: What it is about, for the error.
        place: Where it comes from, for the error.

    Raises:
        PrefectPsikError: It is a refusal; the class depends on its kind.
        RemoteCodeError: It does not fit the model.
    """
    if isinstance(answer, dict) and "error" in answer:
        raise error_from(_checked(Refusal, answer["error"], what, place), place)
    return _checked(model, answer, what, place)


def read_jobs(
    model: type[A], answers: dict[str, Any], stamps: Iterable[str], *, place: str
) -> dict[str, A | PrefectPsikError]:
    """Check the answers for several jobs separately; a job whose answer is malformed gets the error instead."""
    found: dict[str, A | PrefectPsikError] = {}
    for stamp in stamps:
        try:
            found[stamp] = read(model, answers.get(stamp), what=f"job {stamp}", place=place)
        except PrefectPsikError as err:
            found[stamp] = err
    return found


def _checked(model: type[A], answer: object, what: str, place: str) -> A:
    try:
        return model.model_validate(answer)
    except ValidationError as err:
        first = err.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        why = f"{where}: {first['msg'].removeprefix('Value error, ')}"[:_WORDS]
    raise RemoteCodeError(
        f"The answer from {place} about {what} cannot be used ({why}). Either prefect-psik's records there were "
        "changed, or the code there is from another release. Check the job's directory, and run a preflight."
    )


def error_from(refusal: Refusal, place: str) -> PrefectPsikError:
    """Convert a refusal to the error that a caller acts upon."""
    text = f"{refusal.message} (said by {place})"
    match refusal.kind:
        case "busy":
            return FacilityError(text, transient=True)
        case "setup":
            return FacilitySetupError(text)
        case "foreign":
            return NotOurs(text)
        case "spec":
            return SpecError(text)
        case "rejected":
            return SubmitRejected(text)
        case "full":
            return QueueFull(text, limit=refusal.limit)
        case "conflict":
            return KeyConflict(text, stored=refusal.canonical)
        case "payload":
            return RemoteCodeError(text, remote_traceback=refusal.traceback)
        case _:
            return FacilityError(text)
