"""Reads psik's own configuration: a backend of type `globus` in a `psik.json` becomes a block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from prefect_psik.blocks import BackendAttributes, PsikBackend
from prefect_psik.exceptions import SpecError
from prefect_psik.typed import explain

#: psik's prefix where `project_name` is not given.
_DEFAULT_PREFIX = "$HOME/psik_jobs"


def read_psik_json(path: str | Path, endpoints: Mapping[str, str] | None = None) -> dict[str, PsikBackend]:
    """Read the backends of a `psik.json` as blocks, by name.

    In psik's `globus` backends, `queue_name` is the endpoint's UUID, `project_name` the remote prefix, and
    `attributes` psik's configuration of the remote side. Backends of type `slurm` and `local` become blocks
    of this machine, with psik's own prefix.

    Args:
        path: The file.
        endpoints: UUIDs by backend's name, in place of what the file says.

    Raises:
        SpecError: The file is not usable, or a UUID is missing.
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
        raise SpecError(f"{path} has no mapping 'backends', as psik.json needs it; there is nothing to import.")
    endpoints = dict(endpoints or {})
    if unknown := sorted(set(endpoints) - set(backends)):
        raise SpecError(f"{path} has no backend {', '.join(unknown)}. It has: {', '.join(backends)}.")
    return {
        name: _block(path, name, entry, str(document.get("prefix") or _DEFAULT_PREFIX), endpoints.get(name))
        for name, entry in backends.items()
    }


def _block(path: Path, name: str, entry: Any, local_prefix: str, endpoint: str | None) -> PsikBackend:
    where = f"The backend {name!r} of {path}"
    if not isinstance(entry, dict):
        raise SpecError(f"{where} is no mapping.")
    kind = entry.get("type", "local")
    if kind in ("slurm", "local"):
        if endpoint is not None:
            raise SpecError(f"{where} is of type {kind}, on this machine: it takes no endpoint UUID.")
        return _checked(where, {"prefix": local_prefix, "attributes": _attributes(where, entry)})
    if kind != "globus":
        raise SpecError(f"{where} is of type {kind!r}; only globus, slurm and local can be imported.")
    given = endpoint or str(entry.get("queue_name") or "nothing")
    try:
        endpoint_id = UUID(given)
    except ValueError:
        raise SpecError(
            f"{where} has {given!r} where the UUID of its Globus Compute endpoint belongs. Write it into the "
            f"file as queue_name, or give it here: --endpoint {name}=UUID. `globus-compute-endpoint list` prints "
            "it at the facility."
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
        raise SpecError(f"{where} has 'attributes' that are no mapping.")
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
