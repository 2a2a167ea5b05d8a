"""Turns what a caller gives (a name, a path, a handle as text) into what the tasks work with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from pydantic import ValidationError

from prefect_psik.blocks import GlobusCollection, PsikBackend
from prefect_psik.exceptions import BackendNotFound, SpecError
from prefect_psik.models.jobs import JobHandle
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.strict import explain
from prefect_psik.transport.base import Transport
from prefect_psik.transport.local import LocalTransport

BackendLike = PsikBackend | str
CollectionLike = GlobusCollection | str
SpecLike = JobSpec | str | Path
HandleLike = JobHandle | str | Mapping[str, Any]

#: What Prefect raises if there is no block of a name, or if a stored block has a bad value.
_NOT_LOADED = (ValueError, RuntimeError)


def resolve_spec(spec: SpecLike) -> JobSpec:
    """Take a spec, or read it from a `job.yaml`."""
    return spec if isinstance(spec, JobSpec) else JobSpec.from_file(spec)


def resolve_handle(handle: HandleLike) -> JobHandle:
    """Take a handle, or read it from JSON.

    Raises:
        SpecError: It is not a handle.
    """
    try:
        if isinstance(handle, str):
            return JobHandle.model_validate_json(handle)
        return handle if isinstance(handle, JobHandle) else JobHandle.model_validate(handle)
    except ValidationError as err:
        raise SpecError(
            f"This is not a job handle: {explain(err)}. Use the one that submit_job returned."
        ) from None


def backend_name(backend: BackendLike | None, spec: JobSpec) -> BackendLike:
    """Choose the backend: the caller's, or the one that the spec names.

    Raises:
        SpecError: Neither names a backend.
    """
    chosen = backend if backend is not None else spec.backend
    if chosen is None:
        raise SpecError(
            f"There is no backend for job {spec.name!r}. Pass a psik-backend block or its name, or set 'backend:' "
            "in the job spec."
        )
    return chosen


def load_backend(backend: BackendLike) -> PsikBackend:
    """Load a block by its name, unless it is one already.

    Raises:
        BackendNotFound: There is none of that name; lists those that exist.
        SpecError: It has a bad value; names the field.
    """
    if isinstance(backend, PsikBackend):
        return backend
    try:
        # `_sync`: in a thread of an async flow, such as that of a hook, Prefect would hand out a coroutine.
        loaded = PsikBackend.load(backend, _sync=True)  # type: ignore[call-arg]
    except _NOT_LOADED as err:
        raise _not_found(backend, existing_backends(), err) from None
    assert isinstance(loaded, PsikBackend)  # noqa: S101 - Block.load is typed for both worlds
    return loaded


async def aload_backend(backend: BackendLike) -> PsikBackend:
    """Load a block by its name, unless it is one already.

    Raises:
        BackendNotFound: There is none of that name; lists those that exist.
        SpecError: It has a bad value; names the field.
    """
    if isinstance(backend, PsikBackend):
        return backend
    try:
        return await PsikBackend.aload(backend)
    except _NOT_LOADED as err:
        raise _not_found(backend, await _aexisting_blocks(PsikBackend), err) from None


def load_collection(collection: CollectionLike) -> GlobusCollection:
    """Load a block by its name, unless it is one already.

    Raises:
        SpecError: There is none of that name; lists those that exist. Or it has a bad value; names the field.
    """
    if isinstance(collection, GlobusCollection):
        return collection
    try:
        loaded = GlobusCollection.load(collection, _sync=True)  # type: ignore[call-arg]
    except _NOT_LOADED as err:
        raise _no_collection(collection, existing_blocks(GlobusCollection), err) from None
    assert isinstance(loaded, GlobusCollection)  # noqa: S101 - Block.load is typed for both worlds
    return loaded


async def aload_collection(collection: CollectionLike) -> GlobusCollection:
    """Load a block by its name, unless it is one already.

    Raises:
        SpecError: There is none of that name; lists those that exist. Or it has a bad value; names the field.
    """
    if isinstance(collection, GlobusCollection):
        return collection
    try:
        return await GlobusCollection.aload(collection)
    except _NOT_LOADED as err:
        raise _no_collection(collection, await _aexisting_blocks(GlobusCollection), err) from None


def existing_backends() -> list[str]:
    """Names of all saved `psik-backend` blocks."""
    return existing_blocks(PsikBackend)


def existing_blocks(kind: type[Block]) -> list[str]:
    """Names of all saved blocks of a kind."""
    with get_client(sync_client=True) as client:
        try:
            documents = client.read_block_documents_by_type(kind.get_block_type_slug())
        except ObjectNotFound:
            return []
    return sorted(document.name for document in documents if document.name)


async def _aexisting_blocks(kind: type[Block]) -> list[str]:
    async with get_client() as client:
        try:
            documents = await client.read_block_documents_by_type(kind.get_block_type_slug())
        except ObjectNotFound:
            return []
    return sorted(document.name for document in documents if document.name)


def _no_collection(name: str, existing: list[str], err: Exception) -> SpecError:
    if name in existing:
        return _bad_block(f"globus-collection/{name}", err)
    others = f"Existing ones: {', '.join(existing)}." if existing else "Create one in Prefect's UI, under Blocks."
    return SpecError(f"There is no collection {name!r}. {others}")


def _bad_block(name: str, err: Exception) -> SpecError:
    """The error for a stored block with a bad value. The value is not shown: it may be a misplaced secret."""
    cause = err if isinstance(err, ValidationError) else err.__cause__
    why = explain(cause, with_input=False) if isinstance(cause, ValidationError) else str(err).rstrip(".")
    return SpecError(
        f"The block {name} cannot be used: {why}. Correct it in Prefect's UI (Blocks), or register it again from "
        "its file."
    )


def _not_found(name: str, existing: list[str], err: Exception) -> BackendNotFound | SpecError:
    if name in existing:
        return _bad_block(f"psik-backend/{name}", err)
    if existing:
        return BackendNotFound(f"There is no backend {name!r}. Existing ones: {', '.join(existing)}.")
    return BackendNotFound(
        f"There is no backend {name!r}; none has been saved yet. Create one in Prefect's UI (Blocks, psik "
        "Backend), with `prefect-psik import psik.json`, or with `python blocks/register.py blocks/local.yaml`."
    )


def needs_block(handle: JobHandle) -> bool:
    """Whether access to a handle's job needs its block, for the login."""
    return handle.endpoint_id is not None and handle.backend is not None


def transport_to(handle: JobHandle, backend: PsikBackend | None) -> Transport:
    """The transport to a handle's job: uses its endpoint, with the login of a block if there is one."""
    if handle.endpoint_id is None:
        return LocalTransport()
    return (backend or PsikBackend()).model_copy(update={"endpoint_id": handle.endpoint_id}).get_transport()
