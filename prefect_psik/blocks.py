"""WHERE jobs run and data lies: the blocks that operators edit in Prefect's UI."""

from __future__ import annotations

import difflib
import logging
import posixpath
import re
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from prefect.blocks.core import Block
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import BackendClosed, SpecError
from prefect_psik.models.single import Single
from prefect_psik.spec.expected import plain_entry
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.launcher import normalize_script
from prefect_psik.spec.prepared import Prepared, prepare
from prefect_psik.spec.resources import ResourceSpec
from prefect_psik.spec.sbatch_options import Options
from prefect_psik.spec.strict import Seconds

if TYPE_CHECKING:
    from prefect_psik.spec.identity import Identity
    from prefect_psik.spec.retry import Asked
    from prefect_psik.transport.base import Transport


_logger = logging.getLogger(__name__)


def _tell_unknown(kind: type[BaseModel], data: Any, within: str = "") -> None:
    """Log the fields of a block that nothing reads; a block of a newer version must load, so none is refused."""
    known = [*kind.model_fields, "block_type_slug"]
    for name in data if isinstance(data, dict) else ():
        if name not in known and not str(name).startswith("_"):
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {within}{close[0]}?)" if close else ""
            _logger.warning(
                "A psik-backend block has the unknown field %r%s: it is ignored", f"{within}{name}", hint
            )


class BackendAttributes(Single, BaseModel):
    """How psik hands a job on at the facility, under psik's names."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["slurm", "local"] = Field(
        default="local", description="slurm: submit to Slurm. local: start a process there, without a scheduler."
    )
    queue_name: str | None = Field(default=None, title="Queue (Slurm partition)")
    project_name: str | None = Field(default=None, title="Project (Slurm account)")
    reservation_id: str | None = Field(default=None, title="Reservation")
    qos: str | None = Field(default=None, title="Quality of service (--qos)")
    constraint: str | None = Field(default=None, title="Node features (--constraint)")
    psik_python: str | None = Field(
        default=None, title="Python with psik on the compute nodes", description="Empty: the endpoint's own."
    )
    options: Options = Field(
        default_factory=dict,
        title="Further sbatch options",
        description='Spelled as sbatch does: {"--licenses": "cfs"}; a flag has the value true.',
    )

    @model_validator(mode="before")
    @classmethod
    def _tell_typos(cls, data: Any) -> Any:
        _tell_unknown(cls, data, "attributes.")
        return data

    def sbatch_options(self) -> dict[str, str]:
        """The options that psik itself does not pass on from its own fields."""
        named = {"--reservation": self.reservation_id, "--qos": self.qos, "--constraint": self.constraint}
        return {key: value for key, value in named.items() if value} | self.options


class DefaultResources(ResourceSpec):
    """Resources of jobs that do not ask for their own; stored, so lenient."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _tell_typos(cls, data: Any) -> Any:
        _tell_unknown(cls, data, "default_resources.")
        return data


