"""Commands on backends: import, preflight."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from prefect_psik.blocks import PsikBackend
from prefect_psik.cli.app import FAILURE, app, shown
from prefect_psik.cli.psik_json import read_psik_json
from prefect_psik.exceptions import SpecError
from prefect_psik.flow_run.both import result
from prefect_psik.flow_run.load import existing_backends, load_backend, resolve_spec
from prefect_psik.jobs.preflight import unusable
from prefect_psik.jobs.wait import check
from prefect_psik.models.jobs import Verdict


@app.command(name="import")
def import_(
    psik_json: Path,
    *,
    endpoint: Annotated[
        list[str], Parameter(help="NAME=UUID: the endpoint of a backend, if not in the file.")
    ] = [],  # noqa: B006
    only: Annotated[list[str], Parameter(help="NAME of a backend to import, repeatable; default: all.")] = [],  # noqa: B006
    rename: Annotated[list[str], Parameter(help="NAME=BLOCK: save backend NAME as block BLOCK.")] = [],  # noqa: B006
    overwrite: bool = False,
) -> int:
    """Create a psik-backend block for each backend in a psik.json. If one cannot be created, none is saved.

    Args:
        psik_json: psik's configuration file.
        endpoint: UUID of a backend's endpoint.
        only: A backend to import; repeat the option for more.
        rename: Name of a backend's block, if it should differ from the backend's name.
        overwrite: Replace existing blocks of the same name.
    """
    blocks = read_psik_json(
        psik_json,
        _pairs("--endpoint", "NAME=UUID", endpoint),
        only=only,
        names=_pairs("--rename", "NAME=BLOCK", rename),
    )
    table = Table(
        "block", "endpoint", "prefix", "batch system", "queue", "project", title="Saved psik-backend blocks"
    )
    taken = [f"psik-backend/{name}" for name in existing_backends() if name in blocks]
    if taken and not overwrite:
        raise SpecError(
            f"Nothing was saved, because blocks of these names already exist: {', '.join(taken)}. Use --overwrite "
            "to replace them."
        )
    for name, block in blocks.items():
        save_block(block, name, overwrite=overwrite)
        attributes = block.attributes
        row = (name, block.endpoint_id or "this machine", block.prefix, attributes.type)
        table.add_row(*map(shown, (*row, attributes.queue_name or "", attributes.project_name or "")))
    Console().print(table)
    return 0


def _pairs(option: str, form: str, given: list[str]) -> dict[str, str]:
    """Read the values of an option that names backends."""
    pairs = [pair.partition("=") for pair in given]
    if wrong := [text for text, (name, _, value) in zip(given, pairs, strict=True) if not (name and value)]:
        raise SpecError(f"{option} takes {form}, not {wrong[0]!r}.")
    return {name: value for name, _, value in pairs}


def save_block(block: PsikBackend, name: str, *, overwrite: bool) -> None:
    """Save a block under a name, with a clear error if the name is taken or not allowed."""
    try:
        block.save(name, overwrite=overwrite)
    except ValueError as err:
        taken = "already" in str(err)
        hint = (
            "Use --overwrite to replace it."
            if taken
            else "Block names consist of lower-case letters, digits and dashes."
        )
        raise SpecError(f"The block psik-backend/{name} cannot be saved: {str(err).rstrip('.')}. {hint}") from None


@app.command
def preflight(backend: str, *, spec: Path | None = None) -> int:
    """Check whether a job could be submitted to a backend, without submitting one.

    Args:
        backend: Name of a psik-backend block.
        spec: A job.yaml whose resources the scheduler is asked about; default: the block's own resources.

    Returns:
        0 if no check failed (warnings do not count), else 1.
    """
    resolved = None if spec is None else resolve_spec(spec)
    try:
        report = result(check(load_backend(backend), resolved))
    except SpecError as err:  # the block is unusable; the preflight itself never raises this
        report = unusable(backend, err)
    table = Table("check", "verdict", "details", title=shown(f"Preflight of {backend}"))
    colors = {Verdict.ok: "green", Verdict.warning: "yellow", Verdict.failed: "red"}
    for found in report.checks:
        verdict = shown(found.verdict.value, colors[found.verdict])
        table.add_row(shown(found.name), verdict, shown(found.message))
    Console().print(table)
    return 0 if report.ok else FAILURE
