"""Dispatcher: process one scan at one or more facilities at the same time, chosen by the operators.

The Prefect Variable `facilities` says where, and can be edited in Prefect's UI (Variables) while beam is on:

    {"perlmutter": "required", "frontier": "optional", "polaris": "off"}

This flow stores the raw data once. Then it starts the tomography deployment separately for each facility; each run
has its own results. The flow waits for all of them, shows a verdict for each, and fails if a required one did not
complete.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Literal

import httpx
from prefect import Flow, flow
from prefect.artifacts import acreate_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import arun_deployment
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelling
from prefect.variables import Variable
from pydantic import TypeAdapter, ValidationError

from flows.store import Keep, ScanName, store_scan
from prefect_psik import cancel_psik_jobs

Choice = Literal["required", "optional", "off"]


def cancel_children(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:
    """Cancel the runs that this flow run started; Prefect does not do so itself."""
    ours = FlowRunFilterParentFlowRunId(any_=[flow_run.id])
    with get_client(sync_client=True) as api:
        present = api.read_flow_run(flow_run.id).state
        if present is None or not present.is_cancelling():
            return  # stopping a worker calls this, too; the children keep running, and a retry finds them
        for child in api.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=ours)):
            if child.state is not None and not child.state.is_final():
                api.set_flow_run_state(child.id, Cancelling())


@flow(name="dispatcher", flow_run_name="dispatch {scan}", on_cancellation=[cancel_psik_jobs, cancel_children])
async def dispatcher(
    scan: ScanName,
    detector: str,
    store: str,
    export_controlled: bool = False,
    keep: Keep = Keep(),  # noqa: B008 - a default of the form
    hook: str | None = None,
    hook_required: bool = False,
    deployment: str = "tomography/tomography",
    parameters: dict[str, Any] | None = None,
    variable: str = "facilities",
    limit: timedelta = timedelta(days=2),
) -> dict[str, str]:
    """Store a scan, then process it at the facilities that operators have chosen.

    Args:
        scan: Name of the scan.
        detector: Name of the `globus-collection` block where scans arrive.
        store: Name of the `globus-collection` block of the data store.
        export_controlled: Store the scan, but send it nowhere else.
        keep: How long data stays at the detector and at the facilities.
        hook: Function that registers data in a catalogue, as `file.py:function` or `module:function`. Empty: none.
        hook_required: Fail if the hook fails. If not set, the failure is only shown.
        deployment: Deployment to run for each facility, such as the tomography.
        parameters: Further parameters for the deployment.
        variable: Name of the Prefect Variable that chooses the facilities.
        limit: Longest time to wait for the facilities; their runs continue after it.

    Returns:
        The verdict for each facility.
    """
    choices = await read_choices(variable)
    stored = await store_scan(scan, detector, store, keep=keep, hook=hook, hook_required=hook_required)
    if export_controlled:
        get_run_logger().info("The scan %s is export-controlled: it is stored, but sent nowhere else", scan)
        return {}
    given = {
        **(parameters or {}),
        "scan": scan,
        "store": store,
        "hook": hook,
        "hook_required": hook_required,
        "stored": stored.model_dump(),
        "keep": keep.model_dump(mode="json"),
    }
    wanted = [facility for facility, choice in choices.items() if choice != "off"]
    runs = await asyncio.gather(*(run_at(facility, deployment, given, limit) for facility in wanted))

    verdicts = {facility: verdict(run) for facility, run in zip(wanted, runs, strict=True)}
    table = [
        {"facility": facility, "choice": choice, "verdict": verdicts.get(facility, "turned off")}
        for facility, choice in choices.items()
    ]
    await acreate_table_artifact(table, key="dispatcher", description=f"Scan {scan}")
    failed = [name for name, run in zip(wanted, runs, strict=True) if not completed(run)]
    for name in failed:
        get_run_logger().error("%s (%s): %s", name, choices[name], verdicts[name])
    if required := [name for name in failed if choices[name] == "required"]:
        raise RuntimeError(f"The scan {scan} was not completed at {', '.join(required)}: {verdicts[required[0]]}")
    return verdicts


async def read_choices(name: str) -> dict[str, Choice]:
    """Read the Variable."""
    example = '{"perlmutter": "required", "frontier": "optional", "polaris": "off"}'
    value: Any = await Variable.aget(name)
    if value is None:
        raise LookupError(f"There is no Prefect Variable {name!r}. Create it in the UI, for example as {example}.")
    try:
        choices = TypeAdapter(dict[str, Choice]).validate_python(value)
    except ValidationError as err:
        why = err.errors()[0]
        raise ValueError(
            f"The Prefect Variable {name!r} is not valid: {why['msg']} at {why['loc']}. Write it as {example}."
        ) from None
    if not any(choice != "off" for choice in choices.values()):
        raise ValueError(f"The Prefect Variable {name!r} turns all facilities off. Turn one on, then retry.")
    return choices


async def run_at(
    facility: str, deployment: str, parameters: dict[str, Any], limit: timedelta
) -> FlowRun | Exception:
    """Run the deployment for one facility, independently of the others.

    If this flow run is retried, a child that ended badly runs again, and one that is still running is waited for.
    """
    run: FlowRun | Exception = LookupError("no attempt was made")
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
        except (PrefectException, httpx.HTTPError, OSError, ValueError) as err:
            return err
        if completed(run) or not ended(run):
            break
    return run


def ended(run: FlowRun | Exception) -> bool:
    """Whether the child has ended."""
    return isinstance(run, FlowRun) and run.state is not None and run.state.is_final()


def completed(run: FlowRun | Exception) -> bool:
    """Whether the child has completed."""
    return isinstance(run, FlowRun) and run.state is not None and run.state.is_completed()


def verdict(run: FlowRun | Exception) -> str:
    """The outcome of a child, as a sentence."""
    if isinstance(run, Exception) or run.state is None:
        return f"It was not started, or its outcome is unknown; a retry finds it again: {run}"
    if run.state.is_final():
        return f"{run.state.name}: {run.state.message or 'done'}"
    return f"It was still {run.state.name} at the time limit. Does its work pool have a worker?"
