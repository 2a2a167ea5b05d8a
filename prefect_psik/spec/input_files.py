"""Small input files that travel with a job."""

from __future__ import annotations

import base64
import hashlib
import posixpath
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from prefect_psik.exceptions import SpecError
from prefect_psik.spec.strict import CONTROL, Typed

#: All input files of one job together; anything larger needs a Globus transfer.
MAX_FILES_BYTES = 2_000_000
MAX_PATH_BYTES = 1000
MAX_PATH_PARTS = 64


class FileContent(Typed):
    """Content of one small input file: `text`, or `base64` for bytes that are not UTF-8."""

    text: str | None = None
    base64: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> FileContent:
        if (self.text is None) == (self.base64 is None):
            raise ValueError("give either text or base64")
        if self.base64 is not None:
            try:
                base64.b64decode(self.base64, validate=True)
            except ValueError as err:
                raise ValueError(f"not base64: {err}") from None
        return self

    def content(self) -> bytes:
        """The bytes of the file."""
        return self.text.encode() if self.text is not None else base64.b64decode(self.base64 or "")

    def digest(self) -> str:
        """SHA-256 of the bytes, hexadecimal."""
        return hashlib.sha256(self.content()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.content())


def _as_content(value: Any) -> Any:
    """Accept text, bytes or a local path as a file's content."""
    if isinstance(value, Path):
        try:
            value = value.read_bytes()
        except OSError as err:
            raise ValueError(f"cannot read the input file {value}: {err.strerror}") from None
    if isinstance(value, bytes):
        try:
            return {"text": value.decode()}
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    return {"text": value} if isinstance(value, str) else value


def check_length(path: str) -> None:
    """Refuse a path that is too long for a file system, or unreasonably deep.

    Raises:
        ValueError: It is.
    """
    parts = path.split("/")
    if (
        len(path.encode()) > MAX_PATH_BYTES
        or len(parts) > MAX_PATH_PARTS
        or len(max(parts, key=len).encode()) > 255
    ):
        shown = path if len(path) <= 80 else f"{path[:60]}…{path[-19:]}"
        raise ValueError(
            f"the path {shown!r} has {len(path.encode()):,} bytes in {len(parts):,} parts: use at most "
            f"{MAX_PATH_BYTES:,} bytes, {MAX_PATH_PARTS} parts and 255 bytes per part"
        )


def check_inside(path: str) -> str:
    """Check that a path stays inside the job's directory.

    Raises:
        ValueError: It does not, or is too long.
    """
    plain = posixpath.normpath(path) == path and path != "." and not path.startswith("..")
    if not plain or path.startswith(("/", "~", "-")) or CONTROL.search(path):
        raise ValueError(
            f"{path!r} must be a plain path inside the job's directory: relative, without '.', '..', double "
            "slashes, a leading dash or control characters"
        )
    check_length(path)
    return path


InsidePath = Annotated[
    str, BeforeValidator(lambda value: check_inside(value) if isinstance(value, str) else value)
]
InputFile = Annotated[FileContent, BeforeValidator(_as_content)]


def check_directory(directory: str) -> str:
    """Check that a directory at the facility is given as a full path.

    Raises:
        ValueError: It is not.
    """
    if not directory.startswith(("/", "$", "~")) or CONTROL.search(directory):
        raise ValueError(
            f"directory {directory!r} must be absolute, or start with a $VARIABLE that is set at the facility"
        )
    return directory


def listed_files(spec: Path, names: list[Any]) -> dict[str, Path]:
    """Read `files` of a job.yaml that lists local paths relative to itself."""
    files: dict[str, Path] = {}
    for name in names:
        if not isinstance(name, str):
            raise SpecError(f"The job spec {spec} has {name!r} in files, which is not the path of a local file.")
        if Path(name).name in files:
            raise SpecError(
                f"The job spec {spec} lists two files named {Path(name).name!r}: write files as a mapping "
                "from the path in the job's directory to the content."
            )
        files[Path(name).name] = spec.parent / name
    return files
