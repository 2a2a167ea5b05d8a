"""Reads psik's own configuration: a backend of type `globus` in a `psik.json` becomes a block."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from prefect_psik.blocks import BackendAttributes, PsikBackend
from prefect_psik.exceptions import SpecError
from prefect_psik.spec.strict import explain

#: psik's prefix where `project_name` is not given.
_DEFAULT_PREFIX = "$HOME/psik_jobs"
#: How Prefect lets blocks be named.
_BLOCK_NAME = re.compile("[a-z0-9-]+")


def read_psik_json(
    path: str | Path,
    endpoints: Mapping[str, str] | None = None,
    *,
    only: Collection[str] = (),
    names: Mapping[str, str] | None = None,
) -> dict[str, PsikBackend]:
    """Read the backends of a `psik.json` as blocks, by name.

    In psik's `globus` backends, `queue_name` is the endpoint's UUID, `project_name` the remote prefix, and
    `attributes` psik's configuration of the remote side. Backends of type `slurm` and `local` become blocks
    of this machine, with psik's own prefix.

    Args:
        path: The file.
        endpoints: UUIDs by backend's name, in place of what the file says.
        only: The backends to read, by name; empty: all.
        names: Names of blocks by backend's name, in place of that name.

    Raises:
        SpecError: The file is not usable, or some of the backends are not; says which and why.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise SpecError(f"Cannot read {path}: {err.strerror}.") from None
    except ValueError as err:
        raise SpecError(f"{path} is not JSON: {err}.") from None
    backends = document.get("backends") if isinstance(document, dict) else None
    if not isinstance(backends, dict) or not backends:
        raise SpecError(
            f"{path} has no 'backends' mapping, or an empty one, so there is nothing to import. Give the path of "
            "psik's own psik.json."
        )
    endpoints, renamed = dict(endpoints or {}), dict(names or {})
    if unknown := sorted({*endpoints, *renamed, *only} - set(backends)):
        raise SpecError(f"{path} has no backend {', '.join(unknown)}. It has: {', '.join(backends)}.")
    prefix = str(document.get("prefix") or _DEFAULT_PREFIX)
    blocks: dict[str, PsikBackend] = {}
    problems: list[str] = []
    usable: list[str] = []
    for name, entry in backends.items():
        if only and name not in only:
            continue
        try:
            block = _block(path, name, entry, prefix, endpoints.get(name))
            blocks[_block_name(path, name, str(renamed.get(name, name)), blocks)] = block
        except SpecError as err:
            problems.append(str(err))
        else:
            usable.append(name)
    if problems:
        rest = "".join(f" --only {name}" for name in usable)
        problems += [f"To import only the others, add{rest}."] if usable else []
        raise SpecError(" ".join(problems))
    return blocks


def _block_name(path: Path, name: str, wanted: str, taken: Collection[str]) -> str:
    """Check the name for a backend's block."""
    where = f"The backend {name!r} of {path}"
    if not _BLOCK_NAME.fullmatch(wanted):
        close = re.sub("[^a-z0-9]+", "-", wanted.lower()).strip("-") or "NAME"
        raise SpecError(
            f"{where} cannot become a block named {wanted!r}: block names consist of lower-case letters, digits "
            f"and dashes only. Choose another name: --rename {name}={close}."
        )
    if wanted in taken:
        raise SpecError(
            f"{where} cannot become a block named {wanted!r}, since another backend of the file has that name. "
            f"Choose another name: --rename {name}=NAME."
        )
    return wanted


def _block(path: Path, name: str, entry: Any, local_prefix: str, endpoint: str | None) -> PsikBackend:
    where = f"The backend {name!r} of {path}"
    if not isinstance(entry, dict):
        raise SpecError(f"{where} is not a mapping.")
    kind = entry.get("type", "local")
    if kind in ("slurm", "local"):
        if endpoint is not None:
            raise SpecError(
                f"{where} is of type {kind}, which runs jobs on this machine, so it takes no endpoint UUID."
            )
        return _checked(where, {"prefix": local_prefix, "attributes": _attributes(where, entry)})
    if kind != "globus":
        raise SpecError(f"{where} is of type {kind!r}; only globus, slurm and local can be imported.")
    given = endpoint or str(entry.get("queue_name") or "nothing")
    try:
        endpoint_id = UUID(given)
    except ValueError:
        raise SpecError(
            f"{where} has {given!r} where the UUID of its Globus Compute endpoint belongs. Set it as queue_name "
            f"in the file, or add --endpoint {name}=UUID. At the facility, `globus-compute-endpoint list` prints "
            "it."
        ) from None
    prefix = entry.get("project_name") or _DEFAULT_PREFIX
    inner = _mapping(where, entry.get("attributes", {}))
    return _checked(where, {"endpoint_id": endpoint_id, "prefix": prefix, "attributes": _attributes(where, inner)})


def _mapping(where: str, inner: Any) -> dict[str, Any]:
    """The nested attributes, which psik's own command line keeps as a text of JSON."""
    if isinstance(inner, str):
        try:
            inner = json.loads(inner)
        except ValueError as err:
            raise SpecError(f"{where} has 'attributes' that are not JSON: {err}.") from None
    if not isinstance(inner, dict):
        raise SpecError(f"{where} has 'attributes' that are not a mapping.")
    return inner


def _attributes(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Psik's BackendConfig under the names of `BackendAttributes`."""
    options = dict(_mapping(where, entry.get("attributes", {})))
    attributes = {name: value for name, value in entry.items() if name != "attributes"}
    if psik_python := options.pop("psik_python", None):
        attributes["psik_python"] = psik_python
    known = {*BackendAttributes.model_fields, "type"}
    if unknown := sorted(set(attributes) - known):
        raise SpecError(f"{where} has unknown attributes {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
    return {**attributes, "options": options}


def _checked(where: str, fields: dict[str, Any]) -> PsikBackend:
    try:
        return PsikBackend.model_validate(fields)
    except ValidationError as err:
        raise SpecError(f"{where} is not usable: {explain(err)}.") from None
