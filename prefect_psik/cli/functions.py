"""Commands on functions: functions register."""

from __future__ import annotations

from dataclasses import asdict
from uuid import UUID

from cyclopts import App

from prefect_psik.cli.app import app, notes
from prefect_psik.cli.registration import register
from prefect_psik.exceptions import SpecError

_NEXT = """\
Registered the function of prefect-psik {version} as {who}. SHA-256 of its text: {digest}

In the psik-backend block, set:
  function_id: {function_id}

In the endpoint's config.yaml, set this, then restart the endpoint:
  allowed_functions:
    - {function_id}

Repeat all of this after each upgrade of prefect-psik.
"""

functions = App(name="functions", help="Manage the function that endpoints run for this package.")
app.command(functions)


@functions.command(name="register")
def register_(*, group: str | None = None, ha_endpoint: str | None = None, backend: str | None = None) -> int:
    """Register the function that endpoints run, and print its UUID. Needed once for each release.

    Put the UUID into function_id of the psik-backend blocks, and into allowed_functions of the endpoint's
    config.yaml. Without a function_id, every process that submits jobs registers the function again.

    Args:
        group: UUID of a Globus group whose members may also use the function.
        ha_endpoint: UUID of a high-assurance endpoint: only this endpoint may run the function. Cannot be
            combined with --group.
        backend: Name of the psik-backend block whose login registers the function; default: the worker's own
            login.
    """
    registered = register(
        backend=backend, group=_uuid("--group", group), ha_endpoint=_uuid("--ha-endpoint", ha_endpoint)
    )
    notes.print(_NEXT.format(**asdict(registered)), markup=False)
    print(registered.function_id)
    return 0


def _uuid(option: str, given: str | None) -> UUID | None:
    try:
        return None if given is None else UUID(given)
    except ValueError:
        raise SpecError(f"{option} takes a UUID, not {given!r}.") from None
