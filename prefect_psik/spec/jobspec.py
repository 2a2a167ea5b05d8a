"""The job spec that a person types, and its conversion to psik's own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from prefect_psik.exceptions import SpecError
from prefect_psik.spec.directives import job_name
from prefect_psik.spec.expected import Expected, Output, Result, listed
from prefect_psik.spec.input_files import (
    MAX_FILES_BYTES,
    FileContent,
    InputFile,
    InsidePath,
    check_directory,
    listed_files,
)
from prefect_psik.spec.launcher import launcher_script, normalize_script
from prefect_psik.spec.resources import ResourceSpec
from prefect_psik.spec.sbatch import long_name
from prefect_psik.spec.sbatch_options import Options
from prefect_psik.spec.spelling import read_yaml
from prefect_psik.spec.strict import Count, Typed, explain, kind_of, plain_word
from prefect_psik.spec.time_warning import MAX_SECONDS, WARNING_SIGNAL

MAX_SCRIPT_BYTES = 1_000_000
#: All of the script's arguments together; well below the limit of Linux.
MAX_ARGUMENTS_BYTES = 100_000
#: Minutes added to the user's duration for psik's timer: it starts later than Slurm's, and must not fire first.
PSIK_TIMER_EXTRA_MINUTES = 10
#: Set by psik for every job, and relied upon by the launcher.
RESERVED_VARIABLES = frozenset({"base", "jobndx", "jobid"})

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
CANONICAL_VERSION = 1


def _text_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value} is ambiguous as text: put it in quotes")
    if value is None:
        raise ValueError(
            "it has no value: write '' for empty text, and put null or ~ in quotes if it is meant as text"
        )
    return str(value) if isinstance(value, int | float) else value


TextValue = Annotated[str, BeforeValidator(_text_value)]


class JobSpec(Typed):
    """One batch job: psik's fields under psik's names, plus `files`, `outputs` and `expect`.

    Example:
        ```python
        from prefect_psik import JobSpec, ResourceSpec

        spec = JobSpec(
            name="count",
            script="wc -l < input.txt > lines.txt",
            files={"input.txt": "one line"},
            outputs=["lines.txt"],
            resources=ResourceSpec(duration=5),
        )
        ```
    """

    name: str | None = Field(default=None, max_length=100, description="Job name, as the scheduler shows it.")
    script: str = Field(description="Text of the script; its first line may name the interpreter (#!).")
    directory: str | None = Field(
        default=None,
        description="Absolute path of the directory to run in; $VARS are expanded at the facility. None: a new "
        "directory.",
    )
    arguments: list[TextValue] = Field(default_factory=list, description="Arguments of the script: $1, $2, …")
    environment: dict[str, TextValue] = Field(
        default_factory=dict, description="Environment variables of the script."
    )
    inherit_environment: bool = Field(
        default=True, description="Off: the script sees only `environment` and psik's own variables."
    )
    resources: ResourceSpec = Field(default_factory=ResourceSpec)
    attributes: Options = Field(
        default_factory=dict, description='Extra sbatch options, written as for sbatch: {"--qos": "debug"}.'
    )
    files: dict[InsidePath, InputFile] = Field(
        default_factory=dict,
        description="Small input files by path in the job's directory: text, bytes or a local Path.",
    )
    outputs: list[Output] = Field(
        default_factory=list,
        description="Small result files to bring back: paths or globs in the job's directory, or `Expected`.",
    )
    expect: list[Result] = Field(
        default_factory=list,
        description="Files that must exist at the end: paths or globs, absolute or in the job's directory, or "
        "`Expected`, which can also say how many.",
    )
    directives: Literal["read", "ignore"] = Field(
        default="read",
        description="The script's #SBATCH lines. read: on Slurm they set anything that no field sets. ignore: "
        "they have no effect.",
    )
    warn_before: Count | None = Field(
        default=None,
        ge=1,
        le=MAX_SECONDS,
        description="Seconds before the time limit at which the script gets SIGUSR1, so that it can save a "
        "checkpoint and end with an exit code other than 0. Slurm may send it up to 60 s earlier.",
    )
    backend: str | None = Field(default=None, description="Name of the `psik-backend` block to run on.")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str | None) -> str | None:
        return None if name is None else plain_word(name, "the job's name")

    @field_validator("script")
    @classmethod
    def _script_not_empty(cls, script: str) -> str:
        if not script.strip():
            raise ValueError("the script is empty")
        if "\0" in script:
            raise ValueError("the script contains a NUL byte, so it is not text")
        if len(script.encode()) > MAX_SCRIPT_BYTES:
            raise ValueError(f"the script is larger than {MAX_SCRIPT_BYTES:,} bytes: move its data elsewhere")
        return script

    @field_validator("arguments")
    @classmethod
    def _usable_arguments(cls, arguments: list[str]) -> list[str]:
        text = " ".join(arguments)
        if _NO_TEXT.search(text):
            raise ValueError("an argument contains a NUL byte or half of a surrogate pair")
        if len(text.encode()) > MAX_ARGUMENTS_BYTES:
            raise ValueError(f"the arguments have more than {MAX_ARGUMENTS_BYTES:,} bytes: use a file instead")
        return arguments

    @field_validator("directory")
    @classmethod
    def _absolute_directory(cls, directory: str | None) -> str | None:
        return None if directory is None else check_directory(directory)

    @field_validator("environment")
    @classmethod
    def _usable_variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is not a valid name for an environment variable")
            if name in RESERVED_VARIABLES:
                raise ValueError(f"the variable {name!r} is set by psik for every job: choose another name")
            if _NO_TEXT.search(value):
                raise ValueError(f"the value of {name} contains a NUL byte or half of a surrogate pair")
        return environment

    @field_validator("files")
    @classmethod
    def _small_files(cls, files: dict[str, FileContent]) -> dict[str, FileContent]:
        total = sum(content.size for content in files.values())
        if total > MAX_FILES_BYTES:
            largest = max(files, key=lambda path: files[path].size)
            raise ValueError(
                f"the input files have {total:,} bytes together ({largest}: {files[largest].size:,}), over the "
                f"limit of {MAX_FILES_BYTES:,}: move them with Globus Transfer and pass their paths to the job"
            )
        return files

    @model_validator(mode="after")
    def _one_warning(self) -> JobSpec:
        if self.warn_before is not None and any(long_name(name) == "--signal" for name in self.attributes):
            raise ValueError("give warn_before or the option --signal, not both")
        return self

    @field_validator("outputs", "expect", mode="before")
    @classmethod
    def _as_entries(cls, entries: Any) -> Any:
        return listed(entries)

    @classmethod
    def from_file(cls, path: str | Path) -> JobSpec:
        """Read a `job.yaml` (or JSON) as psik does, plus the fields that only this package has.

        `files` may also be a list of local paths, taken relative to the file itself.

        Raises:
            SpecError: The file cannot be read, is not YAML, not a mapping, or not a job spec.
        """
        path = Path(path)
        try:
            document = read_yaml(path)
        except OSError as err:
            raise SpecError(f"Cannot read the job spec {path}: {err.strerror}.") from None
        except ValueError as err:
            raise SpecError(f"Cannot parse the job spec {path} as YAML: {err}.") from None
        if not isinstance(document, dict):
            raise SpecError(
                f"The job spec {path} holds {kind_of(document)}, not a mapping of fields such as "
                "'name:', 'script:' and 'backend:'."
            )
        if isinstance(names := document.get("files"), list):
            document["files"] = listed_files(path, names)
        return cls._checked(document, f"The job spec {path}")

    @classmethod
    def from_script(
        cls,
        path: str | Path,
        *,
        name: str | None = None,
        arguments: Sequence[str] | None = None,
        directory: str | None = None,
        environment: Mapping[str, str] | None = None,
        resources: ResourceSpec | None = None,
        attributes: Mapping[str, str] | None = None,
        files: Mapping[str, str | bytes | Path] | None = None,
        outputs: Sequence[str | Expected] | None = None,
        expect: Sequence[str | Expected] | None = None,
        directives: Literal["read", "ignore"] | None = None,
        warn_before: int | None = None,
    ) -> JobSpec:
        """Create a job spec whose script is read from a local file.

        Without `name`, the job gets the name that the script sets with `#SBATCH -J`, or else the file's name.

        Raises:
            SpecError: The script cannot be read, or a field is not usable.
        """
        path = Path(path)
        try:
            script = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as err:
            raise SpecError(f"Cannot read the script {path}: {err}.") from None
        given = {
            "name": name or (job_name(script) if directives != "ignore" else None) or path.stem,
            "script": script,
            "arguments": arguments,
            "directory": directory,
            "environment": environment,
            "resources": resources,
            "attributes": attributes,
            "files": files,
            "outputs": outputs,
            "expect": expect,
            "directives": directives,
            "warn_before": warn_before,
        }
        return cls._checked(
            {key: value for key, value in given.items() if value is not None}, f"The job of {path}"
        )

    def replace(self, **changes: Any) -> JobSpec:
        """Return a copy with some fields changed, checked like a new one.

        Raises:
            SpecError: A field is unknown or not usable.
        """
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)._checked(fields | changes, f"The job {self.name!r} with its changes")

    @classmethod
    def _checked(cls, fields: dict[str, Any], what: str) -> JobSpec:
        try:
            return cls.model_validate(fields)
        except ValidationError as err:
            raise SpecError(f"{what} is not usable: {explain(err)}.") from None

    def canonical(self) -> str:
        """The spec as versioned canonical JSON: no defaults, keys sorted, no backend's name, files by hash."""
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"backend", "resources"})
        if resources := self.resources.remarkable():
            fields["resources"] = resources
        if self.files:
            fields["files"] = {path: content.digest() for path, content in self.files.items()}
        return json.dumps(
            {"version": CANONICAL_VERSION, **fields}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )

    def digest(self) -> str:
        """SHA-256 of `canonical()`, hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def to_psik(self, *, scheduler: str, options: Mapping[str, str], umask: str) -> dict[str, Any]:
        """Convert to psik's own `JobSpec`, as JSON.

        psik pipes its script into the interpreter, where `srun` or `cat` would swallow the rest of it. So psik is
        given a launcher as its script, and the user's script is a file beside it.

        Args:
            scheduler: `slurm` or `local`, psik's backend type there.
            options: sbatch options of the backend; those of the job win.
            umask: The job's umask, octal digits.
        """
        interpreter, _ = normalize_script(self.script)
        resources = self.resources.complete()
        memory = resources.pop("memory", None)
        attributes: dict[str, str] = {}
        warn_after = None
        if scheduler == "local" and self.warn_before is not None:
            warn_after = 60 * int(resources["duration"]) - self.warn_before
        if scheduler == "slurm":
            limits = {"--time": str(resources["duration"]), "--export": "NIL"}
            if self.warn_before is not None:
                limits["--signal"] = f"B:{WARNING_SIGNAL.removeprefix('SIG')}@{self.warn_before}"
            # sbatch accepts every unambiguous abbreviation of an option.
            asked = any(name.startswith(("--req", "--no-r")) for name in (*options, *self.attributes))
            requeue = {} if asked else {"--no-requeue": ""}
            merged = {**options, **({"--mem": memory} if memory else {}), **self.attributes, **requeue, **limits}
            # Each option is one argument, given as key and as value: psik passes both, and sbatch misreads
            # `--key value` for bare flags and for options whose value is optional.
            arguments = [sbatch_argument(key, value) for key, value in merged.items()]
            attributes = {argument: argument for argument in arguments}
            resources["duration"] += PSIK_TIMER_EXTRA_MINUTES
        return {
            "name": self.name,
            "directory": self.directory,
            "script": launcher_script(
                interpreter, self.arguments, umask=umask, scheduler=scheduler, warn_after=warn_after
            ),
            "environment": self.environment,
            "inherit_environment": self.inherit_environment,
            "resources": resources,
            "attributes": attributes,
        }


def sbatch_argument(key: str, value: str) -> str:
    """Write one option as a single sbatch argument; the value of a bare flag is its own name, or empty."""
    if not value or value == key:
        return key
    return f"{key}={value}" if key.startswith("--") else f"{key}{value}"
