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
    endpoint: Annotated[list[str], Parameter(help="NAME=UUID, for a backend whose UUID is not in the file.")] = [],  # noqa: B006
    only: Annotated[list[str], Parameter(help="NAME of a backend to import; default: all.")] = [],  # noqa: B006
    rename: Annotated[list[str], Parameter(help="NAME=BLOCK, for a block with another name.")] = [],  # noqa: B006
    overwrite: bool = False,
) -> int:
    """Make a psik-backend block of each backend of a psik.json; nothing is saved unless all of them can be.

    Args:
        psik_json: psik's own configuration file.
        endpoint: The endpoint's UUID of a backend.
        only: A backend to import, again for each.
        rename: The name that the block of a backend gets, in place of the backend's.
        overwrite: Replace blocks of the same name.
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
            f"{', '.join(taken)}: saved already, so nothing was saved now. Use --overwrite to replace it."
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
    """Save a block under a name, with a clear word if the name is taken or not possible."""
    try:
        block.save(name, overwrite=overwrite)
    except ValueError as err:
        taken = "already" in str(err)
        hint = (
            "Use --overwrite to replace it." if taken else "Block names are lower-case letters, digits and dashes."
        )
        raise SpecError(f"The block psik-backend/{name} cannot be saved: {str(err).rstrip('.')}. {hint}") from None


@app.command
def preflight(backend: str, *, spec: Path | None = None) -> int:
    """Tell whether a job could be submitted to a backend; submits nothing.

    Args:
        backend: Name of a psik-backend block.
        spec: A job.yaml, to ask the scheduler about its resources; default: those of the block.

    Returns:
        0 if all checks are fine or only warnings, else 1.
    """
    resolved = None if spec is None else resolve_spec(spec)
    try:
        report = result(check(load_backend(backend), resolved))
    except SpecError as err:  # of the block: a preflight itself raises none
        report = unusable(backend, err)
    table = Table("check", "verdict", "what was found", title=shown(f"Preflight of {backend}"))
    colors = {Verdict.ok: "green", Verdict.warning: "yellow", Verdict.failed: "red"}
    for found in report.checks:
        verdict = shown(found.verdict.value, colors[found.verdict])
        table.add_row(shown(found.name), verdict, shown(found.message))
    Console().print(table)
    return 0 if report.ok else FAILURE