class PsikBackend(Single, Block):
    """A named place where psik jobs run: a facility behind a Globus Compute endpoint, or this machine.

    Example:
        ```python
        from prefect_psik import BackendAttributes, PsikBackend

        backend = PsikBackend(
            endpoint_id="11111111-2222-3333-4444-555555555555",
            prefix="$SCRATCH/psik",
            attributes=BackendAttributes(type="slurm", queue_name="batch", project_name="stf006"),
        )
        backend.save("frontier", overwrite=True)
        ```
    """

    _block_type_name = "psik Backend"
    _block_type_slug = "psik-backend"
    _description = "Run batch jobs through psik and Globus Compute at a computing facility, or on this machine."

    endpoint_id: UUID | None = Field(
        default=None,
        title="Globus Compute endpoint",
        description="UUID of the endpoint at the facility. Empty: this machine, without Globus.",
    )
    prefix: str = Field(
        default="$HOME/psik",
        title="Prefix",
        description="Directory of psik's job directories; $VARS are expanded at the facility.",
        min_length=1,
    )
    attributes: BackendAttributes = Field(default_factory=BackendAttributes, title="Batch system")
    credentials: GlobusCredentials | None = Field(
        default=None, title="Globus login", description="Empty: the worker's own login."
    )
    default_resources: DefaultResources | None = Field(
        default=None, title="Default resources", description="For what a job does not ask for itself."
    )
    user_endpoint_config: dict[str, Any] | None = Field(
        default=None, title="User endpoint configuration", description="Passed on to the endpoint's template."
    )
    function_id: UUID | None = Field(
        default=None,
        title="Registered function",
        description="From `prefect-psik functions register`; needed where the endpoint allows only some.",
    )
    umask: str = Field(
        default="0027", pattern=r"^0?[0-7]{3}$", title="umask of jobs", description="0027: the group may read."
    )
    poll_interval_seconds: Seconds = Field(
        default=10.0, gt=0, title="Longest pause between looks, seconds", description="Looks begin more often."
    )
    accept_jobs: bool = Field(default=True, title="Accept jobs", description="Off: drain this backend.")
    note: str = Field(default="", title="Note", description="Shown when jobs are not accepted: why, until when.")

    @field_validator("default_resources", mode="before")
    @classmethod
    def _take_any_resources(cls, value: Any) -> Any:
        return value.model_dump(exclude_unset=True) if isinstance(value, ResourceSpec) else value

    @model_validator(mode="before")
    @classmethod
    def _tell_typos(cls, data: Any) -> Any:
        _tell_unknown(cls, data)
        return data

    def block_initialization(self) -> None:
        """Log what contradicts itself in the block; Prefect calls this when it is made or loaded."""
        if self.contradiction is not None:
            _logger.warning("A psik-backend block contradicts itself: %s", self.contradiction)

    @property
    def contradiction(self) -> str | None:
        """What asks for a batch system where `type: local` uses none, as a sentence; None if nothing does."""
        if self.attributes.type != "local":
            return None
        nested = ("queue_name", "project_name", "reservation_id", "qos", "constraint", "options")
        ignored = [f"attributes.{name}" for name in nested if getattr(self.attributes, name)]
        if not ignored and self.endpoint_id is None:
            return None
        where = "on the login node of the endpoint" if self.endpoint_id else "on this machine"
        what = f", and {', '.join(ignored)} would be ignored" if ignored else ""
        return (
            f"attributes.type is local, so jobs run as plain processes {where}, without a scheduler{what}. Set "
            "attributes.type to slurm if they are batch jobs."
        )

    @property
    def document_name(self) -> str | None:
        """The name that the block was saved or loaded under, if any."""
        return getattr(self, "_block_document_name", None)

    @property
    def endpoint(self) -> str:
        """The endpoint's UUID as text, or `local`."""
        return str(self.endpoint_id or "local")

    def get_transport(self) -> Transport:
        """Make the transport to this backend; opens no connection."""
        if self.endpoint_id is None:
            from prefect_psik.transport.local import LocalTransport

            return LocalTransport()
        from prefect_psik.transport.globus.transport import GlobusTransport

        return GlobusTransport(
            self.endpoint_id,
            credentials=self.credentials,
            function_id=self.function_id,
            user_endpoint_config=self.user_endpoint_config,
        )

    def check_open(self) -> None:
        """Refuse when the backend is drained.

        Raises:
            BackendClosed: `accept_jobs` is off; says the block's note.
        """
        if not self.accept_jobs:
            name = f"The backend {self.document_name}" if self.document_name else "This backend"
            why = f": {self.note}" if self.note else " (its note is empty)"
            raise BackendClosed(
                f"{name} does not accept jobs now{why}. Wait until it is opened again, or use another backend."
            )

    def prepare(self, spec: JobSpec) -> Prepared:
        """Put a spec together with the directives of its script and with what this backend sets.

        Raises:
            SpecError: A directive of the script cannot be honoured.
        """
        return prepare(
            spec,
            scheduler=self.attributes.type,
            options=self.attributes.sbatch_options(),
            resources=self.default_resources or ResourceSpec(),
        )

    def submission(
        self,
        spec: JobSpec,
        identity: Identity,
        owner: dict[str, Any],
        *,
        asked: Asked | None = None,
    ) -> dict[str, Any]:
        """Put together what `remote.submit` needs for one job.

        Args:
            spec: As the user gave it; it is what the key stands for.
            identity: Key, stamp and attempt.
            owner: Who submits, for the facility's records.
            asked: What a further run asks for, in place of the spec's duration and memory.

        Raises:
            SpecError: A directive of the script cannot be honoured.
        """
        prepared = self.prepare(spec)
        merged = prepared.spec
        if asked is not None:
            wanted = {key: value for key, value in vars(asked).items() if value is not None}
            merged = merged.model_copy(update={"resources": merged.resources.model_copy(update=wanted)})
        resources = merged.resources.complete()
        attributes = self.attributes
        psiks = merged.to_psik(scheduler=attributes.type, options=prepared.options, umask=self.umask)
        return {
            "stamp": identity.stamp,
            "key": identity.key,
            "attempt": identity.attempt,
            "digest": spec.digest(),
            "canonical": spec.canonical(),
            "backend": {
                "type": attributes.type,
                "queue_name": attributes.queue_name,
                "project_name": attributes.project_name,
                "attributes": {"psik_python": attributes.psik_python} if attributes.psik_python else {},
            },
            "spec": psiks,
            "warning": prepared.warning and prepared.warning._asdict(),
            "asked": {"duration": resources["duration"], "memory": resources.get("memory")},
            "changed": asked is not None,
            "script": normalize_script(spec.script)[1],
            "files": {path: content.model_dump(exclude_none=True) for path, content in spec.files.items()},
            "outputs": [plain_entry(entry) for entry in spec.outputs],
            "expect": [plain_entry(entry) for entry in spec.expect],
            "owner": owner,
        }


