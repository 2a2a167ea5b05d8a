"""The emulator of Globus as a daemon of the testbed, its admin routes, and how clients are pointed at it."""

from __future__ import annotations

import json
import secrets
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from tests.testbed.broker import Broker
from tests.testbed.daemons import Daemons
from tests.testbed.emulator.capture import Finding, Message, find_pickles, read_capture
from tests.testbed.emulator.config import Config, KnownClient
from tests.testbed.state import State

_REPOSITORY = Path(__file__).resolve().parents[2]
_SDK_PORT = 5000
"""Where the SDK looks for its environment "local"; hard-wired there."""
_START_SECONDS = 30.0
_ADMIN_SECONDS = 10.0


class Globus:
    """The emulator; its daemon is `emulator`."""

    def __init__(self, state: State, daemons: Daemons, broker: Broker) -> None:
        self._state = state
        self._daemons = daemons
        self._broker = broker

    @property
    def url(self) -> str:
        """Return its base URL."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def client_id(self) -> str:
        """Return the id of the client that tests use: the beamline's service account."""
        return self._state.need("client_id", lambda: str(uuid.uuid4()))

    @property
    def client_secret(self) -> str:
        """Return that client's secret."""
        return self._state.need("client_secret", lambda: secrets.token_hex(24))

    @property
    def owner_id(self) -> str:
        """Return the id of the client that owns the endpoint: linked to the other, metered apart."""
        return self._state.need("owner_id", lambda: str(uuid.uuid4()))

    @property
    def crowd_id(self) -> str:
        """Return the id of a second client of the beamline, with a request limit of its own."""
        return self._state.need("crowd_id", lambda: str(uuid.uuid4()))

    @property
    def site_id(self) -> str:
        """Return the id of the site's client, linked to nobody: it owns endpoints that root runs."""
        return self._state.need("site_id", lambda: str(uuid.uuid4()))

    @property
    def stranger_id(self) -> str:
        """Return the id of a client that nobody has anything to do with."""
        return self._state.need("stranger_id", lambda: str(uuid.uuid4()))

    @property
    def stranger_secret(self) -> str:
        """Return that client's secret."""
        return self._state.need("stranger_secret", lambda: secrets.token_hex(24))

    @property
    def capture_file(self) -> Path:
        """Return the file of every message that crossed the broker."""
        return self._state.root / "emulator" / "capture.jsonl"

    def start(self) -> None:
        """Start it, if it does not run, and wait until it answers.

        Raises:
            TestbedError: it does not; names its log.
        """
        if self._daemons.find("emulator") is None:
            self._state.directory("emulator", mode=0o700)
            path = self._state.file("emulator", "config.json", text=self._config().dumps(), mode=0o600)
            self._daemons.start(
                "emulator",
                [sys.executable, "-m", "tests.testbed.emulator", str(path)],
                env={"PYTHONPATH": str(_REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
            )
        self._daemons.wait_ready("emulator", self._answers, seconds=_START_SECONDS)

    def stop(self) -> None:
        """Stop it. What it knows is on disk and there again after a start."""
        self._daemons.stop("emulator")

    def client_env(self) -> dict[str, str]:
        """Return the environment that points the SDK here, as the tests' client."""
        return {
            **self._where(),
            "GLOBUS_COMPUTE_CLIENT_ID": self.client_id,
            "GLOBUS_COMPUTE_CLIENT_SECRET": self.client_secret,
        }

    def owner_env(self) -> dict[str, str]:
        """Return the environment that points the endpoint here, as its owner."""
        return {
            **self._where(),
            "GLOBUS_COMPUTE_CLIENT_ID": self.owner_id,
            "GLOBUS_COMPUTE_CLIENT_SECRET": self._owner_secret,
        }

    def crowd_env(self) -> dict[str, str]:
        """Return the environment that points the SDK here, as the client of many processes."""
        return {
            **self._where(),
            "GLOBUS_COMPUTE_CLIENT_ID": self.crowd_id,
            "GLOBUS_COMPUTE_CLIENT_SECRET": self._crowd_secret,
        }

    def site_env(self) -> dict[str, str]:
        """Return the environment that points an endpoint of the site here."""
        return {
            **self._where(),
            "GLOBUS_COMPUTE_CLIENT_ID": self.site_id,
            "GLOBUS_COMPUTE_CLIENT_SECRET": self._site_secret,
        }

    def meter(self) -> dict[str, dict[str, Any]]:
        """Return the requests since the last reset, by client id; a client without requests is absent."""
        report: dict[str, dict[str, Any]] = self._admin("GET", "meter")
        return report

    def reset_meter(self) -> None:
        """Start counting requests anew."""
        self._admin("DELETE", "meter")

    def order_fault(self, kind: str, **fields: object) -> None:
        """Have the emulator misbehave; kinds and fields are in `emulator/faults.py`."""
        self._admin("POST", "faults", {"kind": kind, **fields})

    def clear_faults(self) -> None:
        """Drop all ordered faults."""
        self._admin("DELETE", "faults")

    def forget_functions(self) -> None:
        """Have the service forget all registered functions."""
        self._admin("DELETE", "functions")

    def is_online(self, endpoint_id: str) -> bool:
        """Say whether the emulator hears this endpoint's heartbeat."""
        return bool(self._admin("GET", f"online/{endpoint_id}")["online"])

    def forget_online(self, endpoint_id: str) -> None:
        """Have an endpoint taken for offline until its next heartbeat."""
        self._admin("DELETE", f"online/{endpoint_id}")

    def messages(self) -> list[Message]:
        """Return every message that crossed the broker in this run."""
        return list(read_capture(self.capture_file))

    def pickles(self) -> list[Finding]:
        """Return every pickled object among those messages."""
        return find_pickles(self.capture_file)

    @property
    def _port(self) -> int:
        return self._state.port("emulator", wish=_SDK_PORT)

    @property
    def _owner_secret(self) -> str:
        return self._state.need("owner_secret", lambda: secrets.token_hex(24))

    @property
    def _crowd_secret(self) -> str:
        return self._state.need("crowd_secret", lambda: secrets.token_hex(24))

    @property
    def _site_secret(self) -> str:
        return self._state.need("site_secret", lambda: secrets.token_hex(24))

    def _config(self) -> Config:
        user, owner, crowd = self.client_id, self.owner_id, self.crowd_id
        alone = ((self.site_id, self._site_secret), (self.stranger_id, self.stranger_secret))
        return Config(
            port=self._port,
            broker_url=self._broker.url,
            directory=str(self._state.root / "emulator"),
            token_key=self._state.need("token_key", lambda: secrets.token_hex(32)),
            clients=(
                KnownClient(user, self.client_secret, f"{user}@clients.auth.globus.org", (user, owner)),
                KnownClient(crowd, self._crowd_secret, f"{crowd}@clients.auth.globus.org", (crowd, owner)),
                KnownClient(owner, self._owner_secret, f"{owner}@clients.auth.globus.org", (owner, user, crowd)),
                *(KnownClient(who, secret, f"{who}@clients.auth.globus.org", (who,)) for who, secret in alone),
            ),
        )

    def _where(self) -> dict[str, str]:
        env = {
            "GLOBUS_SDK_ENVIRONMENT": "local",
            "GLOBUS_SDK_SERVICE_URL_AUTH": self.url,
            "GLOBUS_SDK_SERVICE_URL_TRANSFER": self.url,
        }
        if self._port != _SDK_PORT:
            # The SDK's port is taken: be the proxy on the way to it, and leave what goes to 127.0.0.1 alone.
            env |= {"http_proxy": self.url, "no_proxy": "127.0.0.1"}
        return env

    def _answers(self) -> bool:
        try:
            self._admin("GET", "health")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True

    def _admin(self, method: str, path: str, body: dict[str, object] | None = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.url}/_emulator/{path}", data=data, method=method)
        without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with without_proxy.open(request, timeout=_ADMIN_SECONDS) as reply:
            return json.load(reply)
