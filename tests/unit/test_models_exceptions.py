"""Tests of what is stored and raised: documents of other versions load, errors pickle, names are as promised."""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
import json
import pickle
from types import ModuleType
from typing import Any
from uuid import UUID

import cloudpickle  # type: ignore[import-untyped]
import prefect
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.serializers import JSONSerializer, PickleSerializer
from pydantic import BaseModel

import prefect_psik
from prefect_psik import exceptions
from prefect_psik.exceptions import JobError, PrefectPsikError
from prefect_psik.jobs.lifecycle import error_of
from prefect_psik.jobs.report import job_card
from prefect_psik.models.causes import FailureCause
from prefect_psik.models.jobs import JobHandle, JobResult, JobState, JobStatus

ENDPOINT = UUID("11111111-2222-3333-4444-555555555555")
HANDLE = JobHandle(
    endpoint_id=ENDPOINT,
    prefix="/lustre/psik jobs é",
    stamp="01234567890123456789",
    jobndx=2,
    native_id="4412",
    key="scan 7",
    type="slurm",
    name="recon",
    backend="frontier",
    duration=15,
)
ALL_BYTES = bytes(range(256))
RESULT = JobResult(
    handle=HANDLE,
    state=JobState.completed,
    exit_code=0,
    native_id="4412",
    queue_seconds=1.5,
    run_seconds=60.0,
    stdout="é☃\n",
    outputs={"o/é.bin": ALL_BYTES, "empty": b"", "text": b"plain"},
    message="completed",
)
#: As version 1 wrote it: every later version must load it.
STORED_HANDLE = (
    '{"version":1,"endpoint_id":"11111111-2222-3333-4444-555555555555","prefix":"/lustre/psik jobs é",'
    '"stamp":"01234567890123456789","jobndx":2,"native_id":"4412","key":"scan 7","type":"slurm","name":"recon",'
    '"backend":"frontier","duration":15}'
)

# ------------------------------------------------------------------------------------------------- documents


def test_handle_survives_json() -> None:
    assert JobHandle.model_validate_json(HANDLE.model_dump_json()) == HANDLE
    assert JobHandle.model_validate(json.loads(json.dumps(HANDLE.model_dump(mode="json")))) == HANDLE


def test_handle_of_the_first_version_loads() -> None:
    assert JobHandle.model_validate_json(STORED_HANDLE) == HANDLE


def test_handle_is_small() -> None:
    assert len(HANDLE.model_dump_json()) < 1000


def test_least_handle_loads_with_defaults() -> None:
    handle = JobHandle.model_validate_json('{"prefix": "/p", "stamp": "1", "key": "k"}')
    assert (handle.version, handle.jobndx, handle.endpoint_id, handle.type) == (1, 1, None, "local")


@pytest.mark.parametrize("model", [JobHandle, JobStatus, JobResult])
def test_document_of_a_newer_version_loads_without_what_is_unknown(model: type[BaseModel]) -> None:
    document = json.loads(HANDLE.model_dump_json()) | {"version": 7, "invented_later": {"x": [1]}}
    if model is not JobHandle:
        document = {"handle": document, "state": "completed", "also_new": 5}
    loaded = model.model_validate_json(json.dumps(document))
    handle: Any = getattr(loaded, "handle", loaded)
    assert (handle.version, handle.stamp, handle.jobndx) == (7, HANDLE.stamp, 2)
    assert "invented_later" not in handle.model_dump()
    assert "also_new" not in loaded.model_dump()


