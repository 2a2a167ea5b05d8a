"""Registers the function that endpoints run, once per release, so that an endpoint can allow only this one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from uuid import UUID

from prefect_psik.exceptions import SpecError
from prefect_psik.flow_run.both import result
from prefect_psik.flow_run.load import BackendLike, load_backend
from prefect_psik.session.session import Session


@dataclass(frozen=True)
class RegisteredFunction:
    """A registered function: its UUID, and what its owner tells the endpoint's owner about it."""

    function_id: UUID
    version: str
    digest: str
    """SHA-256 of the text."""
    who: str
    """The login that owns it."""


def register(
    *, backend: BackendLike | None = None, group: UUID | None = None, ha_endpoint: UUID | None = None
) -> RegisteredFunction:
    """Register this release's function with Globus Compute.

    Args:
        backend: The block whose login registers it; None: the worker's own login.
        group: Globus group whose members may also use it.
        ha_endpoint: The only high-assurance endpoint that may run it.

    Raises:
        SpecError: `group` and `ha_endpoint` are both given, or the backend is this machine.
        BackendNotFound: There is no such block.
        FacilityError: The service refuses it or does not answer.
    """
    if group is not None and ha_endpoint is not None:
        raise SpecError(
            "A function is either shared with a group or bound to a high-assurance endpoint, not both. Give only "
            "one of --group and --ha-endpoint."
        )
    block = load_backend(backend) if backend is not None else None
    if block is not None and block.endpoint_id is None:
        name = block.document_name or "given"
        raise SpecError(
            f"The backend {name} has no endpoint_id, so it runs jobs on this machine and needs no function."
        )
    from prefect_psik.transport.globus.registration import register_remote_code, source_digest

    credentials = block.credentials if block is not None else None
    registering = register_remote_code(credentials, group=group, ha_endpoint=ha_endpoint)
    function_id = result(Session.current().run(registering))
    given = credentials is not None and not credentials.is_empty
    return RegisteredFunction(
        function_id=function_id,
        version=version("prefect-psik"),
        digest=source_digest(),
        who=f"client {credentials.identity}" if given and credentials else "the worker's own login",
    )
