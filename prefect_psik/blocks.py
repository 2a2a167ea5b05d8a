"""Where jobs run and where data is: the blocks that operators edit in Prefect's UI."""

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
    """Warn of unknown fields in a block; they are not refused, since blocks of a newer version must load."""
    known = [*kind.model_fields, "block_type_slug"]
    for name in data if isinstance(data, dict) else ():
        if name not in known and not str(name).startswith("_"):
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {within}{close[0]}?)" if close else ""
            _logger.warning(
                "A psik-backend block has the unknown field %r%s: it is ignored", f"{within}{name}", hint
            )


class BackendAttributes(Single, BaseModel):
    """The batch system at the facility, in psik's own terms."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["slurm", "local"] = Field(
        default="local",
        description="slurm: submit jobs to Slurm. local: run each job as a plain process, without a scheduler.",
    )
    queue_name: str | None = Field(default=None, title="Queue (Slurm partition)")
    project_name: str | None = Field(default=None, title="Project (Slurm account)")
    reservation_id: str | None = Field(default=None, title="Reservation")
    qos: str | None = Field(default=None, title="Quality of service (--qos)")
    constraint: str | None = Field(default=None, title="Node features (--constraint)")
    psik_python: str | None = Field(
        default=None,
        title="Python on the compute nodes",
        description="Must have psik. Empty: the endpoint's own Python.",
    )
    options: Options = Field(
        default_factory=dict,
        title="Extra sbatch options",
        description='Written as for sbatch: {"--licenses": "cfs"}. The value of a flag is true.',
    )

    @model_validator(mode="before")
    @classmethod
    def _tell_typos(cls, data: Any) -> Any:
        _tell_unknown(cls, data, "attributes.")
        return data

    def sbatch_options(self) -> dict[str, str]:
        """The sbatch options that psik does not set from its own fields."""
        named = {"--reservation": self.reservation_id, "--qos": self.qos, "--constraint": self.constraint}
        return {key: value for key, value in named.items() if value} | self.options


class DefaultResources(ResourceSpec):
    """Resources for anything a job does not set; stored, so unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _tell_typos(cls, data: Any) -> Any:
        _tell_unknown(cls, data, "default_resources.")
        return data


class PsikBackend(Single, Block):
    """Where psik jobs run: a facility behind a Globus Compute endpoint, or this machine.

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
        description="UUID of the endpoint at the facility. Empty: jobs run on this machine, without Globus.",
    )
    prefix: str = Field(
        default="$HOME/psik",
        title="Prefix",
        description="Directory that holds psik's job directories. $VARS are expanded at the facility.",
        min_length=1,
    )
    attributes: BackendAttributes = Field(default_factory=BackendAttributes, title="Batch system")
    credentials: GlobusCredentials | None = Field(
        default=None, title="Globus login", description="Empty: the worker's own login."
    )
    default_resources: DefaultResources | None = Field(
        default=None, title="Default resources", description="Used for anything the job does not set."
    )
    user_endpoint_config: dict[str, Any] | None = Field(
        default=None,
        title="User endpoint configuration",
        description="Values for the endpoint's configuration template.",
    )
    function_id: UUID | None = Field(
        default=None,
        title="Registered function",
        description="UUID printed by `prefect-psik functions register`. Needed if the endpoint allows only "
        "certain functions.",
    )
    umask: str = Field(
        default="0027",
        pattern=r"^0?[0-7]{3}$",
        title="umask of jobs",
        description="Octal. 0027: the group can read files that jobs write, others cannot.",
    )
    poll_interval_seconds: Seconds = Field(
        default=10.0,
        gt=0,
        title="Longest polling interval (seconds)",
        description="Polling starts faster and slows down to this.",
    )
    accept_jobs: bool = Field(
        default=True,
        title="Accept jobs",
        description="Off: new jobs are refused; jobs already submitted are not touched.",
    )
    note: str = Field(
        default="",
        title="Note",
        description="Shown when a job is refused because Accept jobs is off: say why, and until when.",
    )

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
        """Log settings that contradict each other; Prefect calls this when a block is created or loaded."""
        if self.contradiction is not None:
            _logger.warning("Settings of a psik-backend block contradict each other: %s", self.contradiction)

    @property
    def contradiction(self) -> str | None:
        """Says which settings need a batch system although `type` is `local`; None if there are none."""
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
            BackendClosed: `accept_jobs` is off; the message quotes the block's note.
        """
        if not self.accept_jobs:
            name = f"The backend {self.document_name}" if self.document_name else "This backend"
            why = f": {self.note}" if self.note else " (its note is empty)"
            raise BackendClosed(
                f"{name} does not accept jobs at the moment{why}. Wait until it does, or use another backend."
            )

    def prepare(self, spec: JobSpec) -> Prepared:
        """Combine a spec with its script's directives and with this backend's settings.

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
        """Build the request that `remote.submit` needs for one job.

        Args:
            spec: As the user gave it; the key belongs to this version.
            identity: Key, stamp and attempt.
            owner: Who submits the job, for the facility's records.
            asked: Duration and memory of another run, in place of the spec's.

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
    """Where data is: a Globus Transfer collection, or a directory on this machine.

    Example:
        ```python
        from prefect_psik import GlobusCollection

        scratch = GlobusCollection(base_path="/als/832", posix_root="/pscratch/sd/a")
        assert scratch.posix("raw/scan.h5") == "/pscratch/sd/a/als/832/raw/scan.h5"
        ```
    """

    _block_type_name = "Globus Collection"
    _block_type_slug = "globus-collection"
    _description = "Where data is: a Globus Transfer collection, or a directory on this machine."

    collection_id: UUID | None = Field(
        default=None, title="Collection", description="UUID of the collection. Empty: a directory on this machine."
    )
    base_path: str = Field(
        default="/",
        title="Base path",
        description="Directory of the collection that all paths start from. On this machine: an absolute path.",
    )
    posix_root: str = Field(
        default="/",
        title="POSIX root",
        description="Path of the collection's root as jobs see it in their file system.",
    )
    credentials: GlobusCredentials | None = Field(
        default=None, title="Globus login", description="Empty: the worker's own login."
    )

    @property
    def document_name(self) -> str | None:
        """The name that the block was saved or loaded under, if any."""
        return getattr(self, "_block_document_name", None)

    def path(self, path: str) -> str:
        """Turn a path below `base_path` into a path of the collection.

        Raises:
            SpecError: The path would leave `base_path`, or `base_path` is on this machine and not absolute.
        """
        if path.startswith("/") or ".." in path.split("/") or re.search(r"[\x00-\x1f]", path):
            raise SpecError(
                f"{path!r} must be a relative path below {self.base_path!r}, without '..' or control characters."
            )
        if self.collection_id is None:
            if not self.base_path.startswith("/"):
                name = f"The collection {self.document_name}" if self.document_name else "A collection"
                raise SpecError(
                    f"{name} on this machine has the base_path {self.base_path!r}, which can mean a different "
                    "directory in each process. Write an absolute path, without '~' or variables."
                )
            return posixpath.join(self.base_path, path)
        # Written as Transfer writes paths, so that the paths it reports match those that were submitted.
        return posixpath.join(posixpath.normpath("/" + self.base_path.lstrip("/")), path)

    def posix(self, path: str) -> str:
        """Turn a path below `base_path` into the path that a job sees.

        Raises:
            SpecError: The path would leave `base_path`.
        """
        return posixpath.normpath(posixpath.join(self.posix_root, self.path(path).lstrip("/")))
