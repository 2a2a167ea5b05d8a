"""Endpoints as the service sees them: registration, presence by heartbeat, start of user endpoints."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from tests.testbed.emulator.config import KnownClient
from tests.testbed.emulator.messages import Json, Refusal
from tests.testbed.emulator.store import Store, Task
from tests.testbed.emulator.wire import HEARTBEATS, RESULTS, Wire, unpack

_MISSED_HEARTBEATS = 2.5
_RUNNERS = uuid.UUID("6f1c3c0e-6a3c-4c53-9d53-5f0a6f2b8a11")


@dataclass(frozen=True)
class Sign:
    """The last sign of life of an endpoint or user endpoint."""

    at: float
    period: float
    report: Json


class Endpoints:
    """Registered endpoints. `fail` is called for each task of a user endpoint that could not start."""

    def __init__(self, store: Store, wire: Wire, fail: Callable[[Task, str], None]) -> None:
        self._store = store
        self._wire = wire
        self._fail = fail
        self._mutex = threading.Lock()
        self._signs: dict[str, Sign] = {}

    def register(self, caller: KnownClient, body: Json, endpoint_id: str | None) -> Json:
        """Register or renew an endpoint; start again what its user endpoints still owe."""
        key = endpoint_id or str(uuid.uuid4())
        known = self._store.get("endpoint", key)
        if known is not None and known["owner"] != caller.client_id:
            raise Refusal(403, "RESOURCE_ACCESS_FORBIDDEN", f"Endpoint {key} belongs to someone else.")
        self._store.put("endpoint", key, {**body, "owner": caller.client_id})
        self._wire.purge(f"{key}.commands")
        self._start_debtors(key)
        url = self._wire.connection_url()
        return {
            "endpoint_id": key,
            "command_queue_info": {"connection_url": url, "queue": f"{key}.commands"},
            "heartbeat_queue_info": self._outlet(HEARTBEATS, key),
        }

    def delete(self, endpoint_id: str) -> None:
        """Forget an endpoint, as when its owner deletes it. It is known again once it registers."""
        self._store.delete("endpoint", endpoint_id)
        self.forget_sign(endpoint_id)

    def need(self, endpoint_id: str) -> Json:
        """Return an endpoint.

        Raises:
            Refusal: 404, there is none.
        """
        found = self._store.get("endpoint", endpoint_id)
        if found is None:
            raise Refusal(404, "ENDPOINT_NOT_FOUND", f"Endpoint {endpoint_id} is not known.")
        return found

    def need_usable(self, caller: KnownClient, endpoint_id: str) -> Json:
        """Return an endpoint that the caller may use: owns, also by a linked identity, or one that maps users.

        Whom a multi-user endpoint maps is its own affair.
        """
        found = self.need(endpoint_id)
        if not found.get("multi_user") and found["owner"] not in caller.identity_set:
            raise Refusal(403, "RESOURCE_ACCESS_FORBIDDEN", f"Endpoint {endpoint_id} belongs to someone else.")
        return found

    def describe(self, endpoint_id: str) -> Json:
        """Return what the service tells about an endpoint."""
        found = self.need(endpoint_id)
        metadata = found.get("metadata") or {}
        return {
            "uuid": endpoint_id,
            "name": found.get("endpoint_name"),
            "display_name": found.get("display_name"),
            "multi_user": bool(found.get("multi_user")),
            "public": bool(found.get("public")),
            "owner_id": found["owner"],
            **metadata,
        }

    def status(self, endpoint_id: str) -> Json:
        """Return whether an endpoint is online: whether its heartbeats come."""
        self.need(endpoint_id)
        return {"status": "online" if self.is_online(endpoint_id) else "offline", "details": {}}

    def is_online(self, key: str) -> bool:
        """Say whether this endpoint or user endpoint gave a sign of life lately."""
        with self._mutex:
            sign = self._signs.get(key)
        return sign is not None and time.monotonic() - sign.at < _MISSED_HEARTBEATS * sign.period

    def forget_sign(self, key: str) -> None:
        """Take an endpoint for offline until its next heartbeat."""
        with self._mutex:
            self._signs.pop(key, None)

    def on_heartbeat(self, body: bytes) -> None:
        """Take note of a sign of life; a period of zero or `active: false` is a farewell."""
        data = unpack(body)
        key = str(data["endpoint_id"])
        report: Json = data.get("global_state") or data.get("ep_status_report") or {}
        gone = report.get("active") is False or "error" in report
        period = 0.0 if gone else float(report.get("heartbeat_period", 0))
        with self._mutex:
            self._signs[key] = Sign(time.monotonic(), period, report)
        if "error" in report:
            self._wire.purge(f"{key}.tasks")
            for task in self._store.unanswered(runner=key):
                self._fail(task, f"User endpoint failed to start: {report['error']}")
        elif period and self._store.get("endpoint", key) is not None:
            self._start_debtors(key)

    def runner(self, caller: KnownClient, endpoint_id: str, options: Json, runtime: Json) -> str:
        """Return the id of the user endpoint for this caller and these options, its queue made."""
        key = str(uuid.uuid5(_RUNNERS, json.dumps([endpoint_id, caller.client_id, options], sort_keys=True)))
        self._wire.declare(f"{key}.tasks")
        command: Json = {
            "command": "cmd_start_endpoint",
            "args": [],
            "kwargs": {
                "name": f"uep.{endpoint_id}.{key}",
                "user_opts": options,
                "user_runtime": runtime,
                "amqp_creds": {
                    "endpoint_id": key,
                    "task_queue_info": {
                        "connection_url": self._wire.connection_url(),
                        "queue": f"{key}.tasks",
                    },
                    "result_queue_info": self._outlet(RESULTS, key),
                    "heartbeat_queue_info": self._outlet(HEARTBEATS, key),
                },
            },
            "globus_effective_identity": caller.client_id,
            "globus_username": caller.username,
            "globus_identity_set": [_identity(identity) for identity in caller.identity_set],
        }
        self._store.put("runner", key, {"endpoint": endpoint_id, "command": command})
        return key

    def start(self, runner: str) -> None:
        """Have a user endpoint started; an endpoint that has it running already ignores that."""
        known = self._store.get("runner", runner)
        if known is not None:
            self._command(known["endpoint"], known["command"])

    def _start_debtors(self, endpoint_id: str) -> None:
        """Have those user endpoints of an endpoint started that owe answers and give no sign of life.

        A start command can be lost: an endpoint ignores it until it has noticed that the process died.
        """
        for runner, known in self._store.all("runner").items():
            owes = known["endpoint"] == endpoint_id and bool(self._store.unanswered(runner=runner))
            if owes and not self.is_online(runner):
                self._command(endpoint_id, known["command"])

    def _command(self, endpoint_id: str, command: Json) -> None:
        queue = f"{endpoint_id}.commands"
        self._wire.declare(queue)
        self._wire.publish("command", queue, json.dumps(command).encode(), json_body=True)

    def _outlet(self, exchange: str, key: str) -> Json:
        """Return how an endpoint is to publish to one of the service's exchanges."""
        return {
            "connection_url": self._wire.connection_url(),
            "exchange": exchange,
            "queue": exchange,
            "queue_publish_kwargs": {
                "exchange": exchange,
                "routing_key": f"{key}.{exchange}",
                "mandatory": True,
                "properties": {"delivery_mode": 2},
            },
        }


def _identity(client_id: str) -> Json:
    """Return a client's identity as endpoints see it: what mappings can match."""
    return {
        "sub": client_id,
        "id": client_id,
        "username": f"{client_id}@clients.auth.globus.org",
        "status": "used",
    }
