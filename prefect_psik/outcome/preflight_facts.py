"""The facility's answer to a preflight: frozen models, as `arrival` reads them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from prefect_psik.outcome.arrival import Answer, Count, Partial, Text, Time, Word
from prefect_psik.outcome.reservations import Held


class SiteFacts(Answer):
    """The site's own rules: what they refuse, and the file that holds them."""

    error: Text | None = None
    file: Text | None = None


class Owners(Answer):
    """Where others have replaced job directories, or could replace them, as sentences."""

    shared: list[Text]
    planted: list[Text]


class PrefixFacts(Partial):
    """The prefix: why it cannot be used, or what is free there and whether locks work."""

    promised: ClassVar[frozenset[str]] = frozenset({"path", "free_bytes", "free_inodes", "locks"})
    instead: ClassVar[tuple[str, ...]] = ("error",)

    error: Text | None = None
    path: Text = ""
    owners: Owners | None = None
    free_bytes: Count = 0
    free_inodes: Count | None = None
    locks: bool = False


class PythonFacts(Answer):
    """The Python that the block names for the compute nodes."""

    path: Text
    executable: bool


class Said(Answer):
    """What a Slurm command printed; `ok` is None if it was not run, `full` is the limit that is reached."""

    ok: bool | None
    text: Text
    full: Text | None = None


class SlurmFacts(Answer):
    """The scheduler's commands and what they print; where one fails, the later ones are not run."""

    commands: list[Word]
    version: Text | None = None
    controller: Said = Said(ok=None, text="it was not asked")
    accounting: Said = Said(ok=None, text="it was not asked")
    partition: dict[Word, Word] | None = None
    test: Said | None = None
    held: Held | None = None


class PreflightAnswer(Answer):
    """All that decides whether a job can be submitted."""

    letter: Text | None = None
    now: Time = 0.0
    host: Text
    user: Text
    python: Annotated[str, Field(pattern=r"^[0-9]{1,4}\.[0-9]{1,4}(\..{0,50})?$")]
    executable: Text
    versions: dict[Word, Word | None]
    site: SiteFacts
    prefix: PrefixFacts | None = None
    psik_python: PythonFacts | None = None
    slurm: SlurmFacts | None = None
