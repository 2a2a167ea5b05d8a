"""Turns what Globus and endpoints answer into this package's errors."""

from __future__ import annotations

import re

from globus_sdk import GlobusAPIError

from prefect_psik.exceptions import FacilityError, FacilitySetupError, PayloadTooLarge, RemoteCodeError

RETRY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


def api_error(err: GlobusAPIError, place: str, login: str) -> FacilityError:
    """Turn an error of Globus's web service into one of ours."""
    text = str(err.message or err.code or "no reason given").rstrip(".")
    status = err.http_status
    if status in RETRY_STATUSES:
        return FacilityError(f"Globus answered {status} for {place}: {text}.", transient=True)
    if status == 413:
        return PayloadTooLarge(
            f"Globus refused a call to {place} because it is too large: {text}. Use Globus Transfer "
            "for large inputs."
        )
    if status == 401:
        return FacilitySetupError(
            f"Globus refused {login}: {text}. Check client_id and client_secret of the block, or log in again."
        )
    if status == 403:
        return FacilitySetupError(
            f"Globus does not allow {login} to use {place}: {text}. Ask the endpoint's owner for access. If the "
            "endpoint allows only certain functions, set function_id of the block to the id of one of them; to "
            "register one, run: prefect-psik functions register."
        )
    if status == 404:
        return FacilitySetupError(
            f"Globus answered 404 (not found) for {place}: {text}. Check endpoint_id and function_id of the block."
        )
    return FacilitySetupError(f"Globus answered {status} for {place}: {text}.")


def task_error(name: str, text: str, place: str, login: str) -> FacilityError:
    """Turn the failure of a call's Compute task into one of our errors."""
    last = _last_line(text)
    if "MaxResultSizeExceeded" in text:
        return PayloadTooLarge(f"The answer to {name!r} from {place} is larger than Globus allows.")
    if "Failed validating" in text:
        reason = _last_line(text.partition("Failed validating")[0])
        return FacilitySetupError(
            f"The {place} does not accept user_endpoint_config of the block: {reason}. Remove or correct the "
            "settings that it refuses."
        )
    if re.search(r"[Nn]ot permitted|not allowed", text):
        return FacilitySetupError(
            f"The {place} does not run our function: {last}. Set function_id of the block to the id of a function "
            "that the endpoint allows; to register one, run: prefect-psik functions register."
        )
    if "failed to map to a local user" in text or "local user does not exist" in text:
        return FacilitySetupError(
            f"The {place} has no user for {login}. Ask its administrator to map the client's UUID to a user there."
        )
    # The endpoint may restart a user endpoint before it notices that the last one died; this passes soon.
    lost = re.search(r"WorkerLost|BrokenProcessPool|ManagerLost|shut ?down|restart|Another instance", text)
    return RemoteCodeError(
        f"The call {name!r} failed on {place}: {last}. The traceback is in `remote_traceback`.",
        transient=lost is not None,
        remote_traceback=text,
    )


def silence_asked(failure: BaseException | None) -> float:
    """Seconds for which Globus asks us to send no requests."""
    headers = failure.headers if isinstance(failure, GlobusAPIError) else None
    try:
        return max(0.0, float((headers or {}).get("Retry-After", 0)))
    except ValueError:
        return 0.0


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip(" -")]
    return lines[-1][:500] if lines else "no reason given"
