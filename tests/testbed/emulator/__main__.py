"""`python -m tests.testbed.emulator CONFIG.json`: runs the emulator until it is ended."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tests.testbed.emulator.capture import Capture
from tests.testbed.emulator.config import Config
from tests.testbed.emulator.endpoints import Endpoints
from tests.testbed.emulator.faults import Faults
from tests.testbed.emulator.identity import Auth
from tests.testbed.emulator.meter import Meter
from tests.testbed.emulator.store import Store
from tests.testbed.emulator.tasks import Tasks
from tests.testbed.emulator.transfer import Transfer
from tests.testbed.emulator.web import App, server
from tests.testbed.emulator.wire import HEARTBEATS, RESULTS, Wire


def main() -> None:
    """Put the parts together and serve."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("pika").setLevel(logging.WARNING)
    config = Config.load(Path(sys.argv[1]))
    directory = Path(config.directory)
    faults = Faults()
    wire = Wire(config.broker_url, Capture(directory / "capture.jsonl"))
    store = Store(directory / "emulator.sqlite")
    tasks = Tasks(store, wire, faults)
    endpoints = Endpoints(store, wire, tasks.fail)
    wire.consume({RESULTS: tasks.on_result, HEARTBEATS: endpoints.on_heartbeat})
    auth = Auth(config)
    transfer = Transfer(auth, config.collections, faults)
    server(App(auth, endpoints, tasks, transfer, wire, Meter(store), faults), config.port).serve_forever()


if __name__ == "__main__":
    main()
