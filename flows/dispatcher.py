"""Dispatcher: process one scan at one or more facilities at the same time, as operators have chosen.

The Prefect Variable `facilities` says where, and can be edited in Prefect's UI (Variables) while beam is on:

    {"perlmutter": "required", "frontier": "optional", "polaris": "off"}

This flow stores the raw data, once. Then each facility gets a run of its own of the tomography deployment, with
results of its own. This flow waits for all of them, shows a verdict for each, and fails if a required one did not
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
    """Cancel what this run started at the facilities; Prefect leaves that to the flow."""
    ours = FlowRunFilterParentFlowRunId(any_=[flow_run.id])
    with get_client(sync_client=True) as api:
        present = api.read_flow_run(flow_run.id).state
        if present is None or not present.is_cancelling():
            return  # a worker that is stopped calls this, too; the children go on, and a retry finds them
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
    """Store a scan, and process it wherever operators want it.

    Args:
        scan: Name of the scan.
        detector: Name of the `globus-collection` block where scans arrive.
        store: The data store, likewise.
        export_controlled: Store the scan, and send it nowhere else.
        keep: How long data stays at the detector and at the facilities.
        hook: What tells a catalogue, as `file.py:function` or `module:function`. Empty: none.
        hook_required: Fail if the hook fails; otherwise that is only shown.
        deployment: What runs for each facility, such as the tomography.
        parameters: Further parameters of it.
        variable: Name of the Prefect Variable that says which facilities.
        limit: Longest time to wait for them; they go on after it.

    Returns:
        The verdict for each facility.
    """
    choices = await read_choices(variable)
    stored = await store_scan(scan, detector, store, keep=keep, hook=hook, hook_required=hook_required)
    if export_controlled:
        get_run_logger().info("The scan %s is export-controlled: it is stored, and goes nowhere else", scan)
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
    """Run the deployment for one facility, whatever becomes of the others.

    If this run is retried, one that ended badly runs again, and one that goes on is waited for.
    """
    run: FlowRun | Exception = LookupError("nothing was tried")
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
    """Whether the child is final."""
    return isinstance(run, FlowRun) and run.state is not None and run.state.is_final()


def completed(run: FlowRun | Exception) -> bool:
    """Whether the child did all of its work."""
    return isinstance(run, FlowRun) and run.state is not None and run.state.is_completed()


def verdict(run: FlowRun | Exception) -> str:
    """What became of a child, as a sentence."""
    if isinstance(run, Exception) or run.state is None:
        return f"It was not started, or its end is not known; a retry finds it again: {run}"
    if run.state.is_final():
        return f"{run.state.name}: {run.state.message or 'all is there'}"
    return f"It is still {run.state.name} at the end of the limit. Does its work pool have a worker?"
