"""Dispatcher: process one scan at one or more facilities at the same time, as operators have chosen.

The Prefect Variable `facilities` says where, and can be edited in Prefect's UI (Variables) while beam is on:

    {"perlmutter": "required", "frontier": "optional", "polaris": "off"}

Each facility gets a run of its own of the tomography deployment. This flow waits for all of them, shows a verdict
for each, and fails if a required one did not complete.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Literal

from prefect import Flow, flow
from prefect.artifacts import acreate_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelling
from prefect.variables import Variable
from pydantic import TypeAdapter, ValidationError

Choice = Literal["required", "optional", "off"]


def cancel_children(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    """Cancel what this run started at the facilities; Prefect leaves that to the flow."""
    ours = FlowRunFilterParentFlowRunId(any_=[flow_run.id])
    with get_client(sync_client=True) as api:
        present = api.read_flow_run(flow_run.id).state
        if present is None or not present.is_cancelling():
            return  # a worker that is stopped calls this, too; the children go on, and a retry finds them
        for child in api.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=ours)):
            if child.state is not None and not child.state.is_final():
                api.set_flow_run_state(child.id, Cancelling())


@flow(name="dispatcher", flow_run_name="dispatch {scan}", on_cancellation=[cancel_children])
async def dispatcher(
    scan: str,
    deployment: str = "tomography/tomography",
    parameters: dict[str, Any] | None = None,
    variable: str = "facilities",
    limit: timedelta = timedelta(days=2),
) -> dict[str, str]:
    """Process a scan wherever operators want it.

    Args:
        scan: Name of the scan.
        deployment: What runs for each facility; it takes `scan`, `facility` and `key`.
        parameters: Further parameters of it.
        variable: Name of the Prefect Variable that says which facilities.
        limit: Longest time to wait for them; they go on after it.

    Returns:
        The verdict for each facility.
    """
    choices = await read_choices(variable)
    wanted = [facility for facility, choice in choices.items() if choice != "off"]
    given = {**(parameters or {}), "scan": scan}
    runs = await asyncio.gather(*(run_at(facility, deployment, given, limit) for facility in wanted))

    verdicts = {facility: verdict(run) for facility, run in zip(wanted, runs, strict=True)}
    table = [
        {"facility": facility, "choice": choice, "verdict": verdicts.get(facility, "not asked for")}
        for facility, choice in choices.items()
    ]
    await acreate_table_artifact(table, key="dispatcher", description=f"Scan {scan}")
    failed = [name for name, run in zip(wanted, runs, strict=True) if not completed(run)]
    for name in failed:
        get_run_logger().error("%s (%s): %s", name, choices[name], verdicts[name])
    if required := [name for name in failed if choices[name] == "required"]:
        raise RuntimeError(f"The scan {scan} is not done at {', '.join(required)}: {verdicts[required[0]]}")
    return verdicts


async def read_choices(name: str) -> dict[str, Choice]:
    """Read the Variable."""
    example = '{"perlmutter": "required", "frontier": "optional", "polaris": "off"}'
    value: Any = await Variable.aget(name)
    if value is None:
        raise LookupError(f"There is no Prefect Variable {name!r}. Make it in the UI, for example with {example}.")
    try:
        choices = TypeAdapter(dict[str, Choice]).validate_python(value)
    except ValidationError as err:
        why = err.errors()[0]
        raise ValueError(
            f"The Prefect Variable {name!r} is not usable: {why['msg']} at {why['loc']}. Write it as {example}."
        ) from None
    if not any(choice != "off" for choice in choices.values()):
        raise ValueError(f"The Prefect Variable {name!r} turns all facilities off. Turn one on, and retry.")
    return choices


async def run_at(
    facility: str, deployment: str, parameters: dict[str, Any], limit: timedelta
) -> FlowRun | Exception:
    """Run the deployment for one facility. A failed one stops no other, and runs again if this run is retried."""
    run: FlowRun | Exception = LookupError("nothing was started")
    for attempt in range(1, (flow_run.run_count or 1) + 1):
        # The child of an earlier attempt is found again by this key, and so are the jobs of that child.
        key = f"{flow_run.id} {facility} {attempt}"
        try:
            run = await arun_deployment(
                deployment,
                parameters={**parameters, "facility": facility, "key": key},
                flow_run_name=f"{parameters['scan']} @ {facility}",
                idempotency_key=key,
                tags=[facility],
                timeout=limit.total_seconds(),
            )
        except ObjectNotFound as err:
            return err
        if completed(run):
            break
    return run


def completed(run: FlowRun | Exception) -> bool:
    """Whether the child did all of its work."""
    return isinstance(run, FlowRun) and run.state is not None and run.state.is_completed()


def verdict(run: FlowRun | Exception) -> str:
    """What became of a child, as a sentence."""
    if isinstance(run, Exception) or run.state is None:
        return f"It was not started: {run}."
    if run.state.is_final():
        return f"{run.state.name}: {run.state.message or 'all is there'}"
    return f"It is still {run.state.name} at the end of the limit. Does its work pool have a worker?"
