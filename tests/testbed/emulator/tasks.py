"""Functions, submissions and results: what happens to a call between the SDK and the endpoint."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence

from tests.testbed.emulator.config import KnownClient
from tests.testbed.emulator.endpoints import Endpoints
from tests.testbed.emulator.faults import Faults
from tests.testbed.emulator.messages import Json, Refusal
from tests.testbed.emulator.store import Store, Task
from tests.testbed.emulator.wire import RESULT_QUEUE_PREFIX, Wire, pack, unpack

_SOURCE_STRATEGY = "st"
"""First line of a buffer of plain source text; what `register_source_code` becomes for the endpoint."""


class Tasks:
    """Registered functions and submitted tasks."""

    def __init__(self, store: Store, wire: Wire, faults: Faults) -> None:
        self._store = store
        self._wire = wire
        self._faults = faults

    def register_function(self, caller: KnownClient, body: Json) -> Json:
        """Keep a function; the same text registered twice gets two ids, as in the real service."""
        for name in ("function_name", "function_code"):
            if not isinstance(body.get(name), str):
                raise Refusal(422, "SEMANTICALLY_INVALID", f"{name} is missing.")
        key = str(uuid.uuid4())
        self._store.put("function", key, {**body, "owner": caller.client_id})
        return {"function_uuid": key}

    def need_function(self, function_id: str) -> Json:
        """Return a function.

        Raises:
            Refusal: 404, there is none.
        """
        found = self._store.get("function", function_id)
        if found is None:
            raise Refusal(404, "FUNCTION_NOT_FOUND", f"Function {function_id} is not known.")
        return found

    def describe_function(self, function_id: str) -> Json:
        """Return what the service tells about a function."""
        found = self.need_function(function_id)
        return {
            "function_uuid": function_id,
            "function_name": found["function_name"],
            "function_code": found["function_code"],
            "description": found.get("description"),
            "metadata": found.get("meta") or {},
            "group": found.get("group"),
            "ha_endpoint_id": found.get("ha_endpoint_id"),
            "owner": found["owner"],
        }

    def delete_function(self, caller: KnownClient, function_id: str) -> Json:
        """Forget a function of the caller's."""
        if self.need_function(function_id)["owner"] != caller.client_id:
            raise Refusal(403, "RESOURCE_ACCESS_FORBIDDEN", f"Function {function_id} belongs to someone else.")
        self._store.delete("function", function_id)
        return {"result": 302}

    def forget_functions(self) -> None:
        """Forget all functions."""
        for key in self._store.all("function"):
            self._store.delete("function", key)

    def submit(self, endpoints: Endpoints, caller: KnownClient, endpoint_id: str, body: Json) -> Json:
        """Queue calls for an endpoint, online or not, and answer with their ids."""
        calls: dict[str, list[str]] = body.get("tasks") or {}
        self._check(endpoints.need_usable(caller, endpoint_id), endpoint_id, calls)
        queue = bool(body.get("create_queue"))
        group = self._group(caller, body.get("task_group_id"), queue=queue)
        if queue:
            self._wire.declare(RESULT_QUEUE_PREFIX + group)
        runner = endpoints.runner(
            caller, endpoint_id, body.get("user_endpoint_config") or {}, body.get("user_runtime") or {}
        )
        ids = {function_id: [str(uuid.uuid4()) for _ in payloads] for function_id, payloads in calls.items()}
        flat = [key for keys in ids.values() for key in keys]
        self._store.add_tasks(Task(key, caller.client_id, group, endpoint_id, runner) for key in flat)
        for function_id, payloads in calls.items():
            code = _code(self.need_function(function_id))
            for key, payload in zip(ids[function_id], payloads, strict=True):
                self._send(runner, key, function_id, code + payload, body)
        endpoints.start(runner)
        return {
            "request_id": str(uuid.uuid4()),
            "task_group_id": group,
            "endpoint_id": endpoint_id,
            "tasks": ids,
        }

    def status(self, caller: KnownClient, task_id: str) -> Json:
        """Return a task's state.

        Raises:
            Refusal: 404, the caller has no such task.
        """
        task = self._store.task(task_id)
        if task is None or task.owner != caller.client_id:
            raise Refusal(404, "TASK_NOT_FOUND", f"Task {task_id} is not known.")
        return _state(task)

    def batch_status(self, caller: KnownClient, task_ids: Sequence[str]) -> Json:
        """Return the states of tasks; ids that are not the caller's are left out."""
        found = [task for task in map(self._store.task, task_ids) if task is not None]
        return {
            "response": "batch",
            "results": {task.id: _state(task) for task in found if task.owner == caller.client_id},
        }

    def group(self, caller: KnownClient, group: str) -> Json:
        """Return the tasks of a group."""
        found = self._store.get("group", group)
        if found is None or found["owner"] != caller.client_id:
            raise Refusal(404, "TASK_GROUP_NOT_FOUND", f"Task group {group} is not known.")
        tasks = self._store.tasks_of_group(group)
        return {
            "taskgroup_id": group,
            "create_websockets_queue": True,
            "tasks": [{"id": task.id} for task in tasks],
        }

    def on_result(self, body: bytes) -> None:
        """Keep an endpoint's result, and send a copy to the SDK if it has a queue for it."""
        data = unpack(body)
        key = str(data["task_id"])
        task = self._store.task(key)
        if task is None or self._faults.take("lose_result", f"result {key}"):
            return
        failed = data.get("error_details") is not None
        outcome = {"exception": data["data"]} if failed else {"result": data["data"]}
        self._finish(task, outcome, data.get("details"), body)

    def fail(self, task: Task, reason: str) -> None:
        """Answer a task that no endpoint will run."""
        details = {"code": "ENDPOINT_START_FAILURE", "user_message": reason}
        message = pack("result", {"task_id": task.id, "data": reason, "error_details": details})
        self._finish(task, {"exception": reason}, None, message)

    def _finish(self, task: Task, outcome: Json, details: Json | None, message: bytes) -> None:
        answer = {
            "task_id": task.id,
            "status": "failed" if "exception" in outcome else "success",
            "completion_t": str(time.time()),
            "details": details or {},
            **outcome,
        }
        first = self._store.answer(task.id, answer)
        if first and (self._store.get("group", task.task_group) or {}).get("queue"):
            self._wire.publish("result-copy", RESULT_QUEUE_PREFIX + task.task_group, message)

    def _check(self, endpoint: Json, endpoint_id: str, calls: dict[str, list[str]]) -> None:
        allowed = endpoint.get("allowed_functions")
        if not calls:
            raise Refusal(422, "SEMANTICALLY_INVALID", "No tasks in the submission.")
        for function_id in calls:
            self.need_function(function_id)
            if allowed and function_id not in allowed:
                raise Refusal(
                    403,
                    "FUNCTION_NOT_PERMITTED",
                    f"Function {function_id} not permitted on endpoint {endpoint_id}",
                )

    def _group(self, caller: KnownClient, wanted: str | None, *, queue: bool) -> str:
        key = wanted or str(uuid.uuid4())
        found = self._store.get("group", key)
        if found is not None and found["owner"] != caller.client_id:
            raise Refusal(403, "RESOURCE_ACCESS_FORBIDDEN", f"Task group {key} belongs to someone else.")
        had_queue = found is not None and found["queue"]
        self._store.put("group", key, {"owner": caller.client_id, "queue": queue or had_queue})
        return key

    def _send(self, runner: str, key: str, function_id: str, buffer: str, body: Json) -> None:
        headers: Json = {"task_uuid": key, "function_uuid": function_id}
        if body.get("resource_specification"):
            headers["resource_specification"] = json.dumps(body["resource_specification"])
        if body.get("result_serializers"):
            headers["result_serializers"] = body["result_serializers"]
        message = pack("task", {"task_id": key, "container_id": None, "container": None, "task_buffer": buffer})
        self._wire.publish("task", f"{runner}.tasks", message, headers=headers)
        if self._faults.take("duplicate_task", f"task {function_id}"):
            self._wire.publish("task", f"{runner}.tasks", message, headers=headers)


def _code(function: Json) -> str:
    """Return a function's code as the endpoint takes it: packed, and source text marked as such."""
    code: str = function["function_code"]
    if function.get("serialized", True):
        return code
    buffer = f"{_SOURCE_STRATEGY}\n{function['function_name']}:{code}"
    return f"{len(buffer)}\n{buffer}"


def _state(task: Task) -> Json:
    return task.answer or {"task_id": task.id, "status": "pending"}
