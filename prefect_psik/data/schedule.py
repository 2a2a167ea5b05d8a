"""TASKS: schedule a prune as a separate flow run, and confirm that Prefect has it."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled

from prefect_psik.data.proof.plan import refuse
from prefect_psik.exceptions import ScheduleError, SpecError
from prefect_psik.flow_run.both import aresult, refuse_running_loop, result
from prefect_psik.flow_run.identity import current_caller, key_of
from prefect_psik.flow_run.load import CollectionLike, aload_collection, load_collection
from prefect_psik.models.prunes import ScheduledPrune
from prefect_psik.session.session import Session

#: States of a scheduled prune that will run, is running, or has completed.
_BEGUN = {StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.COMPLETED}


@task(name="schedule prune", cache_policy=NO_CACHE)
def schedule_prune(
    source: CollectionLike,
    path: str,
    *,
    check: CollectionLike | None,
    after: timedelta,
    deployment: str = "prune/prune",
) -> ScheduledPrune:
    """Schedule a prune, and confirm that Prefect has it.

    A retry of the task or flow does not schedule a second one.

    Args:
        source: A saved `globus-collection` block or its name; the flow run gets the name.
        path: See `prune`.
        check: A saved block or its name.
        after: Time from now until the prune starts.
        deployment: `FLOW/DEPLOYMENT` of a flow with the parameters `source`, `path` and `check`, as in
            `flows/prune.py`.

    Returns:
        The flow run that will prune, as read back from Prefect.

    Raises:
        SpecError: A block is not saved, there is no check, or it is the source itself.
        ScheduleError: The deployment does not exist, Prefect cannot find the flow run, or a retry found that the
            flow run was cancelled or failed.
    """
    refuse_running_loop("aschedule_prune")
    one, other = load_collection(source), load_collection(check) if check is not None else None
    wanted = _parameters(one, refuse(one, other, path), path)
    return result(Session.current().run(_schedule(wanted, after, deployment, _key(wanted, deployment))))


@task(name="schedule prune", cache_policy=NO_CACHE)
async def aschedule_prune(
    source: CollectionLike,
    path: str,
    *,
    check: CollectionLike | None,
    after: timedelta,
    deployment: str = "prune/prune",
) -> ScheduledPrune:
    """Async twin of `schedule_prune`."""
    one, other = await aload_collection(source), await aload_collection(check) if check is not None else None
    wanted = _parameters(one, refuse(one, other, path), path)
    return await aresult(Session.current().run(_schedule(wanted, after, deployment, _key(wanted, deployment))))


def _parameters(source: Any, check: Any, path: str) -> dict[str, str]:
    for block in (source, check):
        if block.document_name is None:
            raise SpecError(
                f"The collection {block.collection_id or block.base_path} is not saved, and a later run can find "
                "it only by the name of its block. Save the block, then schedule the prune."
            )
    return {"source": source.document_name, "path": path, "check": check.document_name}


def _key(parameters: dict[str, str], deployment: str) -> str | None:
    """What makes two schedulings the same: the root flow run, the parameters, and its ordinal among equal ones."""
    caller = current_caller()
    if caller.scope is None or caller.detached:
        return None
    what = hashlib.sha256(f"{deployment}|{json.dumps(parameters, sort_keys=True)}".encode()).hexdigest()
    return key_of(caller.scope, what, caller)


async def _schedule(
    parameters: dict[str, str], after: timedelta, deployment: str, key: str | None
) -> ScheduledPrune:
    at = datetime.now(UTC) + after
    async with get_client() as client:
        try:
            found = await client.read_deployment_by_name(deployment)
        except (ObjectNotFound, ValueError) as err:
            raise ScheduleError(
                f"There is no deployment {deployment!r}, so nothing was scheduled. Deploy flows/prune.py, or name "
                "another one with deployment='FLOW/DEPLOYMENT'."
            ) from err
        made = await client.create_flow_run_from_deployment(
            found.id, parameters=parameters, state=Scheduled(scheduled_time=at), idempotency_key=key
        )
        try:
            run = await client.read_flow_run(made.id)
        except ObjectNotFound as err:
            raise ScheduleError(
                f"Prefect accepted the prune as flow run {made.id}, but cannot find that flow run. Check it in "
                "Prefect's UI, then schedule the prune again."
            ) from err
    known = all(run.parameters.get(name) == value for name, value in parameters.items())
    if run.deployment_id != found.id or run.expected_start_time is None or not known:
        raise ScheduleError(
            f"Prefect returned flow run {run.id} ({run.state_name}, {run.parameters}), which does not match the "
            "prune to schedule. Check it in Prefect's UI."
        )
    # A retry gets the flow run of the first attempt, which may have started.
    if run.state is None or run.state.type not in (_BEGUN if key is not None else {StateType.SCHEDULED}):
        raise ScheduleError(
            f"The prune was scheduled as flow run {run.id}, which is {run.state_name} and will not prune anything "
            "more. Retry that flow run in Prefect's UI, or prune by hand."
        )
    return ScheduledPrune(flow_run_id=run.id, at=run.expected_start_time, deployment=deployment)
