"""The transport through Globus Compute; only this package directory imports its SDK.

It uses the HTTP batch interface (decision record 5): a call is submitted as a Compute task of one registered
function, and one collector asks for the results of all calls that are under way. Source text and JSON
only: nothing pickled is sent, and nothing pickled is accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import chain, repeat
from typing import Any, TypeVar
from uuid import UUID

from globus_sdk import (
    AuthAPIError,
    GlobusAPIError,
    GlobusSDKUsageError,
    NetworkError,
)
from globus_sdk.exc import GlobusError

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
from prefect_psik.transport.daemon_thread import in_daemon_thread
from prefect_psik.transport.globus.calls import Way
from prefect_psik.transport.globus.connection import STORED_LOGIN, GlobusConnection, function_document, login_of
from prefect_psik.transport.globus.errors import api_error, silence_asked, task_error
from prefect_psik.transport.globus.request_budget import RequestBudget, ledger_of

T = TypeVar("T")

#: The shortest time that one submission takes at the facility.
SUBMIT_SECONDS = 0.012
#: Pauses before repeating a request that Globus could not answer, within the call's own time limit.
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
#: How long to ask for the reason after a call ran into its time limit.
REASON_SECONDS = 5.0

_SERIALIZER_PATH = "globus_compute_sdk.serialize.JSONData"
#: Functions that this process has registered, by login and text.
_functions: dict[tuple[str, str], str] = {}


class GlobusTransport:
    """Calls to a Globus Compute endpoint; see `Transport` for what it guarantees.

    Args:
        endpoint_id: UUID of the endpoint.
        credentials: The login; None: the worker's own.
        function_id: Of a registered function; None: registered once per process, on first use.
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
        self._login = login_of(credentials)
        self._connection: GlobusConnection | None = None
        self._budget: RequestBudget | None = None
        self._registering: asyncio.Task[str] | None = None
        self._waiting: dict[str, Way] = {}
        self._collector: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._connecting = threading.Lock()

    @property
    def key(self) -> str:
        """Two transports with equal keys reach the same facility as the same user."""
        config = json.dumps(self._user_endpoint_config, sort_keys=True, default=str)
        # A changed secret changes the key: a long-lived process must not keep using the old one.
        secret = self._credentials.fingerprint if self._credentials else ""
        return f"{self.endpoint_id} {self._login} {secret} {self._function_id} {config}"

    @property
    def place(self) -> str:
        """What messages call the endpoint."""
        return f"endpoint {self.endpoint_id}"

    async def call(self, name: str, payload: dict[str, Any], *, timeout: float = CALL_SECONDS) -> dict[str, Any]:
        """Execute one operation at the endpoint."""
        size = len(json.dumps([name, payload]))
        if size > MAX_CALL_BYTES:
            raise PayloadTooLarge(
                f"The call {name!r} is too large: {size:,} bytes, and the limit is {MAX_CALL_BYTES:,}. Use Globus "
                "Transfer for large inputs."
            )
        way = Way()
        try:
            async with asyncio.timeout(timeout):
                await self._send(name, payload, way)
                work = SUBMIT_SECONDS * len(payload["jobs"]) if name == "submit" else 0.0
                answer = await self._result_of(way, work)
        except TimeoutError:
            raise await self._silence(name, timeout, way.trouble) from None
        finally:
            self._waiting.pop(way.task_id, None)
        if answer.get("status") == "success" and "result" in answer:
            return self._unpack(answer["result"])
        reason = str(answer.get("exception") or answer.get("reason") or answer)
        raise task_error(name, reason, self.place, self._who())

    async def aclose(self) -> None:
        """Close the connection and drop what belongs to this event loop. Calls under way end with an error."""
        for task in (self._collector, self._registering):
            if task:
                task.cancel()
        self._collector = self._registering = self._budget = None
        self._end_calls(FacilityError(f"The connection to {self.place} was closed.", transient=True))
        self._disconnect()

    async def endpoint_status(self) -> str:
        """Ask the service for the endpoint's status: online, offline, or what it says."""
        way = Way()
        try:
            async with asyncio.timeout(CALL_SECONDS):
                answer = await self._request(
                    way, lambda connection: connection.v2.get_endpoint_status(self.endpoint_id)
                )
        except TimeoutError:
            why = way.trouble or "There was no answer at all."
            text = f"Globus did not report the status of {self.place} within {CALL_SECONDS:.0f} s. {why}"
            raise FacilityTimeout(text) from None
        return str(answer.get("status", "unknown"))

    # ------------------------------------------------------------------------------------- sending

    async def _send(self, name: str, payload: dict[str, Any], way: Way) -> None:
        known = self._function_id or _functions.get(self._function_key)
        try:
            await self._submit(known or await self._register(way), name, payload, way)
        except FacilitySetupError as err:
            if known is None or known == self._function_id or known not in str(err):
                raise
            # The service has forgotten the function that this process registered long ago.
            _functions.pop(self._function_key, None)
            await self._submit(await self._register(way), name, payload, way)

    async def _submit(self, function_id: str, name: str, payload: dict[str, Any], way: Way) -> None:
        def submit(connection: GlobusConnection) -> str:
            batch = connection.client.create_batch(
                user_endpoint_config=self._user_endpoint_config, result_serializers=[_SERIALIZER_PATH]
            )
            batch.add(function_id, args=(name, payload))
            answer = connection.v3.submit(self.endpoint_id, batch.prepare())
            return str(answer["tasks"][function_id][0])

        way.task_id = await self._request(way, submit)

    @property
    def _function_key(self) -> tuple[str, str]:
        return self._login, hashlib.sha256(letter().encode()).hexdigest()

    async def _register(self, way: Way) -> str:
        """Register the remote code, once for each login and process: the service never deduplicates."""
        if self._registering is None or self._registering.done():
            self._registering = asyncio.create_task(self._register_now(way))
            # Waiters see the exception themselves; retrieve it, or asyncio complains when there are none.
            self._registering.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._registering)

    async def _register_now(self, way: Way) -> str:
        function = function_document()
        async with asyncio.timeout(CALL_SECONDS):
            answer = await self._request(
                way, lambda connection: connection.v3.register_function(function)["function_uuid"]
            )
        _functions[self._function_key] = str(answer)
        return str(answer)

    # ----------------------------------------------------------------------------------- collecting

    async def _result_of(self, way: Way, work: float) -> dict[str, Any]:
        way.earliest = time.monotonic() + work
        way.future = asyncio.get_running_loop().create_future()
        self._waiting[way.task_id] = way
        if self._collector is None or self._collector.done():
            self._news = asyncio.Event()  # of this event loop
            self._collector = asyncio.create_task(self._collect())
        self._news.set()
        return await way.future

    async def _collect(self) -> None:
        try:
            await self._looks()
        except (Exception, SystemExit) as err:  # every waiter must get it, even for a defect
            self._end_calls(RemoteCodeError(f"Collecting the answers from {self.place} failed: {err!r}."))
            raise

    async def _looks(self) -> None:
        """Ask for the results of all calls under way, in one request each time."""
        while self._waiting:
            await self._next_look()
            asked = dict(self._waiting)
            if not asked:
                return
            try:
                results = await self._once(partial(GlobusConnection.results, task_ids=list(asked)))
            except PrefectPsikError as err:
                for way in asked.values():
                    way.trouble = str(err)
                    if not err.transient:
                        self._settle(way, err)
                continue
            for way in asked.values():
                way.trouble = None
                result = results.get(way.task_id) or {}
                status = str(result.get("status", "")).lower()
                if status in ("success", "failed"):
                    self._settle(way, {**result, "status": status})

    def _settle(self, way: Way, outcome: dict[str, Any] | PrefectPsikError) -> None:
        self._waiting.pop(way.task_id, None)
        if way.future is None or way.future.done():
            return
        if isinstance(outcome, PrefectPsikError):
            way.future.set_exception(outcome)
        else:
            way.future.set_result(outcome)

    def _end_calls(self, error: PrefectPsikError) -> None:
        for way in list(self._waiting.values()):
            self._settle(way, error)

    async def _next_look(self) -> None:
        """Wait until it is time to ask for results; a new call may be due sooner than the others."""
        due = time.monotonic() + self._until_next_look()
        while (left := due - time.monotonic()) > 0:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._news.wait()
                due = min(due, time.monotonic() + self._until_next_look())

    def _until_next_look(self) -> float:
        return min((way.until_next_look() for way in self._waiting.values()), default=0.0)

    def _unpack(self, text: str) -> dict[str, Any]:
        connection = self._connected()
        try:
            result = connection.serializer.deserialize(text)
        except Exception as err:  # noqa: BLE001 - the SDK raises a bare Exception for what it does not accept
            raise RemoteCodeError(
                f"The answer from {self.place} is not JSON ({err}). The endpoint must allow the JSONData "
                "serializer."
            ) from None
        if not isinstance(result, dict):
            raise RemoteCodeError(
                f"The answer from {self.place} is of type {type(result).__name__}, not an object."
            )
        return result

    # ----------------------------------------------------------------------------------- requests

    async def _request(self, way: Way, work: Callable[[GlobusConnection], T]) -> T:
        """Make a request, and repeat it while Globus cannot answer it, up to the call's time limit."""
        pauses = chain(PAUSES_SECONDS, repeat(PAUSES_SECONDS[-1]))
        while True:
            try:
                answer = await self._once(work)
            except PrefectPsikError as err:
                if not err.transient:
                    raise
                way.trouble = str(err)
            else:
                way.trouble = None
                return answer
            await asyncio.sleep(next(pauses) * random.uniform(0.75, 1.25))  # noqa: S311 - to part callers

    async def _once(self, work: Callable[[GlobusConnection], T], *, renewed: bool = False) -> T:
        """Make one HTTP request within the login's budget, in a thread that dies with the process."""
        if self._budget is None:
            self._budget = RequestBudget(ledger_of(self._login))
        try:
            return await self._in_budget(self._budget, lambda: work(self._connected()))
        except GlobusAPIError as err:
            if err.http_status == 401:
                # The token was revoked or the login replaced: the cached connection is useless.
                self._disconnect()
                if not renewed and not isinstance(err, AuthAPIError):
                    return await self._once(work, renewed=True)
            raise api_error(err, self.place, self._who()) from None
        except NetworkError as err:
            raise FacilityError(f"Globus does not answer: {err}.", transient=True) from None
        except (GlobusError, GlobusSDKUsageError, ValueError) as err:
            raise FacilitySetupError(f"Globus cannot be used for {self.place}: {err}") from None
        except (LookupError, TypeError, AttributeError) as err:
            raise FacilityError(
                f"This version does not understand Globus's answer for {self.place}: {err!r}.", transient=True
            ) from None

    async def _in_budget(self, budget: RequestBudget, work: Callable[[], T]) -> T:
        place = await budget.take()
        return await in_daemon_thread(work, lambda failure: budget.answered(place, silence=silence_asked(failure)))

    def _connected(self) -> GlobusConnection:
        with self._connecting:  # requests are made in threads
            if self._connection is None:
                self._connection = GlobusConnection(self._credentials)
            return self._connection

    def _disconnect(self) -> None:
        with self._connecting:
            connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def _who(self) -> str:
        return f"the client {self._login}" if self._login != STORED_LOGIN else "the worker's own login"

    async def _silence(self, name: str, timeout: float, trouble: str | None) -> FacilityTimeout:
        if trouble:
            return FacilityTimeout(f"No answer to {name!r} from {self.place} within {timeout:.0f} s. {trouble}")
        try:
            async with asyncio.timeout(REASON_SECONDS):
                status = await self.endpoint_status()
        except (PrefectPsikError, TimeoutError) as err:
            status = f"unknown ({str(err).rstrip('.') or 'no answer'})"
        return FacilityTimeout(
            f"No answer to {name!r} from {self.place} within {timeout:.0f} s; its status is {status}. If it is "
            "offline, start it at the facility: globus-compute-endpoint start NAME."
        )
