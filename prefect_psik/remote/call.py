"""The entry point: `call`."""

from __future__ import annotations

import platform
import socket
import sys
import time
from typing import Any

from prefect_psik.remote.cancel import cancel
from prefect_psik.remote.fetch import check, fetch
from prefect_psik.remote.files import _user
from prefect_psik.remote.inventory import list_jobs, remove
from prefect_psik.remote.preflight import preflight
from prefect_psik.remote.status import status
from prefect_psik.remote.submit import submit
from prefect_psik.remote.usage import usage
from prefect_psik.remote.wire import DEFECTS, PROTOCOL, Trouble, _defect, _os_trouble


def call(name: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Carry out one operation; the only entry point.

    Returns:
        The operation's answer, or `{"error": {"kind", "message", ...}}`; always with the facility's clock.
    """
    try:
        if name not in OPERATIONS or not isinstance(payload, dict):
            raise Trouble("payload", f"There is no operation {name!r} in protocol {PROTOCOL}.")
        answer = OPERATIONS[name](payload)
    except Trouble as trouble:
        answer = {"error": trouble.answer}
    except OSError as err:
        answer = {"error": _os_trouble(err).answer}
    except DEFECTS as err:
        answer = {"error": _defect(name, err).answer}
    answer["now"] = time.time()
    return answer


def hello(payload: dict[str, Any]) -> dict[str, Any]:
    """Report who and what answers."""
    return {
        "protocol": PROTOCOL,
        "host": socket.gethostname(),
        "user": _user(),
        "python": platform.python_version(),
        "executable": sys.executable,
    }


OPERATIONS = {
    "submit": submit,
    "status": status,
    "cancel": cancel,
    "check": check,
    "fetch": fetch,
    "usage": usage,
    "list": list_jobs,
    "remove": remove,
    "preflight": preflight,
    "hello": hello,
}
