"""Tests of the emulator with the real SDK and endpoint: logins, limits, round trips, the capture, faults."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import time
import urllib.error
import uuid
from concurrent.futures import ThreadPoolExecutor
from http.client import RemoteDisconnected
from pathlib import Path

import pytest
from globus_compute_sdk import Client
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_compute_sdk.serialize import ComputeSerializer, DillCode, DillDataBase64
from globus_sdk import DeleteData, TransferAPIError, TransferClient, TransferData

from prefect_psik.credentials import transfer_login
from tests.testbed.emulator.capture import Capture, find_pickles, pickles_in
from tests.testbed.emulator.faults import Fault, Faults
from tests.testbed.emulator.meter import WINDOW_SECONDS, Meter, most_in_window
from tests.testbed.emulator.store import Store
from tests.testbed.facility import Facility
from tests.testbed.globus import Globus
from tests.testbed.probes import PSIK_SOURCE, SOURCE, await_state, call, get, is_done, token
from tests.testbed.state import wait_until

pytestmark = pytest.mark.filterwarnings(r"ignore:\s*Environment differences detected:UserWarning")

_PICKLING = ComputeSerializer(strategy_code=DillCode, strategy_data=DillDataBase64)
_LAMBDA = eval("lambda name: name", {})
"""A function that dill takes by value, without this module around it."""

_EXECUTOR_SCRIPT = """
import sys

from globus_compute_sdk import Executor
from globus_compute_sdk.serialize import ComputeSerializer, JSONData, PureSourceTextInspect


def whoami(name):
    import subprocess

    return [name, subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()]


text = ComputeSerializer(
    strategy_code=PureSourceTextInspect,
    strategy_data=JSONData,
    allowed_deserializer_types=[PureSourceTextInspect, JSONData],
)
with Executor(sys.argv[1], serializer=text, result_serializers=[JSONData]) as executor:
    print(*executor.submit(whoami, "x").result(timeout=200))
