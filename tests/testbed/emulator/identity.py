"""Globus Auth: the client-credentials grant, and whose a token is. Tokens are signed, so none is stored."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import parse_qs

from tests.testbed.emulator.config import Config, KnownClient
from tests.testbed.emulator.messages import Json, Refusal, Reply, Request

TOKEN_SECONDS = 172800
_COMPUTE_SCOPE = "https://auth.globus.org/scopes/facd7ccc-c5f4-42aa-916b-a0e270e2c2a9/all"
_TRANSFER_SCOPE = "urn:globus:auth:scope:transfer.api.globus.org:all"
COMPUTE = "funcx_service"
AUTH = "auth.globus.org"
TRANSFER = "transfer.api.globus.org"
_RESOURCE_SERVERS = {_COMPUTE_SCOPE: COMPUTE, _TRANSFER_SCOPE: TRANSFER}
_SCOPE = re.compile(r"[^\s\[]+(?:\[[^\]]*\])?")
"""A scope with those that depend on it: `one[two three]`."""


class Auth:
    """Issues and reads tokens for the clients of the configuration."""

    def __init__(self, config: Config) -> None:
        self._clients = {client.client_id: client for client in config.clients}
        self._key = config.token_key.encode()
        self._revoked: set[str] = set()

    def token(self, request: Request) -> Reply:
        """Answer `POST /v2/oauth2/token`; each resource server gets a token of its own."""
        client = self._authenticate(request.headers)
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        if form.get("grant_type") != "client_credentials":
            return Reply(400, {"error": "unsupported_grant_type"})
        by_server: dict[str, list[str]] = {}
        for scope in _SCOPE.findall(form.get("scope", _COMPUTE_SCOPE)):
            plain = scope.partition("[")[0]
            by_server.setdefault(_RESOURCE_SERVERS.get(plain, AUTH), []).append(scope)
        first, *others = [self._issue(client, server, scopes) for server, scopes in by_server.items()]
        return Reply(200, {**first, "other_tokens": others})

    def revoke(self, request: Request) -> Reply:
        """Answer `POST /v2/oauth2/token/revoke`: the token is refused from now on."""
        self._authenticate(request.headers)
        self._revoked.update(parse_qs(request.body.decode()).get("token", []))
        return Reply(200, {"active": False})

    def userinfo(self, request: Request) -> Reply:
        """Answer `GET /v2/oauth2/userinfo`."""
        client = self.caller(request, server=AUTH)
        return Reply(
            200,
            {
                "sub": client.client_id,
                "preferred_username": client.username,
                "name": client.username,
                "identity_set": [{"sub": identity} for identity in client.identity_set],
            },
        )

    def identities(self, request: Request) -> Reply:
        """Answer `GET /v2/api/identities?ids=`, for the clients that are known."""
        self.caller(request, server=AUTH)
        found = [self._clients[key] for key in request.query.get("ids", "").split(",") if key in self._clients]
        return Reply(200, {"identities": [_describe(client) for client in found]})

    def caller(self, request: Request, *, server: str) -> KnownClient:
        """Return the client whose token this request bears.

        Raises:
            Refusal: 401, for no token or one that is forged, expired or for another service.
        """
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        payload, _, signature = token.partition(".")
        claims = _claims(payload)
        client = self._clients.get(str(claims.get("client")))
        if kind != "Bearer" or client is None or not hmac.compare_digest(signature, self._sign(client, payload)):
            raise Refusal(401, "AUTHENTICATION_REQUIRED", "Missing or invalid token.")
        if token in self._revoked:
            raise Refusal(401, "AUTHENTICATION_REQUIRED", "The token was revoked.")
        if claims["server"] != server or claims["expires"] < time.time():
            raise Refusal(401, "AUTHENTICATION_REQUIRED", "The token has expired or is for another service.")
        return client

    def claimed(self, request: Request) -> str:
        """Return the id of the client that a request says it comes from, right or wrong; empty if it says none."""
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        if kind == "Basic":
            return _basic(text)[0]
        return str(_claims(text.partition(".")[0]).get("client", ""))

    def change_secret(self, client_id: str, secret: str) -> None:
        """Give a client another secret; the tokens that it got with the old one are refused from now on."""
        self._clients[client_id] = replace(self._clients[client_id], secret=secret)

    def scopes(self, request: Request) -> list[str]:
        """Return the scopes of the token that this request bears, with those that depend on them."""
        token = request.headers.get("authorization", "").partition(" ")[2]
        found: list[str] = _claims(token.partition(".")[0]).get("scopes", [])
        return found

    def _authenticate(self, headers: Mapping[str, str]) -> KnownClient:
        kind, _, encoded = headers.get("authorization", "").partition(" ")
        name, secret = _basic(encoded)
        client = self._clients.get(name)
        if kind != "Basic" or client is None or not hmac.compare_digest(client.secret, secret):
            raise Refusal(401, "UNAUTHORIZED", "Unknown client or wrong secret.")
        return client

    def _issue(self, client: KnownClient, server: str, scopes: list[str]) -> Json:
        claims = {
            "client": client.client_id,
            "server": server,
            "scopes": scopes,
            "expires": time.time() + TOKEN_SECONDS,
        }
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
        return {
            "access_token": f"{payload}.{self._sign(client, payload)}",
            "scope": " ".join(scope.partition("[")[0] for scope in scopes),
            "expires_in": TOKEN_SECONDS,
            "token_type": "Bearer",
            "resource_server": server,
        }

    def _sign(self, client: KnownClient, payload: str) -> str:
        return hmac.new(self._key, f"{client.secret} {payload}".encode(), hashlib.sha256).hexdigest()


def _basic(encoded: str) -> tuple[str, str]:
    try:
        name, _, secret = base64.b64decode(encoded).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return name, secret


def _claims(payload: str) -> Json:
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload))
    except ValueError:
        claims = None
    return claims if isinstance(claims, dict) else {}


def _describe(client: KnownClient) -> Json:
    return {
        "id": client.client_id,
        "username": client.username,
        "name": "a client",
        "email": None,
        "status": "used",
    }
