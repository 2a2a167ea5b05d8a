"""The command line: `prefect-psik run SPEC`, `cancel HANDLE` and `import PSIK_JSON`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import httpx
from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefect_psik.blocks import PsikBackend
from prefect_psik.exceptions import FailureCause, JobError, PrefectPsikError, SpecError
from prefect_psik.jobs import cancel_job, run_job
from prefect_psik.models import JobState
from prefect_psik.psik_json import read_psik_json
from prefect_psik.resolve import existing_backends, resolve_spec

#: Exit codes: bad input, everything else that is not success, and an interrupted wait.
BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130

app = App(name="prefect-psik", help="Run psik batch jobs through Prefect and Globus Compute.")
_notes = Console(stderr=True, highlight=False, soft_wrap=True)


class _Output(logging.Handler):
    """Sends the job's own lines to where they belong, and what we say of it to stderr."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.job_handle: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        stream, line = getattr(record, "psik_stream", None), getattr(record, "psik_line", "")
        self.job_handle = getattr(record, "psik_handle", self.job_handle)
        if stream == "stdout":
            print(line, flush=True)
        elif stream is not None:
            print(line, file=sys.stderr, flush=True)
        else:
            _notes.print(f"[dim]{escape(record.getMessage())}[/dim]")


@app.command
def run(spec: Path, *, backend: str | None = None, key: str | None = None) -> int:
    """Run the job of a job.yaml, print what it prints, and wait for its end.

    Ctrl-C ends the wait, not the job.

    Args:
        spec: The job.yaml.
        backend: Name of a psik-backend block; default: the one that the file names, else this machine.
        key: Idempotency key, such as a scan number: the same key never runs twice.

    Returns:
        0 if the job completed; the script's own exit code if it failed; else 1.
    """
    job = resolve_spec(spec)
    output = _Output()
    logger = logging.getLogger("prefect_psik")
    logger.setLevel(logging.INFO)
    logger.addHandler(output)
    logger.propagate = False
    try:
        run_job.fn(backend or job.backend or PsikBackend(), job, key=key)
    except KeyboardInterrupt:
        if output.job_handle:
            _notes.print(f"The job goes on. To cancel it:\nprefect-psik cancel '{output.job_handle}'")
        return INTERRUPTED
    except JobError as err:
        _notes.print(f"[red]{escape(str(err))}[/red]")
        code = err.result.exit_code if err.result and err.cause is FailureCause.script else None
        return code if code is not None and 0 < code < 256 else FAILURE
    return 0


@app.command
def cancel(handle: str) -> int:
    """Cancel a job and say how it ended.

    Args:
        handle: The job's handle as JSON, or the path of a file that holds it.
    """
    if not handle.lstrip().startswith("{"):
        try:
            handle = Path(handle).read_text(encoding="utf-8")
        except OSError as err:
            raise SpecError(f"Cannot read the handle from {handle}: {err.strerror}.") from None
    status = cancel_job.fn(handle)
    _notes.print(f"{status.handle} is {status.state.value}: {status.message}.")
    return 0 if status.state is JobState.canceled else FAILURE


@app.command(name="import")
def import_(
    psik_json: Path,
    *,
    endpoint: Annotated[list[str], Parameter(help="NAME=UUID, for a backend whose UUID is not in the file.")] = [],  # noqa: B006
    overwrite: bool = False,
) -> int:
    """Make a psik-backend block of each backend of a psik.json.

    Args:
        psik_json: psik's own configuration file.
        endpoint: The endpoint's UUID of a backend.
        overwrite: Replace blocks of the same name.
    """
    given = [pair.partition("=") for pair in endpoint]
    if wrong := [name for name, equals, value in given if not equals]:
        raise SpecError(f"--endpoint takes NAME=UUID, not {wrong[0]!r}.")
    blocks = read_psik_json(psik_json, {name: value for name, _, value in given})
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
        table.add_row(
            *(name, str(block.endpoint_id or "this machine"), block.prefix, attributes.type),
            *(attributes.queue_name or "", attributes.project_name or ""),
        )
    Console().print(table)
    return 0


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


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(_carefully(lambda: int(app(arguments, exit_on_error=True, result_action="return_value") or 0)))


def _carefully(command: Callable[[], int]) -> int:
    try:
        return command()
    except SpecError as err:
        _notes.print(f"[red]{escape(str(err))}[/red]")
        return BAD_INPUT
    except PrefectPsikError as err:
        _notes.print(f"[red]{escape(str(err))}[/red]")
        return FAILURE
    except httpx.HTTPError as err:
        _notes.print(f"[red]Prefect's API does not answer: {escape(str(err))}. Check PREFECT_API_URL.[/red]")
        return FAILURE


if __name__ == "__main__":
    main()
