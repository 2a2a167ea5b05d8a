"""What passes between the HTTP layer and the services: requests, replies, and refusals in Globus's shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One HTTP request, its path without query and, when a proxy sent it, without host."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    length: int
    """Length that the client announced; the body of an oversized request is not kept."""

    def json(self) -> Json:
        """Return the body as a JSON object.

        Raises:
            Refusal: it is none.
        """
        try:
            value = json.loads(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Refusal(400, "INVALID_JSON", "The body is not a JSON object.")
        return value


@dataclass(frozen=True)
class Reply:
    """One HTTP reply with a JSON body."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An error reply of the service."""

    def __init__(
        self,
        status: int,
        code: str,
        reason: str,
        *,
        headers: Mapping[str, str] | None = None,
        fields: Json | None = None,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code
        self.reason = reason
        self.headers = dict(headers or {})
        self.fields = dict(fields or {})

    def reply(self) -> Reply:
        """Return it as a reply; the SDK shows `message` to people."""
        body = {
            "status": "Failed",
            "code": self.code,
            "message": self.reason,
            "reason": self.reason,
            "http_status_code": self.status,
            **self.fields,
        }
        return Reply(self.status, body, self.headers)