class GlobusCollection(Single, Block):
    """A place of data: a Globus Transfer collection, or a directory of this machine.

    Example:
        ```python
        from prefect_psik import GlobusCollection

        scratch = GlobusCollection(base_path="/als/832", posix_root="/pscratch/sd/a")
        assert scratch.posix("raw/scan.h5") == "/pscratch/sd/a/als/832/raw/scan.h5"
        ```
    """

    _block_type_name = "Globus Collection"
    _block_type_slug = "globus-collection"
    _description = "Where data lies: a Globus Transfer collection, or a directory of this machine."

    collection_id: UUID | None = Field(
        default=None, title="Collection", description="UUID of the collection. Empty: a directory of this machine."
    )
    base_path: str = Field(
        default="/",
        title="Base path",
        description="Directory of the collection to work in; on this machine an absolute path.",
    )
    posix_root: str = Field(
        default="/",
        title="POSIX root",
        description="What the collection's root is called in the file system of jobs.",
    )
    credentials: GlobusCredentials | None = Field(
        default=None, title="Globus login", description="Empty: the worker's own login."
    )

    @property
    def document_name(self) -> str | None:
        """The name that the block was saved or loaded under, if any."""
        return getattr(self, "_block_document_name", None)

    def path(self, path: str) -> str:
        """The collection's path of a path below `base_path`.

        Raises:
            SpecError: The path would leave `base_path`, or the `base_path` of this machine is not absolute.
        """
        if path.startswith("/") or ".." in path.split("/") or re.search(r"[\x00-\x1f]", path):
            raise SpecError(
                f"{path!r} must be a relative path below {self.base_path!r}, without '..' or control characters."
            )
        if self.collection_id is None:
            if not self.base_path.startswith("/"):
                name = f"The collection {self.document_name}" if self.document_name else "A collection"
                raise SpecError(
                    f"{name} of this machine has the base_path {self.base_path!r}, which means another directory "
                    "in each process. Write an absolute path, without '~' and variables."
                )
            return posixpath.join(self.base_path, path)
        # As Transfer itself writes paths: what it names must be found among what was submitted.
        return posixpath.join(posixpath.normpath("/" + self.base_path.lstrip("/")), path)

    def posix(self, path: str) -> str:
        """The path that a job sees for a path below `base_path`.

        Raises:
            SpecError: The path would leave `base_path`.
        """
        return posixpath.normpath(posixpath.join(self.posix_root, self.path(path).lstrip("/")))
