"""The HTTP face: routes, and for each request the token, the limits, the faults and the meter."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pika.exceptions import AMQPError  # type: ignore[import-untyped]

from tests.testbed.emulator.config import KnownClient
from tests.testbed.emulator.endpoints import Endpoints
from tests.testbed.emulator.faults import Faults
from tests.testbed.emulator.identity import COMPUTE, TRANSFER, Auth
from tests.testbed.emulator.messages import Json, Refusal, Reply, Request
from tests.testbed.emulator.meter import Entry, Meter
from tests.testbed.emulator.tasks import Tasks
from tests.testbed.emulator.transfer import Transfer
from tests.testbed.emulator.wire import RESULT_QUEUE_PREFIX, Wire

MAX_BODY_BYTES = 10 * 1024 * 1024
_MAX_READ_BYTES = 64 * 1024 * 1024
_VERSIONS = {"api": "1.0.0", "min_sdk_version": "1.0.0", "min_ep_version": "1.0.0"}
#: Auth and Transfer, which have limits of their own: what the meter holds everyone to is the compute service's.
_OTHER_SERVICES = ("/v2/oauth2/", "/v2/api/", "/v0.10/")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}", re.IGNORECASE)

Act = Callable[[KnownClient, Request, str], Any]
Route = tuple[str, str, Act]

log = logging.getLogger(__name__)


class DropReply(Exception):
    """Close the connection instead of replying."""


class App:
    """Answers requests. Knows no sockets."""

    def __init__(
        self,
        auth: Auth,
        endpoints: Endpoints,
        tasks: Tasks,
        transfer: Transfer,
        wire: Wire,
        meter: Meter,
        faults: Faults,
    ) -> None:
        self._auth = auth
        self._meter = meter
        self._faults = faults
        self._endpoints = endpoints
        self._tasks = tasks
        self._routes = _routes(endpoints, tasks, wire)
        self._transfers = transfer
        self._transfer_routes = transfer.routes()

    def answer(self, request: Request) -> Reply:
        """Answer a request.

        Raises:
            DropReply: a fault asks for it.
        """
        try:
            if request.path.startswith("/_emulator/"):
                return self._admin(request)
            if not request.path.startswith(_OTHER_SERVICES):
                self._meter.note(self._auth.claimed(request))
            if self._faults.is_away(f"{request.method} {request.path}"):
                raise DropReply
            if request.path == "/v2/oauth2/token":
                return self._auth.token(request)
            if request.path == "/v2/oauth2/token/revoke":
                return self._auth.revoke(request)
            if request.path == "/v2/oauth2/userinfo":
                return self._auth.userinfo(request)
            if request.path == "/v2/api/identities":
                return self._auth.identities(request)
            if request.path.startswith("/v0.10/"):
                return self._transfer(self._auth.caller(request, server=TRANSFER), request)
            caller = self._auth.caller(request, server=COMPUTE)
        except Refusal as refusal:
            return refusal.reply()
        return self._metered(caller, request)

    def _metered(self, caller: KnownClient, request: Request) -> Reply:
        name = f"{request.method} {request.path}"
        at = time.monotonic()
        try:
            self._meter.admit(caller.client_id)
            reply = self._act(self._routes, caller, request, name)
        except Refusal as refusal:
            reply = refusal.reply()
        except AMQPError as err:
            log.exception("%s needs the broker", name)
            reply = Refusal(503, "SERVICE_UNAVAILABLE", f"The broker is away: {type(err).__name__}.").reply()
        size = len(json.dumps(reply.body))
        route = _UUID.sub("*", name)
        self._meter.record(caller.client_id, Entry(at, route, reply.status, request.length, size))
        if reply.status == 200 and self._faults.take("drop_reply", name):
            raise DropReply
        return reply

    def _transfer(self, caller: KnownClient, request: Request) -> Reply:
        name = f"{request.method} {request.path}"
        reply = self._act(self._transfer_routes, caller, request, name)
        if self._faults.take("drop_reply", name):
            raise DropReply
        return reply

    def _act(self, routes: list[Route], caller: KnownClient, request: Request, name: str) -> Reply:
        if request.length > MAX_BODY_BYTES:
            raise Refusal(
                413,
                "TASK_PAYLOAD_TOO_LARGE",
                f"{request.length} bytes are more than the limit of {MAX_BODY_BYTES}.",
            )
        if delay := self._faults.take("delay", name):
            time.sleep(delay.seconds)
        if fault := self._faults.take("error", name):
            raise Refusal(fault.status, fault.code, "Ordered by a test.")
        for method, pattern, act in routes:
            match = re.fullmatch(pattern, request.path)
            if match and method == request.method:
                return Reply(200, act(caller, request, match.group(1) if match.groups() else ""))
        raise Refusal(404, "NOT_FOUND", f"The emulator has no route {name}.")

    def _admin(self, request: Request) -> Reply:
        name = f"{request.method} {request.path}"
        if name == "GET /_emulator/meter":
            return Reply(200, self._meter.report())
        if name == "GET /_emulator/peaks":
            return Reply(200, self._meter.peaks())
        if name.startswith("GET /_emulator/recent/"):
            return Reply(200, {"requests": self._meter.recent(name.rpartition("/")[2])})
        if name == "GET /_emulator/faults":
            return Reply(200, self._faults.happened())
        if name == "GET /_emulator/transfers":
            return Reply(200, self._transfers.report())
        if name == "DELETE /_emulator/meter":
            self._meter.reset()
        elif name == "DELETE /_emulator/peaks":
            self._meter.forget_peaks()
        elif name.startswith("DELETE /_emulator/peaks/"):
            self._meter.forget_peaks(name.rpartition("/")[2])
        elif name == "POST /_emulator/secrets":
            self._auth.change_secret(**request.json())
        elif name == "POST /_emulator/faults":
            self._faults.order(request.json())
        elif name == "POST /_emulator/weather":
            self._faults.begin_weather(**request.json())
        elif name == "DELETE /_emulator/faults":
            self._faults.clear()
        elif name == "DELETE /_emulator/functions":
            self._tasks.forget_functions()
        elif name.startswith("GET /_emulator/online/"):
            return Reply(200, {"online": self._endpoints.is_online(name.rpartition("/")[2])})
        elif name.startswith("DELETE /_emulator/endpoints/"):
            self._endpoints.delete(name.rpartition("/")[2])
        elif name.startswith("DELETE /_emulator/online/"):
            self._endpoints.forget_sign(name.rpartition("/")[2])
        elif name != "GET /_emulator/health":
            raise Refusal(404, "NOT_FOUND", f"The emulator has no route {name}.")
        return Reply(200, {})


def _routes(endpoints: Endpoints, tasks: Tasks, wire: Wire) -> list[Route]:
    """Return the compute service's routes: method, pattern, and what to do with caller, request and id."""

    def allowed(_caller: KnownClient, _request: Request, key: str) -> Json:
        functions = endpoints.need(key).get("allowed_functions") or []
        return {"endpoint_id": key, "restricted": bool(functions), "functions": functions}

    def delete(_caller: KnownClient, _request: Request, key: str) -> Json:
        endpoints.delete(key)
        return {}

    def version(_caller: KnownClient, request: Request, _key: str) -> Json | str:
        return _VERSIONS if request.query.get("service") == "all" else _VERSIONS["api"]

    def result_url(_caller: KnownClient, _request: Request, _key: str) -> Json:
        return {"queue_prefix": RESULT_QUEUE_PREFIX, "connection_url": wire.connection_url()}

    key = "([^/]+)"
    return [
        ("GET", "/v2/version", version),
        ("GET", "/v2/get_amqp_result_connection_url", result_url),
        ("POST", "/v3/endpoints", lambda who, ask, _: endpoints.register(who, ask.json(), None)),
        ("PUT", f"/v3/endpoints/{key}", lambda who, ask, key: endpoints.register(who, ask.json(), key)),
        ("GET", f"/v3/endpoints/{key}/allowed_functions", allowed),
        (
            "POST",
            f"/v3/endpoints/{key}/submit",
            lambda who, ask, key: tasks.submit(endpoints, who, key, ask.json()),
        ),
        ("GET", f"/v2/endpoints/{key}", lambda who, ask, key: endpoints.describe(key)),
        ("DELETE", f"/v2/endpoints/{key}", delete),
        ("GET", f"/v2/endpoints/{key}/status", lambda who, ask, key: endpoints.status(key)),
        ("POST", "/v3/functions", lambda who, ask, _: tasks.register_function(who, ask.json())),
        ("GET", f"/v2/functions/{key}", lambda who, ask, key: tasks.describe_function(key)),
        ("DELETE", f"/v2/functions/{key}", lambda who, ask, key: tasks.delete_function(who, key)),
        ("GET", f"/v2/tasks/{key}", lambda who, ask, key: tasks.status(who, key)),
        (
            "POST",
            "/v2/batch_status",
            lambda who, ask, _: tasks.batch_status(who, ask.json().get("task_ids") or []),
        ),
        ("GET", f"/v2/taskgroup/{key}", lambda who, ask, key: tasks.group(who, key)),
    ]


def server(app: App, port: int) -> ThreadingHTTPServer:
    """Return the HTTP server, listening on loopback only."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def _serve(self) -> None:
            request = self._request()
            try:
                reply = app.answer(request)
            except DropReply:
                self.close_connection = True
                return
            body = json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {**reply.headers, "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the names that the base class calls

        def _request(self) -> Request:
            """Read a request; one in absolute form comes from a client that takes us for its proxy."""
            length = int(self.headers.get("Content-Length", 0))
            parts = urlsplit(self.path)
            body = self.rfile.read(min(length, _MAX_READ_BYTES))
            return Request(
                method=self.command,
                path=parts.path,
                query=dict(parse_qsl(parts.query)),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=body if length <= MAX_BODY_BYTES else b"",
                length=length,
            )

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            log.info("%s %s", self.client_address[1], format % args)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    return Server(("127.0.0.1", port), Handler)
