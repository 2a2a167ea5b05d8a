"""Small input files that travel with a job."""

from __future__ import annotations

import base64
import hashlib
import posixpath
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from prefect_psik.exceptions import SpecError
from prefect_psik.typed import CONTROL, Typed

#: All inputs of one job together; larger ones belong into a Globus transfer.
MAX_FILES_BYTES = 2_000_000


class FileContent(Typed):
    """Content of one small input file: `text`, or `base64` for bytes that are no UTF-8."""

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
    """Take text, bytes or a local path for a file's content."""
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


def _inside(path: str) -> str:
    """Check that a path stays inside the job's directory."""
    plain = posixpath.normpath(path) == path and path != "." and not path.startswith("..")
    if not plain or path.startswith(("/", "~", "-")) or CONTROL.search(path):
        raise ValueError(
            f"{path!r} must be a plain path of a file inside the job's directory: relative, without '.', '..', "
            "double slashes, leading dash or control characters"
        )
    return path


InsidePath = Annotated[str, BeforeValidator(lambda value: _inside(value) if isinstance(value, str) else value)]
InputFile = Annotated[FileContent, BeforeValidator(_as_content)]


def listed_files(spec: Path, names: list[Any]) -> dict[str, Path]:
    """Read `files` of a job.yaml that lists local paths, relative to it."""
    files: dict[str, Path] = {}
    for name in names:
        if not isinstance(name, str):
            raise SpecError(f"The job spec {spec} has {name!r} in files, which is no path of a local file.")
        if Path(name).name in files:
            raise SpecError(
                f"The job spec {spec} lists two files named {Path(name).name!r}: write them as a mapping, "
                "from the path in the job's directory to the content."
            )
        files[Path(name).name] = spec.parent / name
    return files
