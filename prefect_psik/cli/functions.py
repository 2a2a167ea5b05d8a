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

In the psik-backend block:
  function_id: {function_id}

In config.yaml of the endpoint, which is then restarted:
  allowed_functions:
    - {function_id}

Do both again after an upgrade of prefect-psik.
"""

functions = App(name="functions", help="The function that endpoints run for this package.")
app.command(functions)


@functions.command(name="register")
def register_(*, group: str | None = None, ha_endpoint: str | None = None, backend: str | None = None) -> int:
    """Register the function that endpoints run, once a release; print its UUID.

    Put the UUID into function_id of the psik-backend blocks, and into allowed_functions of the endpoint's
    config.yaml. Without a function_id the function is registered anew by each process that submits.

    Args:
        group: UUID of the Globus group whose members may use the function, too.
        ha_endpoint: UUID of the high-assurance endpoint that alone may run it; not together with --group.
        backend: Name of the psik-backend block whose login registers; default: the worker's own login.
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
