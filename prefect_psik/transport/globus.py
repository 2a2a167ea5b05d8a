"""The transport through Globus Compute; the only importer of its SDK.

It uses the HTTP batch interface (decision record 5): a call is submitted as a task of one registered
function, and one collector asks for the results of all calls that are under way. Source text and JSON
only: nothing pickled is sent, and nothing pickled is accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from globus_compute_sdk import Client
from globus_compute_sdk.serialize import ComputeSerializer, JSONData, PureSourceTextInspect
from globus_sdk import (
    ClientApp,
    ComputeClientV2,
    ComputeClientV3,
    GlobusAPIError,
    GlobusApp,
    GlobusSDKUsageError,
    NetworkError,
)
from globus_sdk.exc import GlobusError
from globus_sdk.transport import RetryConfig

from prefect_psik.credentials import GlobusCredentials
from prefect_psik.exceptions import (
    FacilityError,
    FacilitySetupError,
    FacilityTimeout,
    PayloadTooLarge,
    PrefectPsikError,
    RemoteCodeError,
)
from prefect_psik.remote import letter
from prefect_psik.transport.base import CALL_SECONDS, MAX_CALL_BYTES
from prefect_psik.transport.limiter import RequestBudget

T = TypeVar("T")

#: Globus Compute allows 20 requests in 10 s for one identity; other processes need some, too.
REQUESTS_PER_WINDOW, WINDOW_SECONDS = 18, 10.1
#: When the result of a call is asked for, seconds after it was sent and its work can have been done. On the
#: testbed a warm answer is there after 0.3 s (decision record 5).
ASK_AFTER_SECONDS = (0.4, 0.55, 0.8, 1.2, 1.8, 2.7, 4.0)
ASK_EVERY_SECONDS = 2.5
#: What one submission takes at the facility, at the least.
SUBMIT_SECONDS = 0.012
RETRY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
HTTP_SECONDS = 30.0

_SERIALIZER_PATH = "globus_compute_sdk.serialize.JSONData"
_budgets: dict[str, RequestBudget] = {}
_functions: dict[tuple[str, str], asyncio.Future[str]] = {}


class GlobusTransport:
    """Calls to a Globus Compute endpoint; see `Transport` for what it guarantees.

    Args:
        endpoint_id: UUID of the endpoint.
        credentials: The login; None: the worker's own.
        function_id: Registered before; None: registered once a process, on first use.
        user_endpoint_config: For the endpoint's template.
    """

    poll_floor_seconds = 3.0
    gather_seconds = 0.15

    def __init__(
        self,
        endpoint_id: UUID,
        *,
        credentials: GlobusCredentials | None = None,
        function_id: UUID | None = None,
        user_endpoint_config: dict[str, Any] | None = None,
    ) -> None:
        self.endpoint_id = str(endpoint_id)
        self._credentials = credentials
        self._function_id = str(function_id) if function_id else None
        self._user_endpoint_config = user_endpoint_config
        self._login = credentials.identity if credentials else "worker"
        self._connection: _Connection | None = None
        self._waiting: dict[str, _Pending] = {}
        self._collector: asyncio.Task[None] | None = None

    @property
    def key(self) -> str:
        """Two transports of equal keys reach the same place as the same user."""
        config = json.dumps(self._user_endpoint_config, sort_keys=True, default=str)
        return f"{self.endpoint_id} {self._login} {self._function_id} {config}"

    @property
    def place(self) -> str:
        """The place as a person would say it."""
        return f"endpoint {self.endpoint_id}"

    async def call(self, name: str, payload: dict[str, Any], *, timeout: float = CALL_SECONDS) -> dict[str, Any]:
        """Execute one operation at the endpoint."""
        size = len(json.dumps([name, payload]))
        if size > MAX_CALL_BYTES:
            raise PayloadTooLarge(
                f"The call {name!r} has {size:,} bytes, over the limit of {MAX_CALL_BYTES:,}. Use Globus Transfer "
                "for large inputs."
            )
        task_id: str | None = None
        try:
            async with asyncio.timeout(timeout):
                task_id = await self._send(name, payload)
                work = SUBMIT_SECONDS * len(payload["jobs"]) if name == "submit" else 0.0
                answer = await self._result_of(task_id, work)
        except TimeoutError:
            raise await self._silence(name, timeout) from None
        finally:
            if task_id is not None:
                self._waiting.pop(task_id, None)
        if answer.get("status") == "success" and "result" in answer:
            return self._unpack(answer["result"])
        raise self._failure(name, str(answer.get("exception") or answer.get("reason") or answer))

    async def aclose(self) -> None:
        """Let go of the connection."""
        if self._collector:
            self._collector.cancel()
        if self._connection:
            self._connection.close()
            self._connection = None

    async def endpoint_status(self) -> str:
        """Ask the service for the endpoint's status: online, offline, or what it says."""
        answer = await self._request(lambda connection: connection.v2.get_endpoint_status(self.endpoint_id))
        return str(answer.get("status", "unknown"))

    # ------------------------------------------------------------------------------------- sending

    async def _send(self, name: str, payload: dict[str, Any]) -> str:
        function_id = self._function_id or await self._register()

        def submit(connection: _Connection) -> Any:
            batch = connection.client.create_batch(
                user_endpoint_config=self._user_endpoint_config, result_serializers=[_SERIALIZER_PATH]
            )
            batch.add(function_id, args=(name, payload))
            return connection.v3.submit(self.endpoint_id, batch.prepare())

        answer = await self._request(submit)
        return str(answer["tasks"][function_id][0])

    async def _register(self) -> str:
        """Register the remote code, once for each login and process: the service never deduplicates."""
        source = letter()
        key = (self._login, hashlib.sha256(source.encode()).hexdigest())
        known = _functions.get(key)
        if known is None or (known.done() and (known.cancelled() or known.exception())):
            known = _functions[key] = asyncio.get_running_loop().create_future()
            try:
                answer = await self._request(
                    lambda connection: connection.client.register_source_code(source, "call")
                )
                known.set_result(str(answer))
            except (PrefectPsikError, asyncio.CancelledError):
                del _functions[key]
                known.cancel()
                raise
        return await asyncio.shield(known)

    # ----------------------------------------------------------------------------------- collecting

    async def _result_of(self, task_id: str, work: float) -> dict[str, Any]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[task_id] = _Pending(future, time.monotonic() + work)
        if self._collector is None or self._collector.done():
            self._collector = asyncio.create_task(self._collect())
        return await future

    async def _collect(self) -> None:
        """Ask for the results of all calls under way, in one request each time."""
        while self._waiting:
            await asyncio.sleep(self._until_next_look())
            task_ids = list(self._waiting)
            if not task_ids:
                return
            try:
                answer = await self._request(partial(_look, task_ids=task_ids))
            except PrefectPsikError as err:
                if not err.transient:
                    self._fail(task_ids, err)
                continue
            for task_id, result in answer["results"].items():
                status = str(result.get("status", "")).lower()
                pending = self._waiting.pop(task_id, None) if status in ("success", "failed") else None
                if pending and not pending.future.done():
                    pending.future.set_result({**result, "status": status})

    def _fail(self, task_ids: list[str], error: PrefectPsikError) -> None:
        for task_id in task_ids:
            pending = self._waiting.pop(task_id, None)
            if pending and not pending.future.done():
                pending.future.set_exception(error)

    def _until_next_look(self) -> float:
        return min((pending.until_next_look() for pending in self._waiting.values()), default=0.0)

    def _unpack(self, text: str) -> dict[str, Any]:
        connection = self._connected()
        try:
            result = connection.serializer.deserialize(text)
        except Exception as err:  # noqa: BLE001 - the SDK raises a bare Exception for what it does not accept
            raise RemoteCodeError(
                f"The answer of {self.place} is not JSON ({err}). The endpoint must allow the serializer JSONData."
            ) from None
        if not isinstance(result, dict):
            raise RemoteCodeError(f"The answer of {self.place} is {type(result).__name__}, not an object.")
        return result

    # ----------------------------------------------------------------------------------- requests

    async def _request(self, work: Callable[[_Connection], T]) -> T:
        """Make one HTTP request within the login's budget, in a thread that dies with the process."""
        budget = _budgets.setdefault(self._login, RequestBudget(REQUESTS_PER_WINDOW, WINDOW_SECONDS))
        await budget.take()
        try:
            return await _in_daemon_thread(lambda: work(self._connected()))
        except GlobusAPIError as err:
            raise self._api_error(err, budget) from None
        except NetworkError as err:
            raise FacilityError(f"Globus does not answer: {err}.", transient=True) from None
        except (GlobusError, GlobusSDKUsageError, ValueError) as err:
            raise FacilitySetupError(f"Globus cannot be used for {self.place}: {err}") from None

    def _connected(self) -> _Connection:
        if self._connection is None:
            self._connection = _Connection(self._credentials)
        return self._connection

    def _api_error(self, err: GlobusAPIError, budget: RequestBudget) -> FacilityError:
        text = str(err.message or err.code or "no reason given").rstrip(".")
        status = err.http_status
        if status in RETRY_STATUSES:
            with contextlib.suppress(ValueError, TypeError):
                budget.hold(min(float(err.headers.get("Retry-After", 0)), 60.0) if err.headers else 0.0)
            return FacilityError(f"Globus answered {status} for {self.place}: {text}.", transient=True)
        if status == 413:
            return PayloadTooLarge(f"Globus refused a call to {self.place} as too large: {text}.")
        login = self._who()
        if status == 401:
            return FacilitySetupError(
                f"Globus refused {login}: {text}. Check client_id and client_secret of the block, or log in anew."
            )
        if status == 403:
            return FacilitySetupError(
                f"Globus does not allow {login} to use {self.place}: {text}. Ask the endpoint's owner for access; "
                "if it allows only some functions, put the id of an allowed one into function_id of the block: "
                "prefect-psik functions register."
            )
        if status == 404:
            return FacilitySetupError(f"Globus does not know what was asked for at {self.place}: {text}.")
        return FacilitySetupError(f"Globus answered {status} for {self.place}: {text}.")

    def _who(self) -> str:
        return f"the client {self._login}" if self._login != "worker" else "the worker's own login"

    async def _silence(self, name: str, timeout: float) -> FacilityTimeout:
        try:
            async with asyncio.timeout(HTTP_SECONDS):
                status = await self.endpoint_status()
        except (PrefectPsikError, TimeoutError) as err:
            status = f"unknown ({err})"
        return FacilityTimeout(
            f"No answer to {name!r} from {self.place} within {timeout:.0f} s; its status is {status}. If it is "
            "offline, start it at the facility: globus-compute-endpoint start NAME."
        )

    def _failure(self, name: str, text: str) -> FacilityError:
        """Word the failure of a task at the endpoint."""
        last = _last_line(text)
        if "MaxResultSizeExceeded" in text:
            return PayloadTooLarge(f"The answer to {name!r} from {self.place} is larger than Globus carries.")
        if "Failed validating" in text:
            reason = _last_line(text.partition("Failed validating")[0])
            return FacilitySetupError(
                f"The {self.place} does not accept user_endpoint_config of the block: {reason}. Take out what it "
                "does not know."
            )
        if re.search(r"[Nn]ot permitted|not allowed", text):
            return FacilitySetupError(
                f"The {self.place} does not run our function: {last}. Put the id of an allowed function into "
                "function_id of the block: prefect-psik functions register."
            )
        if "failed to map to a local user" in text or "local user does not exist" in text:
            return FacilitySetupError(
                f"The {self.place} has no user for {self._who()}. Ask its administrator to map the client's UUID "
                "to a user there."
            )
        lost = re.search(r"WorkerLost|BrokenProcessPool|ManagerLost|shut ?down|restart", text)
        return RemoteCodeError(
            f"The call {name!r} failed on {self.place}: {last}. The traceback is in `remote_traceback`.",
            transient=lost is not None,
            remote_traceback=text,
        )


