"""Fallback for cancellation: a hook that works even when the flow's process is gone."""

from __future__ import annotations

import logging
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectException
from prefect.flows import Flow

from prefect_psik.blocks import PsikBackend
from prefect_psik.credentials import transfer_login
from prefect_psik.data.carriers.globus import globus_carrier
from prefect_psik.data.once import repeated, transfers_of
from prefect_psik.exceptions import BackendNotFound, PrefectPsikError, SpecError
from prefect_psik.flow_run.both import result
from prefect_psik.flow_run.connect import on_block
from prefect_psik.flow_run.labels import Place, places_of
from prefect_psik.flow_run.load import load_backend, load_collection
from prefect_psik.jobs.records import cancel_flow_run
from prefect_psik.session.session import Channel, Session

_logger = logging.getLogger(__name__)


def cancel_psik_jobs(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    """Cancel all jobs and transfers of a flow run when a user cancels it.

    Use it as `@flow(on_cancellation=[cancel_psik_jobs])`. Waiting tasks cancel their own work. This hook also
    reaches work that no task waits for, and the work of a flow whose process was killed. Prefect also calls it
    when `serve()` is stopped; then it leaves the work alone, since the next run of the flow finds it again. It
    acts only if Prefect's API says that the flow run is being cancelled.

    Args:
        flow: As Prefect passes it.
        flow_run: The flow run whose work is cancelled.
        state: As Prefect passes it; the current state is read from the API.
    """
    try:
        with get_client(sync_client=True) as client:
            present = client.read_flow_run(flow_run.id)
    except (PrefectException, httpx.HTTPError, OSError) as err:
        _logger.error(
            "Cannot tell whether flow run %s is being cancelled, so its jobs are not canceled: %s",
            flow_run.id,
            err,
        )
        return
    if present.state is None or not present.state.is_cancelling():
        name = present.state.name if present.state else "unknown"
        _logger.info("Flow run %s is %s, not being cancelled: its jobs keep running", flow_run.id, name)
        return
    for place in places_of(present.labels):
        try:
            _cancel_at(place, str(flow_run.id))
        except PrefectPsikError as err:
            _logger.error("Jobs of flow run %s under %s may still be running: %s", flow_run.id, place.prefix, err)
    for kept in transfers_of(present.labels).values():
        if kept.cancel and kept.task_id is not None:
            try:
                _cancel_transfer(kept.task_id, kept.collection)
            except PrefectPsikError as err:
                _logger.error(
                    "Transfer %s of flow run %s may still be running: %s", kept.task_id, flow_run.id, err
                )


def _cancel_at(place: Place, flow_run: str) -> None:
    async def work(channel: Channel) -> Any:
        return await cancel_flow_run(channel, place.endpoint_id, place.backend, flow_run)

    for outcome in result(on_block(block_at(place), work)).values():
        if isinstance(outcome, PrefectPsikError):
            _logger.error("A job of flow run %s may still be running: %s", flow_run, outcome)
        else:
            _logger.info("%s is %s", outcome.handle, outcome.state.value)


def _cancel_transfer(task_id: str, collection: str | None) -> None:
    carrier = globus_carrier(transfer_login(load_collection(collection).credentials if collection else None))
    result(Session.current().run(repeated(lambda: carrier.cancel(task_id))))
    _logger.info("Transfer %s was asked to stop", task_id)


def block_at(place: Place) -> PsikBackend:
    """The backend for a place: with the login of the block that submitted there, if that block still exists."""
    block = PsikBackend()
    if place.backend is not None:
        try:
            block = load_backend(place.backend)
        except (BackendNotFound, SpecError) as err:
            _logger.warning("%s The worker's own login is used.", err)
    return block.model_copy(update={"endpoint_id": place.endpoint_id, "prefix": place.prefix})