"""


def test_login(facility: Facility) -> None:
    assert token(facility)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        token(facility, "wrong")


def test_the_twenty_first_request_within_ten_seconds_is_refused(facility: Facility) -> None:
    time.sleep(WINDOW_SECONDS)
    facility.globus.reset_meter()
    access = token(facility)
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda _: get(facility, "/v2/version", access=access), range(20)))
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(facility, "/v2/version", access=access)
    assert caught.value.code == 429
    meter = facility.globus.meter()[facility.globus.login("probe")[0]]
    assert (meter["requests"], meter["most_in_10_s"], meter["statuses"]) == (21, 21, {"200": 20, "429": 1})
    time.sleep(float(caught.value.headers["Retry-After"]))
    get(facility, "/v2/version")
    facility.globus.reset_meter()
    facility.globus.stop()
    facility.globus.start()
    assert facility.globus.peaks()["probe"] >= 21, "neither a reset nor a restart lowers it"
    assert facility.globus.over_the_limit().keys() == {"probe"}
    facility.globus.forget_peaks("probe")  # these were sent on purpose
    assert facility.globus.over_the_limit() == {}


def test_a_request_counts_whatever_becomes_of_it_and_whatever_is_restarted(facility: Facility) -> None:
    time.sleep(WINDOW_SECONDS)
    facility.globus.forget_peaks("stranger")
    access = token(facility, login="stranger")
    facility.globus.order_fault("away", match="GET /v2/version", seconds=600)
    for _ in range(2):
        with pytest.raises(RemoteDisconnected):
            get(facility, "/v2/version", access=access)
    facility.globus.clear_faults()
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(facility, "/v2/version", access=f"{access}x")
    assert facility.globus.peaks()["stranger"] == 4
    facility.globus.stop()
    facility.globus.start()
    get(facility, "/v2/version", access=access)
    assert facility.globus.peaks()["stranger"] >= 4


def test_what_arrived_before_a_restart_counts_with_what_comes_after_it(tmp_path: Path) -> None:
    for _ in range(2):
        meter = Meter(Store(tmp_path / "store"))
        for _ in range(3):
            meter.note("one")
    meter.note("another")
    assert meter.peaks() == {"one": 6, "another": 1}


def test_the_window_slides() -> None:
    assert most_in_window([]) == 0
    assert most_in_window([0, 1, 2, 9.9, 10.5, 11.5]) == 4
    assert most_in_window([0, 10, 20]) == 1


def test_a_seed_always_gives_the_same_weather() -> None:
    def weather(seed: int) -> list[Fault | None]:
        faults = Faults()
        faults.begin_weather(seed=seed, strength=1.0)
        kinds = ["delay", "error", "drop_reply"] * 300
        return [faults.take(kind, "POST /v3/endpoints/x/submit") for kind in kinds]

    assert weather(1) == weather(1) != weather(2)
    assert {fault.status for fault in weather(1) if fault and fault.kind == "error"} > {401, 429, 500, 503}


def test_a_payload_over_10_mb_is_refused(facility: Facility) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(facility, f"/v3/endpoints/{facility.endpoint_id}/submit", data=b"0" * (10 * 1024 * 1024 + 1))
    assert caught.value.code == 413
    assert json.load(caught.value)["code"] == "TASK_PAYLOAD_TOO_LARGE"


def test_source_text_and_json_round_trip_without_pickle(facility: Facility, client: Client) -> None:
    before = len(facility.globus.messages())
    function_id = client.register_source_code(SOURCE, "call")
    result = call(facility, client, function_id, "submit", {"list": [1, None, "é\n"]})
    assert result["who"] == facility.user
    assert "debug" in result["sinfo"]
    assert result["said"] == ["constant of the module", "submit", {"list": [1, None, "é\n"]}]
    crossed = facility.globus.messages()[before:]
    assert {"command", "task", "result"} <= {message.kind for message in crossed}
    assert [how for message in crossed for how in pickles_in(message.body)] == []


def test_psik_at_the_endpoint_reaches_slurm(facility: Facility, client: Client) -> None:
    function_id = client.register_source_code(PSIK_SOURCE, "call")
    script = "#!/bin/bash\nid -un\nsrun -n1 hostname </dev/null\n"
    base, native_id = call(facility, client, function_id, str(facility.prefix), script)
    await_state(facility, native_id, "COMPLETED")
    written = (Path(base) / "log" / "stdout.1").read_text().splitlines()
    assert written[0] == facility.user
    assert (Path(base) / "status.csv").read_text().splitlines()[-1].split(",")[1:3] == ["1", "completed"]


def test_the_executor_round_trips_too(facility: Facility, tmp_path: Path) -> None:
    """In a process of its own, since an Executor's threads outlive it."""
    before = len(facility.globus.messages())
    script = tmp_path / "executor.py"
    script.write_text(_EXECUTOR_SCRIPT)
    ran = subprocess.run(
        [sys.executable, str(script), facility.endpoint_id],
        env={**os.environ, **facility.env, **facility.globus.env("probe")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.stdout.split() == ["x", facility.user], ran.stderr
    crossed = facility.globus.messages()[before:]
    assert "result-copy" in {message.kind for message in crossed}
    assert [how for message in crossed for how in pickles_in(message.body)] == []


def test_the_endpoint_refuses_pickled_code_and_the_capture_shows_it(facility: Facility, client: Client) -> None:
    before = len(facility.globus.messages())
    client.fx_serializer = _PICKLING
    function_id = client.register_function(_LAMBDA)
    task_id = client.run("x", endpoint_id=facility.endpoint_id, function_id=function_id)
    wait_until(lambda: is_done(client, task_id), seconds=180, what="the pickled task")
    with pytest.raises(TaskExecutionFailed, match="DillCode disabled"):
        client.get_result(task_id)
    crossed = facility.globus.messages()[before:]
    assert any(pickles_in(message.body) for message in crossed if message.kind == "task")


@pytest.mark.parametrize(
    "buffer",
    [
        _PICKLING.serialize(None),
        _PICKLING.serialize({"key": list(range(100))}),
        _PICKLING.serialize(_LAMBDA),
        "00\n" + base64.b64encode(pickle.dumps([1, 2], protocol=0)).decode(),
    ],
    ids=["none", "long", "code", "protocol 0"],
)
def test_a_planted_pickle_is_found(tmp_path: Path, buffer: str) -> None:
    packed = f"7\n11\n[1]\n{len(buffer)}\n{buffer}" if buffer.startswith("01") else buffer
    harmless = json.dumps({"message_type": "task", "data": {"task_buffer": "11\n[1]"}}).encode()
    planted = json.dumps({"message_type": "task", "data": {"task_buffer": packed}}).encode()
    capture = Capture(tmp_path / "capture.jsonl")
    capture.write("task", "q", b"\x01" + harmless)
    capture.write("task", "q", b"\x01" + planted)
    capture.write("result", "q", pickle.dumps({"raw": 1}))
    assert {finding.message.kind for finding in find_pickles(tmp_path / "capture.jsonl")} == {
        "task",
        "result",
    }
    assert pickles_in(b"\x01" + harmless) == []


def test_a_dropped_reply_and_an_error_are_retried_by_the_sdk(facility: Facility, client: Client) -> None:
    function_id = client.register_source_code(SOURCE, "call")
    facility.globus.order_fault("error", match="POST /v3/endpoints/*/submit", status=503)
    facility.globus.order_fault("drop_reply", match="POST /v3/endpoints/*/submit")
    before = len([message for message in facility.globus.messages() if message.kind == "task"])
    assert call(facility, client, function_id, "submit", {})["who"] == facility.user
    facility.globus.clear_faults()
    after = len([message for message in facility.globus.messages() if message.kind == "task"])
    assert after - before == 2, "the lost reply's task and the one that was sent again"


def test_a_directory_travels_with_its_empty_ones_and_without_what_the_filter_rules_exclude(globus: Globus) -> None:
    """The first rule that matches counts; a directory that is left out takes along what is in it."""
    client = TransferClient(app=transfer_login(None).get_client())
    home, scratch, name = globus.collection("home"), globus.collection("scratch"), uuid.uuid4().hex
    top = Path(home.root) / name
    for path in ("keep.log/1.log", "kept.log", "x.log", "x.txt", "old.d/x.txt", "sub/old.d/kept.log"):
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text("x")
    (top / "empty").mkdir()
    data = TransferData(home.id, scratch.id)
    data.add_filter_rule("kept.*", method="include", type="file")
    data.add_filter_rule("*.log", type="file")
    data.add_filter_rule("old.?")
    data.add_item(f"/{name}", f"/{name}")
    assert client.task_wait(client.submit_transfer(data)["task_id"], timeout=60, polling_interval=1)
    there = Path(scratch.root) / name
    found = {str(path.relative_to(there)) for path in there.rglob("*")}
    assert found == {"keep.log", "kept.log", "x.txt", "sub", "empty"}


def test_transfer_makes_directories_and_tells_the_events_of_a_task(globus: Globus) -> None:
    client = TransferClient(app=transfer_login(None).get_client())
    home, name = globus.collection("home"), uuid.uuid4().hex
    assert client.operation_mkdir(home.id, f"/{name}")["code"] == "DirectoryCreated"
    assert (Path(home.root) / name).is_dir()
    with pytest.raises(TransferAPIError, match="exists"):
        client.operation_mkdir(home.id, f"/{name}")

    globus.order_fault("path", match=f"home/{name}", code="GC_NOT_CONNECTED", seconds=0.5)
    data = DeleteData(home.id, recursive=True)
    data.add_item(f"/{name}")
    task_id = client.submit_delete(data)["task_id"]
    assert client.task_wait(task_id, timeout=30, polling_interval=1)
    events = list(client.task_event_list(task_id))
    assert [events[0]["code"], events[-1]["code"]] == ["SUCCEEDED", "STARTED"], "the latest comes first"
    faults = [event for event in events if event["is_error"]]
    assert {event["code"] for event in faults} == {"GC_NOT_CONNECTED"}
    assert client.get_task(task_id)["faults"] == len(faults)
    assert len(client.task_event_list(task_id, limit=1)["DATA"]) == 1
    assert not (Path(home.root) / name).exists()
