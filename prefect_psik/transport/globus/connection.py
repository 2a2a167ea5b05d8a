"""The Globus SDKs' clients of one login, set up so that they pickle nothing and repeat no request."""

from __future__ import annotations

import os
import platform
from typing import Any

import globus_compute_sdk
from globus_compute_sdk import Client
from globus_compute_sdk.serialize import ComputeSerializer, JSONData, PureSourceTextInspect
from globus_sdk import ClientApp, ComputeClientV2, ComputeClientV3, GlobusApp
from globus_sdk.transport import RetryConfig

from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import FacilitySetupError
from prefect_psik.remote import letter

HTTP_SECONDS = 20.0
STORED_LOGIN = "the stored login"


def login_of(credentials: GlobusCredentials | None) -> str:
    """The identity behind the requests; Globus limits requests per identity."""
    given = str(credentials.client_id) if credentials and credentials.client_id else None
    return given or os.environ.get("GLOBUS_COMPUTE_CLIENT_ID") or STORED_LOGIN


def function_document(**more: str) -> dict[str, Any]:
    """The request that registers the remote code; the client's own method repeats requests, over the budget."""
    meta = {"python_version": platform.python_version(), "sdk_version": globus_compute_sdk.__version__}
    return {"function_name": "call", "function_code": letter(), "serialized": False, "meta": meta, **more}


class GlobusConnection:
    """The SDK's clients of one login. Opens nothing before the first request."""

    def __init__(self, credentials: GlobusCredentials | None) -> None:
        self.serializer = ComputeSerializer(
            strategy_code=PureSourceTextInspect(),
            strategy_data=JSONData(),  # type: ignore[no-untyped-call]
            allowed_deserializer_types=[PureSourceTextInspect, JSONData],
        )
        given = credentials is not None and not credentials.is_empty
        self.client = Client(
            app=credentials.get_client() if given and credentials else None, do_version_check=False
        )
        self.client.fx_serializer = self.serializer
        app: GlobusApp | None = self.client.app
        if app is None or (not isinstance(app, ClientApp) and app.login_required()):
            raise FacilitySetupError(
                "This worker has no Globus login. Put credentials into the psik-backend block, or set "
                "GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET, or run this once on the worker's "
                "machine: globus-compute-endpoint login."
            )
        where = self.client.web_service_address
        # The clients repeat nothing: this package decides what to repeat, within the budget.
        self.v2 = ComputeClientV2(app=app, base_url=where, retry_config=RetryConfig(max_retries=0))
        self.v3 = ComputeClientV3(app=app, base_url=where, retry_config=RetryConfig(max_retries=0))
        for client in (self.v2, self.v3):
            client.transport.http_timeout = HTTP_SECONDS

    def close(self) -> None:
        """Close the HTTP connections."""
        self.v2.close()
        self.v3.close()

    def results(self, task_ids: list[str]) -> dict[str, Any]:
        """Ask for the results of Compute tasks in one request; by task id."""
        return dict(self.v2.get_task_batch(task_ids)["results"])
