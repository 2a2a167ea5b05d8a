"""A RabbitMQ of this run's own: node, cookie, directories and epmd, all on loopback."""

from __future__ import annotations

import secrets
import socket

from tests.testbed.daemons import Daemons
from tests.testbed.state import State

_START_SECONDS = 300.0
_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
_SYSTEM_USER = "rabbitmq"
_LOGIN = "testbed"
_AMQP_GREETING = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = 1


class Broker:
    """One RabbitMQ; its daemons are `epmd` and `rabbitmq`."""

    def __init__(self, state: State, daemons: Daemons) -> None:
        self._state = state
        self._daemons = daemons

    @property
    def url(self) -> str:
        """Return the AMQP URL, login included."""
        password = self._state.need("broker_password", lambda: secrets.token_hex(16))
        return f"amqp://{_LOGIN}:{password}@127.0.0.1:{self._state.port('rabbitmq')}/%2F"

    def start(self) -> None:
        """Start what does not run and wait until the broker greets.

        Raises:
            TestbedError: it did not come up; names its log.
        """
        env = self._configure()
        if self._daemons.find("epmd") is None:
            self._daemons.start("epmd", ["epmd"], env=env, user=_SYSTEM_USER)
            self._daemons.wait_ready("epmd", self._epmd_listens, seconds=_START_SECONDS)
        if self._daemons.find("rabbitmq") is None:
            self._daemons.start("rabbitmq", [_SERVER], env=env, user=_SYSTEM_USER)
        self._daemons.wait_ready("rabbitmq", self._greets, seconds=_START_SECONDS)

    def stop(self) -> None:
        """Stop the broker and its epmd."""
        self._daemons.stop("rabbitmq")
        self._daemons.stop("epmd")

    def _configure(self) -> dict[str, str]:
        home = self._state.directory("rabbitmq", mode=0o750, owner=_SYSTEM_USER)
        for name in ("mnesia", "log"):
            self._state.directory("rabbitmq", name, owner=_SYSTEM_USER)
        cookie = home / ".erlang.cookie"
        if not cookie.exists():
            self._write(".erlang.cookie", secrets.token_hex(16), mode=0o400)
        self._write("plugins", "[].\n")
        self._write("env", "")
        password = self.url.split("@")[0].rpartition(":")[2]
        self._write(
            "rabbitmq.conf",
            f"listeners.tcp.loopback = 127.0.0.1:{self._state.port('rabbitmq')}\n"
            f"default_user = {_LOGIN}\n"
            f"default_pass = {password}\n"
            "disk_free_limit.absolute = 100MB\n"
            "log.console = true\n"
            "log.file = false\n",
        )
        distribution = self._state.port("erlang")
        return {
            "HOME": str(home),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._state.port("epmd")),
            "RABBITMQ_NODENAME": f"testbed-{distribution}@localhost",
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none",
            # Makes the start script become the server instead of waiting for it: the recorded pid is its.
            "RABBITMQ_ALLOW_INPUT": "true",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
            "RABBITMQ_CONF_ENV_FILE": str(home / "env"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
        }

    def _write(self, name: str, text: str, *, mode: int = 0o644) -> None:
        self._state.file("rabbitmq", name, text=text, mode=mode, owner=_SYSTEM_USER)

    def _epmd_listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._state.port("epmd")), timeout=1):
                return True
        except OSError:
            return False

    def _greets(self) -> bool:
        """Say whether the broker answers an AMQP greeting, as it does when its boot is complete."""
        try:
            with socket.create_connection(("127.0.0.1", self._state.port("rabbitmq")), timeout=2) as link:
                link.sendall(_AMQP_GREETING)
                answer = link.recv(1)
        except OSError:
            return False
        return answer == bytes([_METHOD_FRAME])
