"""Where the Prefect server of this process of tests will be, if a test asks for it."""

from __future__ import annotations

import random

from tests.testbed.state import port_is_free

#: None of those that a facility chooses from.
PORT = next(port for port in iter(lambda: random.randrange(10_000, 15_000), None) if port_is_free(port))
API_URL = f"http://127.0.0.1:{PORT}/api"
