"""The emulator of Globus as a daemon of the testbed, its admin routes, and how clients are pointed at it."""

from __future__ import annotations

import json
import os
import pwd
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
from tests.testbed.emulator.config import Collection, Config, Consent, KnownClient
from tests.testbed.emulator.meter import LIMIT
from tests.testbed.packages import FACILITY_USER
from tests.testbed.state import State

#: Logins that only the soak uses: several, since one alone would take 10 min for 1,000 calls.
SOAK_LOGINS = tuple(f"soak-{number}" for number in range(1, 6))
#: Logins that are linked to the endpoint's owner, which comes first, and may use its endpoint: the tests' client,
#: that of many processes, and one for requests past our transport.
LINKED = ("owner", "client", "crowd", "probe", *SOAK_LOGINS)
#: With those linked to nobody: the site's, which owns endpoints that root runs, and a stranger's.
LOGINS = (*LINKED, "site", "stranger")

_REPOSITORY = Path(__file__).resolve().parents[2]
_SDK_PORT = 5000
"""Where the SDK looks for its environment "local"; hard-wired there."""
_START_SECONDS = 300.0
COLLECTIONS: dict[str, Consent] = {"home": "none", "scratch": "none", "mapped": "data_access", "vault": "never"}
"""Collections of Globus Transfer, and the consent that each asks for."""
_ADMIN_SECONDS = 60.0


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
        return self.login("client")[0]

    @property
    def client_secret(self) -> str:
        """Return that client's secret."""
        return self.login("client")[1]

    def login(self, name: str) -> tuple[str, str]:
        """Return id and secret of one of `LOGINS`."""
        client_id = self._state.need(f"{name}_id", lambda: str(uuid.uuid4()))
        return client_id, self._state.need(f"{name}_secret", lambda: secrets.token_hex(24))

    @property
    def capture_file(self) -> Path:
        """Return the file of every message that crossed the broker."""
        return self._state.root / "emulator" / "capture.jsonl"

    def collection(self, name: str) -> Collection:
        """Return a collection.

        `home` is the beamline's, `scratch` the facility's (its jobs see it, too). `mapped` asks for the
        `data_access` consent, which a client gives itself; `vault` for one that nobody has.
        """
        root = self._state.root / "data" if name == "scratch" else self._state.root / "collections" / name
        return Collection(
            id=self._state.need(f"collection_{name}", lambda: str(uuid.uuid4())),
            name=name,
            root=str(root),
            consent=COLLECTIONS[name],
            owner=FACILITY_USER if name == "scratch" and _can_become(FACILITY_USER) else None,
        )

    def start(self) -> None:
        """Start it, if it does not run, and wait until it answers.

        Raises:
            TestbedError: it does not; names its log.
        """
        if self._daemons.find("emulator") is None:
            self._state.directory("emulator", mode=0o700)
            for name in COLLECTIONS:
                root = Path(self.collection(name).root).relative_to(self._state.root)
                self._state.directory(*root.parts, mode=0o1777)
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

    def env(self, name: str = "client") -> dict[str, str]:
        """Return the environment that points the SDK, or an endpoint, here as one of `LOGINS`."""
        client_id, secret = self.login(name)
        return {
            **self._where(),
            "GLOBUS_COMPUTE_CLIENT_ID": client_id,
            "GLOBUS_COMPUTE_CLIENT_SECRET": secret,
        }

    def meter(self) -> dict[str, dict[str, Any]]:
        """Return the requests since the last reset, by client id; a client without requests is absent."""
        report: dict[str, dict[str, Any]] = self._admin("GET", "meter")
        return report

    def reset_meter(self) -> None:
        """Start counting requests anew."""
        self._admin("DELETE", "meter")

    def peaks(self) -> dict[str, int]:
        """Return the most requests in 10 s that each login ever sent; resets and restarts do not lower it.

        Every request counts from its arrival on, answered or not, with a good login or a bad one.
        """
        names = {self.login(name)[0]: name for name in LOGINS}
        found: dict[str, int] = self._admin("GET", "peaks")
        return dict.fromkeys(LOGINS, 0) | {names.get(key, key or "nobody"): most for key, most in found.items()}

    def recent(self, name: str) -> int:
        """Return how many requests of a login arrived within the last 10 s."""
        return int(self._admin("GET", f"recent/{self.login(name)[0]}")["requests"])

    def over_the_limit(self) -> dict[str, int]:
        """Return the peaks of more than 20."""
        return {name: most for name, most in self.peaks().items() if most > LIMIT}

    def forget_peaks(self, only: str | None = None) -> None:
        """Forget what `over_the_limit` looks at, as a new session of tests does; or that of one login."""
        self._admin("DELETE", f"peaks/{self.login(only)[0]}" if only else "peaks")

    def change_secret(self, name: str, secret: str) -> None:
        """Give a login another secret, until the emulator's next start; tokens of the old one are refused."""
        self._admin("POST", "secrets", {"client_id": self.login(name)[0], "secret": secret})

    def order_fault(self, kind: str, **fields: object) -> None:
        """Have the emulator misbehave; kinds and fields are in `emulator/faults.py`."""
        self._admin("POST", "faults", {"kind": kind, **fields})

    def begin_weather(self, seed: int, *, strength: float = 1.0) -> None:
        """Have the emulator misbehave at random, by the dice of this seed, until `clear_faults`."""
        self._admin("POST", "weather", {"seed": seed, "strength": strength})

    def happened(self) -> dict[str, int]:
        """Return how often each fault happened since the weather began, or the emulator was started."""
        found: dict[str, int] = self._admin("GET", "faults")
        return found

    def clear_faults(self) -> None:
        """Drop all ordered faults, and have fair weather."""
        self._admin("DELETE", "faults")

    def transfers(self) -> list[dict[str, Any]]:
        """Return the documents of all Transfer tasks, oldest first."""
        found: list[dict[str, Any]] = self._admin("GET", "transfers")["tasks"]
        return found

    def forget_functions(self) -> None:
        """Have the service forget all registered functions."""
        self._admin("DELETE", "functions")

    def delete_endpoint(self, endpoint_id: str) -> None:
        """Have the service forget an endpoint, until it is started again."""
        self._admin("DELETE", f"endpoints/{endpoint_id}")

    def is_online(self, endpoint_id: str) -> bool:
        """Say whether the emulator hears this endpoint's heartbeat."""
        return bool(self._admin("GET", f"online/{endpoint_id}")["online"])

    def forget_online(self, endpoint_id: str) -> None:
        """Have an endpoint taken for offline until its next heartbeat."""
        self._admin("DELETE", f"online/{endpoint_id}")

    def messages(self) -> list[Message]:
        """Return every message that crossed the broker in this run."""
        return list(read_capture(self.capture_file))

    def pickles(self, *, since: float = 0.0) -> list[Finding]:
        """Return every pickled object among those messages, or among those from this moment on."""
        return [found for found in find_pickles(self.capture_file) if found.message.at >= since]

    @property
    def _port(self) -> int:
        first = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0"  # the others would race it
        return self._state.port("emulator", wish=_SDK_PORT if first else None)

    def _config(self) -> Config:
        ids = {name: self.login(name)[0] for name in LOGINS}
        owner, *others = (ids[name] for name in LINKED)
        linked = {owner: (owner, *others)} | {client: (client, owner) for client in others}
        clients = tuple(
            KnownClient(key, self.login(name)[1], f"{key}@clients.auth.globus.org", linked.get(key, (key,)))
            for name, key in ids.items()
        )
        return Config(
            port=self._port,
            broker_url=self._broker.url,
            directory=str(self._state.root / "emulator"),
            token_key=self._state.need("token_key", lambda: secrets.token_hex(32)),
            clients=clients,
            collections=tuple(self.collection(name) for name in COLLECTIONS),
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


def _can_become(name: str) -> bool:
    """Say whether this process may give files to a user."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return os.getuid() == 0
