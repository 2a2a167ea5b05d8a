"""What makes two submissions the same: idempotency key, attempt, and psik's stamp, which is made from the key.

Prefect gives a task run a new id after a flow retry or a crash, so a Prefect id cannot be the key. The key is
made from the root flow run, the spec, the backend, and an ordinal that distinguishes intended duplicates. The
ordinal is the lowest number that no other submission of the same spec holds in the current attempt: a retried
task gets back the number of its earlier attempt. Duplicates are interchangeable, so the order in which they
arrive does not matter.
"""

from __future__ import annotations

import hashlib
import threading
import uuid
from dataclasses import dataclass
from typing import Any, NamedTuple

from prefect.context import FlowRunContext, TaskRunContext

from prefect_psik.exceptions import SpecError
from prefect_psik.spec.identity import Identity, stamp_of
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.strict import plain_word


class Run(NamedTuple):
    """One attempt of one flow or task run."""

    id: str
    attempt: int


@dataclass(frozen=True)
class Caller:
    """The runs that enclose a submission, from the root run to the submitting task run.

    Args:
        runs: In the order of nesting: root flow run, its task runs, subflow, its task runs, and so on.
        in_task: Whether the last of them is the submitting task run itself.
        detached: Whether the flow runs in another process.
    """

    runs: tuple[Run, ...] = ()
    in_task: bool = False
    detached: bool = False

    @property
    def scope(self) -> str | None:
        """The id of the root run, or None outside of any run."""
        return self.runs[0].id if self.runs else None

    @property
    def attempt(self) -> list[int]:
        """The run counts along the chain, to be compared in order; empty outside of any run."""
        return [run.attempt for run in self.runs]


def current_caller() -> Caller:
    """Read the chain of runs from Prefect's contexts."""
    # A flow run that `run_deployment` started counts as a root: it runs in another process, which does not know
    # the ordinals of its siblings.
    flows = [context for context in _enclosing(FlowRunContext.get()) if context.flow_run]
    tasks = [context.task_run for context in _enclosing(TaskRunContext.get())]
    runs: list[Run] = []
    for flow_run in [context.flow_run for context in flows]:
        runs.append(Run(str(flow_run.id), flow_run.run_count))
        runs += [Run(str(task.id), task.run_count) for task in tasks if task.flow_run_id == flow_run.id]
    if not flows:
        runs = [Run(str(task.id), task.run_count) for task in tasks]
    runs = list(dict.fromkeys(runs))  # Prefect enters the context of a task run twice
    in_task = bool(tasks) and runs[-1].id == str(tasks[-1].id)
    return Caller(tuple(runs), in_task, any(context.detached for context in flows))


def enclosing_flow_runs() -> list[str]:
    """The ids of the current flow run and of its parents in this process, root first."""
    return [str(context.flow_run.id) for context in _enclosing(FlowRunContext.get()) if context.flow_run]


def _enclosing(context: Any) -> list[Any]:
    """List a context and the contexts that enclose it, outermost first.

    Prefect has no public way to get the run *count* of an enclosing task run (`__parents__` has only its id, and
    the API gets a retry too late), so the token of the context variable is used. See decision record 2.
    """
    chain: list[Any] = []
    while context is not None:
        chain.append(context)
        token = getattr(context, "_token", None)
        outer = getattr(token, "old_value", None)
        context = outer if isinstance(outer, type(context)) else None
    return chain[::-1]


class Ordinals:
    """Hands out ordinals to submissions of the same spec within one root run; one instance per process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._holders: dict[tuple[str, str], dict[int, tuple[str, frozenset[Run]]]] = {}

    def take(self, caller: Caller, what: str) -> int:
        """Return the ordinal of this submission.

        Args:
            caller: The chain of runs that enclose it.
            what: Hash of the spec and the backend.
        """
        scope = caller.scope
        if scope is None:
            return 0
        submitter = caller.runs[-1].id if caller.in_task else uuid.uuid4().hex
        chain = frozenset(caller.runs[:-1] if caller.in_task else caller.runs)
        with self._lock:
            for run in chain:
                self._counts[run.id] = max(run.attempt, self._counts.get(run.id, 0))
            held = self._holders.setdefault((scope, what), {})
            for ordinal, (holder, runs) in list(held.items()):
                if holder == submitter and runs == chain:
                    return ordinal
                if any(run.attempt < self._counts.get(run.id, 0) for run in runs):
                    del held[ordinal]
            ordinal = next(n for n in range(len(held) + 1) if n not in held)
            held[ordinal] = (submitter, chain)
            return ordinal


_ordinals = Ordinals()


def identify(spec: JobSpec, *, endpoint: str, prefix: str, key: str | None, caller: Caller) -> Identity:
    """Make the key, the stamp and the attempt of a submission.

    Args:
        spec: What is to run.
        endpoint: The endpoint's UUID, or `local`.
        prefix: The backend's prefix.
        key: The user's own key, such as a scan number; it identifies one job under the prefix, whoever submits
            it. Without it, the key belongs to the root flow run, and is random outside of a run.
        caller: From `current_caller`, read where the task runs.

    Raises:
        SpecError: The key is not usable, or is needed and missing.
    """
    if key is not None:
        try:
            plain_word(key, "the key")
        except ValueError as err:
            raise SpecError(f"{str(err)[0].upper()}{str(err)[1:]}.") from None
        if len(key) > 200:
            raise SpecError(f"The key has {len(key)} characters; at most 200 are allowed. Shorten it.")
        return Identity(key, stamp_of(key), caller.attempt)
    if caller.scope is None:
        key = uuid.uuid4().hex
        return Identity(key, stamp_of(key), is_own=True)
    if caller.detached:
        raise SpecError(
            "This task runs in a different process from its flow (with a Dask or Ray task runner, for instance), "
            "where identical submissions cannot be distinguished. Give each an explicit key=, such as the scan "
            "number."
        )
    key = key_of(caller.scope, _sha256(spec.canonical(), endpoint, prefix), caller)
    return Identity(key, stamp_of(key), caller.attempt, is_own=True)


def key_of(scope: str, what: str, caller: Caller) -> str:
    """The key of a submission within a root run: the same for a retry, a different one for an intended duplicate.

    Args:
        scope: The root run's id.
        what: Hash of what is submitted, and where.
        caller: Who submits.
    """
    return _sha256(scope, what, str(_ordinals.take(caller, what)))


def _sha256(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()
