"""Further endpoints: one that allows only some functions, and one of root's that maps identities to users."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.testbed.daemons import MEMBER
from tests.testbed.endpoint import Endpoint
from tests.testbed.facility import Facility
from tests.testbed.packages import MAPPED_USER, endpoint_bin

_HEARTBEAT_SECONDS = 5
_START_SECONDS = 300.0


class PinnedEndpoint(Endpoint):
    """An endpoint of the facility's user, daemon `pinned-endpoint`, that allows only some functions."""

    daemon = "pinned-endpoint"
    allowed: Sequence[str] = ()

    def _config(self) -> str:
        lines = "".join(f"  - {function_id}\n" for function_id in self.allowed)
        return f"{super()._config()}allowed_functions:\n{lines}"


class MultiUserEndpoint(Endpoint):
    """An endpoint of root's, daemon `multi-user-endpoint`, with identity mapping.

    The tests' client becomes the user `psikmapped`; nobody else is mapped.
    """

    daemon = "multi-user-endpoint"
    user = MAPPED_USER
    allowed: Sequence[str] = ()
    name = "site"

    def start(self, env: Mapping[str, str]) -> None:
        """Start it and wait until the service sees it online.

        Args:
            env: how to reach the service as the site's client. Nothing of it reaches the user endpoints.
        """
        self._configure()
        self._clear_up()
        self._globus.forget_online(self.endpoint_id)
        program = str(endpoint_bin() / "globus-compute-endpoint")
        self._daemons.start(
            self.daemon,
            [*self.wrapper, program, "start", self.name, "--endpoint-uuid", self.endpoint_id],
            env={
                "HOME": str(self._home()),
                "USER": "root",
                "PATH": f"{endpoint_bin()}:/usr/local/bin:/usr/bin:/bin",
                "GLOBUS_COMPUTE_USER_DIR": str(self._home()),
                **env,
            },
        )
        self._daemons.wait_ready(self.daemon, self.is_online, seconds=_START_SECONDS)

    wrapper: Sequence[str] = ()
    """What the program is started by, such as `unshare`."""

    def _user_home(self) -> Path:
        return self._state.root / f"{self.daemon}-users"

    def _configure(self) -> None:
        home = (self.daemon, self.name)
        self._state.directory(self.daemon, mode=0o700)
        self._state.directory(*home, mode=0o700)
        self._state.directory(self._user_home().name, mode=0o1777)
        mapping = self._state.file(*home, "identity_mapping_config.json", text=self._mapping(), mode=0o600)
        allowed = "".join(f"  - {function_id}\n" for function_id in self.allowed)
        config = (
            f"display_name: {self.name}\nheartbeat_period: {_HEARTBEAT_SECONDS}\nemail: admin@example.org\n"
            f"identity_mapping_config_path: {mapping}\n"
        )
        self._state.file(
            *home, "config.yaml", text=config + (f"allowed_functions:\n{allowed}" if allowed else ""), mode=0o600
        )
        self._state.file(*home, "user_config_template.yaml.j2", text=self._template())
        # The environment of user endpoints is wiped: what they need to work is all here, and no secret is.
        environment = {
            "PATH": f"{endpoint_bin()}:/usr/local/bin:/usr/bin:/bin",
            "GLOBUS_COMPUTE_USER_DIR": str(self._user_home()),
            "SLURM_CONF": str(self._state.root / "slurm" / "slurm.conf"),
            MEMBER: str(self._state.root),
        }
        text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in environment.items())
        self._state.file(*home, "user_environment.yaml", text=text)

    def _mapping(self) -> str:
        """Return the mapping: a client has no e-mail address, so it is matched by its UUID."""
        rule = {"source": "{id}", "match": self._globus.client_id, "output": MAPPED_USER}
        return json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [rule]}])

    def _clear_up(self) -> None:
        super()._clear_up()
        for pid_file in self._user_home().glob("*/daemon.pid"):
            pid_file.unlink(missing_ok=True)


@contextmanager
def pinned_endpoint(facility: Facility, *allowed: str) -> Iterator[PinnedEndpoint]:
    """Run an endpoint that allows only these functions, beside the facility's own."""
    endpoint = PinnedEndpoint(facility.state, facility.daemons, facility.globus)
    endpoint.allowed = allowed
    try:
        endpoint.start({**facility.globus.env("owner"), **facility.slurm.env})
        yield endpoint
    finally:
        endpoint.stop()


@contextmanager
def multi_user_endpoint(
    facility: Facility, *allowed: str, daemon: str = MultiUserEndpoint.daemon, wrapper: Sequence[str] = ()
) -> Iterator[MultiUserEndpoint]:
    """Run an endpoint of root's beside the facility's own; without functions named it allows all.

    Args:
        facility: Where.
        allowed: Functions.
        daemon: Two at a time need two names.
        wrapper: What starts the program, such as `unshare`.
    """
    endpoint = MultiUserEndpoint(facility.state, facility.daemons, facility.globus)
    endpoint.allowed, endpoint.daemon, endpoint.wrapper = allowed, daemon, wrapper
    try:
        endpoint.start(facility.globus.env("site"))
        yield endpoint
    finally:
        endpoint.stop()


def mapped_prefix(facility: Facility) -> Path:
    """Return a directory for psik's jobs of the mapped user."""
    return facility.state.directory("mapped-prefix", owner=MAPPED_USER)
