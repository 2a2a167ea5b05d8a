"""What the facility answers about jobs: a frozen model for each operation of `remote`, as `arrival` reads them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, PlainValidator, model_validator

from prefect_psik.models.jobs import JobState
from prefect_psik.outcome.arrival import Answer, Count, Partial, Refusal, Run, Text, Time
from prefect_psik.outcome.reservations import Held
from prefect_psik.plain_text import plain

Stream = Literal["stdout", "stderr", "console"]


class SlurmRow(NamedTuple):
    """One job as squeue or sacct lists it; times are Unix times as text, or `Unknown`."""

    state: str
    start: str
    end: str
    exit_code: str
    nodes: str
    reason: str


def _slurm_row(value: object) -> SlurmRow:
    fields = value if isinstance(value, list) and all(isinstance(field, str) for field in value) else []
    if len(fields) != len(SlurmRow._fields) or not fields[0].strip():
        raise ValueError(f"it should be {len(SlurmRow._fields)} strings, the first one a Slurm state")
    return SlurmRow(*map(plain, fields))


Row = Annotated[SlurmRow, PlainValidator(_slurm_row)]


class Log(Answer):
    """Text of a log from where the last answer ended, and its size; positions are bytes."""

    text: str
    next: Count
    size: Count


class Wrong(Answer):
    """A file that does not count as a result of this run, or does not come back, and why."""

    name: str
    why: Text
    target: str = ""
    kind: Text = ""
    text: Text = ""
    size: Count = 0
    min_bytes: Count = 0
    most: Count = 0
    written: Time = 0.0
    begun: Time = 0.0


class Report(Answer):
    """What was found for one entry of `expect` or `outputs`."""

    path: Text
    expanded: Text
    count: Count | None
    at_least: Count
    matches: Count
    good: Count
    wrong: list[Wrong]
    unread: Count
    trouble: Text | None


class Warned(Answer):
    """The signal that a script gets before its time limit, and how many seconds before."""

    name: Text
    seconds: Count


class Facts(Partial):
    """One job, as `status` and `cancel` report it.

    `same`: nothing has changed since the last answer. `later`: it did not fit into this answer. `missing`: its
    directory has been deleted. `alive` is absent where psik's record of the end is final, so that there was no
    need to check whether the job still runs.
    """

    promised: ClassVar[frozenset[str]] = frozenset({"status", "type"})
    instead: ClassVar[tuple[str, ...]] = ("same", "later", "missing")

    same: bool = False
    later: bool = False
    missing: bool = False
    jobndx: Run | None = None
    native_id: Text | None = None
    type: Literal["slurm", "local"] | None = None
    status: Text = ""
    intent: Time | None = None
    cancel_asked: Time | None = None
    refused: Count = 0
    nodes: Text | None = None
    alive: bool | None = None
    squeue: Row | None = None
    squeue_time: Time = 0.0
    squeue_error: Text | None = None
    held: Held | None = None
    sacct: Row | None = None
    sacct_error: Text | None = None
    accounting: Literal["none", "unasked", "silent", "answers"] | None = None
    vanished: Time | None = None
    signals: list[Text] = Field(default_factory=list)
    warning: Warned | None = None
    tails: dict[str, str] = Field(default_factory=dict)
    outputs: list[str] = Field(default_factory=list)
    to_check: bool = False
    found: list[Report] | None = None
    sizes: dict[Stream, Count] = Field(default_factory=dict)
    logs: dict[Stream, Log] = Field(default_factory=dict)
    token: str | None = None
    now: Time = 0.0

    @property
    def asks_who_lives(self) -> bool:
        """Whether its processes, or Slurm, were checked."""
        return "alive" in self.model_fields_set

    @property
    def console(self) -> str:
        """The end of the scheduler's and psik's own log, to be read and shown."""
        return plain(self.tails.get("console", ""))


# --------------------------------------------------------------------------------------------- submit


class Asked(Answer):
    """What a run asked for: minutes, and memory per node as --mem."""

    duration: Count | None = None
    memory: Text | None = None


class Refused(Answer):
    """Facts that could not be gathered."""

    error: Refusal


class SubmitAnswer(Answer):
    """A job that was created, or one that already existed, with its facts."""

    created: bool
    prefix: str
    jobndx: Run
    native_id: Text | None
    attempt: list[Count]
    asked: Asked
    warnings: list[Text] = Field(default_factory=list)
    facts: Facts | Refused | None = None

    @model_validator(mode="after")
    def _tells_what_it_found(self) -> Self:
        if not self.created and self.facts is None:
            raise ValueError("it lacks facts")
        return self


# ------------------------------------------------------------------------------------- check, fetch, usage


class CheckAnswer(Partial):
    """The reports on a job's results."""

    promised: ClassVar[frozenset[str]] = frozenset({"found"})

    later: bool = False
    missing: bool = False
    found: list[Report] = Field(default_factory=list)


class FetchAnswer(Partial):
    """Output files of a job by name: which entry brings each, its size and its contents in base64.

    `good` counts the files of each entry, whether they come or not; `left` describes some that do not come, and
    `more` counts the others.
    """

    promised: ClassVar[frozenset[str]] = frozenset(
        {"entries", "sizes", "files", "good", "left", "more", "trouble"}
    )

    later: bool = False
    missing: bool = False
    entries: dict[str, str] = Field(default_factory=dict)
    sizes: dict[str, Count] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    good: dict[str, Count] = Field(default_factory=dict)
    left: list[Wrong] = Field(default_factory=list)
    more: Count = 0
    trouble: Text | None = None


class UsageAnswer(Answer):
    """Lines of accounting; where they are not complete, the seconds after which to ask again."""

    usage: list[list[Text]] | None
    wait: Annotated[float, Field(ge=0, le=3600)] | None


# -------------------------------------------------------------------------------------- list, remove, hello


class Owner(Answer):
    """Who submitted a job."""

    flow_run: Text | None = None
    root_flow_run: Text | None = None


def _job_state(value: object) -> JobState:
    state = next((state for state in JobState if state == value), None)
    if state is None:
        raise ValueError("it is not a psik state")
    return state


class Entry(Answer):
    """A job according to its own records."""

    prefix: str
    key: str
    type: Literal["slurm", "local"]
    jobndx: Run
    native_id: Text | None
    state: Annotated[JobState, PlainValidator(_job_state)]
    name: Text | None = None
    owner: Owner | None = None
    flow_runs: list[Text] = Field(default_factory=list)
    created: Time | None = None
    asked: Asked = Asked()


class ListAnswer(Answer):
    """Jobs by stamp, each checked separately as an `Entry`, and whether there are more."""

    jobs: dict[str, Any]
    more: bool


class RemoveAnswer(Answer):
    """Whether the directory of a job was removed, or why it was kept."""

    removed: bool = False
    kept: Text | None = None

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        if self.removed == (self.kept is not None):
            raise ValueError("it must say either removed or kept")
        return self


class HelloAnswer(Answer):
    """The facility's clock."""

    now: Time


class JobsAnswer(Answer):
    """The answers for several jobs by stamp, each checked separately."""

    jobs: dict[str, Any]
