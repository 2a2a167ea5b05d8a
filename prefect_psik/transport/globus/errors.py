"""What Globus and an endpoint answered, in the words and classes of this package."""

from __future__ import annotations

import re

from globus_sdk import GlobusAPIError

from prefect_psik.exceptions import FacilityError, FacilitySetupError, PayloadTooLarge, RemoteCodeError

RETRY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


def api_error(err: GlobusAPIError, place: str, login: str) -> FacilityError:
    """Word what Globus's web service answered for a place to a login."""
    text = str(err.message or err.code or "no reason given").rstrip(".")
    status = err.http_status
    if status in RETRY_STATUSES:
        return FacilityError(f"Globus answered {status} for {place}: {text}.", transient=True)
    if status == 413:
        return PayloadTooLarge(f"Globus refused a call to {place} as too large: {text}.")
    if status == 401:
        return FacilitySetupError(
            f"Globus refused {login}: {text}. Check client_id and client_secret of the block, or log in anew."
        )
    if status == 403:
        return FacilitySetupError(
            f"Globus does not allow {login} to use {place}: {text}. Ask the endpoint's owner for access; "
            "if it allows only some functions, put the id of an allowed one into function_id of the block: "
            "prefect-psik functions register."
        )
    if status == 404:
        return FacilitySetupError(f"Globus does not know what was asked for at {place}: {text}.")
    return FacilitySetupError(f"Globus answered {status} for {place}: {text}.")


def task_error(name: str, text: str, place: str, login: str) -> FacilityError:
    """Word why the task of the call `name` failed at the endpoint."""
    last = _last_line(text)
    if "MaxResultSizeExceeded" in text:
        return PayloadTooLarge(f"The answer to {name!r} from {place} is larger than Globus carries.")
    if "Failed validating" in text:
        reason = _last_line(text.partition("Failed validating")[0])
        return FacilitySetupError(
            f"The {place} does not accept user_endpoint_config of the block: {reason}. Take out what it "
            "does not know."
        )
    if re.search(r"[Nn]ot permitted|not allowed", text):
        return FacilitySetupError(
            f"The {place} does not run our function: {last}. Put the id of an allowed function into "
            "function_id of the block: prefect-psik functions register."
        )
    if "failed to map to a local user" in text or "local user does not exist" in text:
        return FacilitySetupError(
            f"The {place} has no user for {login}. Ask its administrator to map the client's UUID to a user there."
        )
    # The endpoint starts a user endpoint anew before it has seen that the last one died: soon it will have.
    lost = re.search(r"WorkerLost|BrokenProcessPool|ManagerLost|shut ?down|restart|Another instance", text)
    return RemoteCodeError(
        f"The call {name!r} failed on {place}: {last}. The traceback is in `remote_traceback`.",
        transient=lost is not None,
        remote_traceback=text,
    )


def silence_asked(failure: BaseException | None) -> float:
    """Seconds for which Globus asks to be left alone."""
    headers = failure.headers if isinstance(failure, GlobusAPIError) else None
    try:
        return max(0.0, float((headers or {}).get("Retry-After", 0)))
    except ValueError:
        return 0.0


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip(" -")]
    return lines[-1][:500] if lines else "no reason given"