@dataclass(frozen=True)
class _Pending:
    """A call under way: its answer, and when it can be there at the earliest."""

    future: asyncio.Future[dict[str, Any]]
    earliest: float

    def until_next_look(self) -> float:
        """Seconds until its result should be asked for again."""
        age = time.monotonic() - self.earliest
        following = next((seconds for seconds in ASK_AFTER_SECONDS if seconds > age + 0.02), None)
        return ASK_EVERY_SECONDS if following is None else following - age


class _Connection:
    """The SDK's clients of one login. Opens nothing before the first request."""

    def __init__(self, credentials: GlobusCredentials | None) -> None:
        retry = RetryConfig(max_retries=0)
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
                "GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET, or run once where it runs: "
                "globus-compute-endpoint login."
            )
        where = self.client.web_service_address
        self.v2 = ComputeClientV2(app=app, base_url=where, retry_config=retry)
        self.v3 = ComputeClientV3(app=app, base_url=where, retry_config=retry)

    def close(self) -> None:
        """Close the HTTP connections."""
        self.v2.close()
        self.v3.close()


def _look(connection: _Connection, task_ids: list[str]) -> Any:
    return connection.v2.get_task_batch(task_ids)


async def _in_daemon_thread(work: Callable[[], T]) -> T:
    """Run blocking work without keeping the interpreter from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as err:  # noqa: BLE001 - handed to whoever waits
            future.set_exception(err)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="prefect-psik-http", daemon=True).start()
    return await asyncio.shield(asyncio.wrap_future(future))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip(" -")]
    return lines[-1][:500] if lines else "no reason given"
