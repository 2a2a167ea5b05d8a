"""Gives access to the backend of a block or a handle: a channel with the right login."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TypeVar

from prefect_psik.blocks import PsikBackend
from prefect_psik.flow_run.load import BackendLike, aload_backend, load_backend, needs_block, transport_to
from prefect_psik.models.jobs import JobHandle
from prefect_psik.session.session import Channel, Session

T = TypeVar("T")


def block_of(handle: JobHandle, backend: BackendLike | None) -> PsikBackend | None:
    """The block that holds the login for a handle, if one is needed."""
    if backend is None and needs_block(handle):
        backend = handle.backend
    return None if backend is None else load_backend(backend)


async def ablock_of(handle: JobHandle, backend: BackendLike | None) -> PsikBackend | None:
    """Async twin of `block_of`."""
    if backend is None and needs_block(handle):
        backend = handle.backend
    return None if backend is None else await aload_backend(backend)


def on_block(block: PsikBackend, work: Callable[[Channel], Coroutine[None, None, T]]) -> Future[T]:
    """Run work with the channel of a block."""
    return Session.current().on_channel(block.get_transport(), block.prefix, block.poll_interval_seconds, work)


def on_handle(
    handle: JobHandle, block: PsikBackend | None, work: Callable[[Channel], Coroutine[None, None, T]]
) -> Future[T]:
    """Run work with the channel to a handle's job."""
    interval = (block or PsikBackend()).poll_interval_seconds
    return Session.current().on_channel(transport_to(handle, block), handle.prefix, interval, work)
