"""`python -m tests.chaos.reconciler`: reconciles again and again, as a beamline would have it on a schedule.

Prefect sets a flow run to Cancelled, and runs no hook of it, if its worker has not yet prepared the process that
is to run it again. The jobs of the run before are canceled by nobody else then.
"""

from __future__ import annotations

import time

from flows.reconcile import reconcile
from tests.chaos.flows import BACKEND, place

PAUSE_SECONDS = 15.0
#: So long it leaves a job to the cancel of its own flow run: Prefect's 30 s, and the hook after that.
PATIENCE_SECONDS = 45.0
#: Below the place: a line for each job that it canceled.
DONE = "reconciled"


def main() -> None:
    """Reconcile until killed."""
    first: dict[str, float] = {}
    while True:
        try:
            now, findings = time.monotonic(), reconcile([BACKEND])
            first = {found.id: first.get(found.id, now) for found in findings}
            if first and all(now - since > PATIENCE_SECONDS for since in first.values()):
                findings = reconcile([BACKEND], cancel=True)
        except Exception as err:  # noqa: BLE001 - whatever a fault does to it, the next round is another one
            print(f"reconcile: {err}", flush=True)
        else:
            with (place() / DONE).open("a") as out:
                out.writelines(f"{found}\n" for found in findings if found.done != "reported")
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