@pytest.mark.parametrize("wrong", [{"jobndx": 0}, {"endpoint_id": "polaris"}, {"stamp": None}])
def test_document_that_would_find_no_job_does_not_load(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        JobHandle.model_validate(json.loads(STORED_HANDLE) | wrong)


def test_handle_knows_the_jobs_directory_and_place() -> None:
    assert HANDLE.path == "/lustre/psik jobs é/01234567890123456789"
    assert JobHandle(prefix="/p/", stamp="1", key="k").path == "/p/1"
    assert HANDLE.place == f"backend frontier (endpoint {ENDPOINT})"
    assert JobHandle(prefix="/p", stamp="1", key="k").place == "this machine"


def test_handle_reads_as_a_person_would_say_it() -> None:
    assert str(HANDLE) == "job 'recon' 01234567890123456789 (Slurm 4412, run 2)"
    assert str(JobHandle(prefix="/p", stamp="1", key="k")) == "job 1 (pid unknown)"


def test_result_with_any_bytes_survives_json() -> None:
    assert JobResult.model_validate_json(RESULT.model_dump_json()) == RESULT


@settings(max_examples=100)
@given(st.dictionaries(st.text(max_size=5), st.binary(max_size=40), max_size=3))
def test_outputs_survive_json(outputs: dict[str, bytes]) -> None:
    result = RESULT.model_copy(update={"outputs": outputs})
    assert JobResult.model_validate_json(result.model_dump_json()).outputs == outputs


@pytest.mark.parametrize("serializer", [JSONSerializer(), PickleSerializer()], ids=["json", "pickle"])
def test_prefect_can_persist_handle_and_result(serializer: Any) -> None:
    for document in (HANDLE, RESULT, JobStatus(handle=HANDLE, state=JobState.failed, cause=FailureCause.lost)):
        assert serializer.loads(serializer.dumps(document)) == document


def test_states_are_psiks_and_three_of_them_final() -> None:
    import psik.models

    assert [state.value for state in JobState] == [state.value for state in psik.models.JobState]
    assert {state for state in JobState if state.is_final} == {
        JobState.completed,
        JobState.failed,
        JobState.canceled,
    }
    assert all(state.is_final == psik.models.JobState(state.value).is_final() for state in JobState)


@pytest.mark.parametrize("model", [JobHandle, JobStatus, JobResult])
def test_stored_models_can_be_shown_as_a_form(model: type[BaseModel]) -> None:
    assert model.__doc__
    assert model.model_json_schema()["properties"]


# ---------------------------------------------------------------------------------------------------- errors

ERRORS = [
    value
    for value in vars(exceptions).values()
    if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__.startswith("prefect_psik")
]
EXTRA: dict[str, dict[str, Any]] = {
    "KeyConflict": {"stored": '{"version":1}'},
    "RemoteCodeError": {"remote_traceback": "Traceback …"},
    **{error.__name__: {"result": RESULT} for error in ERRORS if issubclass(error, JobError)},
}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_error_survives_pickling_with_all_it_knows(error: type[PrefectPsikError]) -> None:
    details = EXTRA.get(error.__name__, {})
    raised = error("It failed there. Mend this.", transient=True, **details)
    for copied in (
        *(pickle.loads(pickle.dumps(raised, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        cloudpickle.loads(cloudpickle.dumps(raised)),
        copy.copy(raised),
    ):
        assert type(copied) is error
        assert str(copied) == copied.message == "It failed there. Mend this."
        assert vars(copied) == vars(raised)
        assert copied.transient is True
        assert all(getattr(copied, name) == value for name, value in details.items())


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_error_is_documented_drawn_in_the_tree_and_of_one_root(error: type[PrefectPsikError]) -> None:
    assert issubclass(error, PrefectPsikError)
    assert error.__doc__
    assert error.__name__ in (exceptions.__doc__ or "")


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_error_is_final_unless_told_otherwise_but_a_timeout_is_not(error: type[PrefectPsikError]) -> None:
    assert error("What.").transient is (error is exceptions.FacilityTimeout)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_errors_context_is_given_by_name_only(error: Any) -> None:
    with pytest.raises(TypeError):
        error("What.", True)


def test_bad_input_is_a_value_error_and_nothing_else_is() -> None:
    assert [error.__name__ for error in ERRORS if issubclass(error, ValueError)] == ["SpecError"]


def test_job_error_has_the_cause_of_its_result() -> None:
    failed = RESULT.model_copy(update={"state": JobState.failed, "cause": FailureCause.walltime})
    assert JobError("What.", result=failed).cause is FailureCause.walltime
    assert JobError("What.").cause is None
    assert exceptions.SubmitRejected("What.").cause is FailureCause.rejected


def test_every_error_is_public() -> None:
    assert {error.__name__ for error in ERRORS} <= set(prefect_psik.__all__)


# -------------------------------------------------------------------------------------------------- the names


@pytest.mark.parametrize("name", prefect_psik.__all__)
def test_public_name_exists_and_is_documented(name: str) -> None:
    thing = getattr(prefect_psik, name)
    assert inspect.getdoc(thing)
    documented = thing.fn if isinstance(thing, prefect.Task) else thing
    assert (documented.__doc__ or "").strip(), f"{name} only inherits its docstring"


def test_public_names_are_sorted_and_unique() -> None:
    assert prefect_psik.__all__ == sorted(set(prefect_psik.__all__))


def test_the_version_is_that_of_the_installed_package() -> None:
    assert prefect_psik.__version__ == importlib.metadata.version("prefect-psik")


def test_nothing_else_leaks_but_modules_of_the_package() -> None:
    leaked = {
        name
        for name, value in vars(prefect_psik).items()
        if not name.startswith("_")
        and name not in prefect_psik.__all__
        and not (isinstance(value, ModuleType) and value.__name__ == f"prefect_psik.{name}")
    }
    assert leaked == set()


def test_every_task_has_its_async_twin_with_the_same_parameters() -> None:
    pairs = {"submit_job": "asubmit_job", "wait_for_job": "await_for_job", "poll_job": "apoll_job"}
    pairs |= {"cancel_job": "acancel_job", "run_job": "arun_job", "wait_for_start": "await_for_start"}
    tasks = {name for name in prefect_psik.__all__ if isinstance(getattr(prefect_psik, name), prefect.Task)}
    assert {*pairs, *pairs.values()} <= tasks
    for sync, twin in pairs.items():
        ours, theirs = getattr(prefect_psik, sync).fn, getattr(prefect_psik, twin).fn
        assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters
        assert inspect.iscoroutinefunction(theirs)
        assert not inspect.iscoroutinefunction(ours)


# -------------------------------------------------------------------------------------------- a job's own end


@pytest.mark.parametrize("cause", [cause for cause in FailureCause if cause is not FailureCause.rejected])
def test_error_of_a_job_says_what_where_and_what_next(cause: FailureCause) -> None:
    canceled = cause in (FailureCause.canceled_by_us, FailureCause.canceled_outside)
    ended = RESULT.model_copy(
        update={
            "state": JobState.canceled if canceled else JobState.failed,
            "cause": cause,
            "message": "this happened",
            "stderr": "first\nlast words\n",
            "warnings": ["It is odd."],
        }
    )
    error = error_of(ended)
    assert error is not None
    assert type(error) is exceptions.ERRORS.get(cause, exceptions.JobFailed)
    assert isinstance(error, exceptions.JobCanceled) is canceled
    for words in ("recon", HANDLE.stamp, "4412", "frontier", "this happened", "last words", HANDLE.path, "odd"):
        assert words in str(error)
    assert error.next_step in str(error)
    assert bool(error.next_step) == (cause is not FailureCause.canceled_by_us)
    assert (error.stamp, error.native_id, error.path) == (HANDLE.stamp, "4412", HANDLE.path)
    assert error.backend == HANDLE.backend == "frontier"
    assert error.transient == (cause in (FailureCause.node_failure, FailureCause.preempted))
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.cause, copied.result) == (str(error), cause, ended)


def test_completed_job_has_no_error() -> None:
    assert error_of(RESULT) is None


def test_job_card_tells_what_is_known_of_the_use_of_nodes() -> None:
    used = RESULT.model_copy(
        update={
            "nodes": 2,
            "node_list": "n[1-2]",
            "node_hours": 1.5,
            "peak_memory": 3 * 1024**3,
            "cpu_efficiency": 0.42,
        }
    )
    card = job_card(used)
    for words in ("| nodes | 2 (n[1-2]) |", "| node-hours | 1.5 |", "3,072 MiB", "| CPU efficiency | 42% |"):
        assert words in card
    for words in ("node-hours", "peak memory", "CPU efficiency", "None"):
        assert words not in job_card(RESULT)
