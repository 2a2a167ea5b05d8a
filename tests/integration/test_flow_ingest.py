"""The ingest hook of the pipeline, and SciCat's through pyscicat against a stand-in for SciCat's HTTP API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from flows.ingest import Stored, scicat
from flows.store import Phantom
from flows.tomography import tomography
from tests.integration.test_flows import SMALL, home

__all__ = ["home"]

pytestmark = pytest.mark.usefixtures("prefect_server")


class Catalogue(ThreadingHTTPServer):
    """As much of SciCat as pyscicat uses here."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.datasets: dict[str, dict[str, Any]] = {}
        self.blocks: dict[str, list[dict[str, Any]]] = {}
        self.tokens: set[str] = set()
        self.refuses = False


class Answers(BaseHTTPRequestHandler):
    """One request."""

    server: Catalogue

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.endswith("/origdatablocks"):
            self._answer(self.server.blocks.get(path.split("/")[-2], []))
            return
        where = json.loads(unquote(urlsplit(self.path).query).split("filter=")[1].rsplit("&access_token", 1)[0])
        found = self.server.datasets.values()
        self._answer([one for one in found if where["where"].items() <= one.items()])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.refuses:
            self._answer({"message": "the catalogue is read-only today"}, 403)
        elif self.path.split("?")[0].endswith("/origdatablocks"):
            self.server.blocks.setdefault(unquote(self.path.split("/")[-2]), []).append(body)
            self._answer(body)
        else:
            pid = f"20.500/{len(self.server.datasets)}".replace("/", ".")
            self.server.datasets[pid] = {**body, "pid": pid}
            self._answer({"pid": pid})

    def _answer(self, body: Any, status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalogue]:
    with Catalogue() as server:
        monkeypatch.setenv("SCICAT_URL", f"http://127.0.0.1:{server.server_port}/api/v3")
        monkeypatch.setenv("SCICAT_TOKEN", "a-token")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


async def run(local: Path, **parameters: Any) -> dict[str, Any]:
    phantom, hook = Phantom(**SMALL), "flows.ingest:scicat"
    found: dict[str, Any] = await tomography("ingested", phantom=phantom, hook=hook, local=local, **parameters)
    return found


async def test_scicat_learns_of_the_raw_data_and_of_the_results(home: Path, catalogue: Catalogue) -> None:
    await run(home / "out")
    raw, results = catalogue.datasets.values()
    assert (raw["type"], results["type"]) == ("raw", "derived")
    assert results["inputDatasets"] == [raw["pid"]]
    assert 0 < results["scientificMetadata"]["nrmse"] < 1
    assert raw["sourceFolder"] == str(home / "out/data/store")
    (block,) = catalogue.blocks[results["pid"]]
    told = {file["path"]: file["size"] for file in block["dataFileList"]}
    store = home / "out/data/store"
    there = {
        str(path.relative_to(store)): path.stat().st_size for path in (store / "rec").rglob("*") if path.is_file()
    }
    assert told == there
    assert catalogue.tokens == {"Bearer a-token"}


async def test_a_hook_that_fails_is_shown_and_the_pipeline_goes_on(
    home: Path, catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue.refuses = True
    found = await run(home / "out")
    assert 0 < found["nrmse"] < 1
    assert catalogue.datasets == {}
    assert "The catalogue has no entry for scan ingested (raw)" in caplog.text
    assert "read-only today" in caplog.text


async def test_a_required_hook_that_fails_stops_the_pipeline(home: Path, catalogue: Catalogue) -> None:
    catalogue.refuses = True
    with pytest.raises(Exception, match="read-only today"):
        await run(home / "out", hook_required=True)
    assert not (home / "out/data/store/rec").exists()


def test_a_retry_tells_scicat_once(catalogue: Catalogue) -> None:
    stored = Stored("scan-1", "raw", "/store/raw", {"scan-1.h5": 5})
    assert scicat(stored) == scicat(stored)
    assert len(catalogue.datasets) == 1
    assert [len(blocks) for blocks in catalogue.blocks.values()] == [1]
    catalogue.blocks.clear()  # as if the second request of the first try had been lost
    scicat(stored)
    assert len(catalogue.datasets) == 1
    assert [len(blocks) for blocks in catalogue.blocks.values()] == [1]


def test_the_results_of_two_facilities_are_two_datasets(catalogue: Catalogue) -> None:
    for facility in ("one", "two"):
        scicat(Stored("scan-1", "results", "/store", {f"rec/{facility}/scan-1": 5}, facility=facility))
    assert [one["datasetName"] for one in catalogue.datasets.values()] == [
        "scan-1 results of one",
        "scan-1 results of two",
    ]
