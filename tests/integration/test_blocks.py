"""Blocks on a real Prefect server: saved and loaded, secrets kept, documents of other versions understood."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import prefect.settings
import pytest
from prefect import flow
from prefect.blocks.core import Block
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_fixed

import prefect_psik
from prefect_psik import (
    BackendAttributes,
    GlobusCollection,
    GlobusCredentials,
    JobFailed,
    JobResult,
    PsikBackend,
    run_job,
)
from tests.integration.local import backend_at, bash, job_directories
from tests.integration.prefect_services import PrefectServer

BLOCKS: list[type[Block]] = [GlobusCredentials, PsikBackend, GlobusCollection]
DOCUMENTS = Path(__file__).parents[1] / "fixtures/blocks"
CLIENT = UUID("aaaaaaaa-2222-3333-4444-555555555555")
ENDPOINT = UUID("11111111-2222-3333-4444-555555555555")
SECRET = "zq-never-in-clear-7731"


def api_url() -> str:
    return str(prefect.settings.PREFECT_API_URL.value())


def is_busy(error: BaseException) -> bool:
    """A server whose SQLite database is locked has done nothing, and says so: to be asked again."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (500, 503)


@retry(retry=retry_if_exception(is_busy), wait=wait_fixed(1), stop=stop_after_attempt(30), reraise=True)
def api(method: str, path: str, body: Any = None) -> Any:
    """One answer of the server, as anybody who reaches it could ask for it."""
    answer = httpx.request(method, f"{api_url()}{path}", json=body, timeout=150)
    answer.raise_for_status()
    return answer.json()


def login() -> GlobusCredentials:
    return GlobusCredentials.model_validate({"client_id": CLIENT, "client_secret": SECRET})


@pytest.fixture
def saved(prefect_server: None) -> None:
    """All three blocks with a login in each, by reference and inline."""
    login().save("secret-login", overwrite=True)
    reference = GlobusCredentials.load("secret-login")
    assert isinstance(reference, GlobusCredentials)
    PsikBackend(endpoint_id=ENDPOINT, credentials=reference).save("secret-by-reference", overwrite=True)
    PsikBackend(endpoint_id=ENDPOINT, credentials=login()).save("secret-inline", overwrite=True)
    GlobusCollection(base_path="/als", credentials=login()).save("secret-collection", overwrite=True)


def content(block: Block) -> Any:
    """All fields of a block with its secrets; without what Prefect adds when it saves or loads one."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            added = [name for name in value if name.startswith("_") or name == "block_type_slug"]
            return {name: plain(part) for name, part in value.items() if name not in added}
        return value

    return plain(json.loads(block.model_dump_json(context={"include_secrets": True})))


# ------------------------------------------------------------------------------------------- save and load


def test_a_backend_comes_back_with_all_that_nests_in_it(prefect_server: None) -> None:
    backend = PsikBackend.model_validate(
        {
            "endpoint_id": ENDPOINT,
            "prefix": "$SCRATCH/psik",
            "attributes": {
                "type": "slurm",
                "queue_name": "batch",
                "project_name": "stf006",
                "qos": "regular",
                "constraint": "cpu",
                "options": {"--licenses": "scratch,cfs", "--requeue": True, "--nice": 10},
            },
            "credentials": login(),
            "default_resources": {"duration": 15, "memory": "16G"},
            "user_endpoint_config": {"nested": {"list": [1, "two"]}},
            "umask": "0077",
            "accept_jobs": False,
            "note": "größe µ 'quoted' ${NOT_EXPANDED}",
        }
    )
    backend.save("whole", overwrite=True)
    loaded = PsikBackend.load("whole")
    assert isinstance(loaded, PsikBackend)
    assert content(loaded) == content(backend)
    assert isinstance(loaded.attributes, BackendAttributes)
    assert loaded.attributes.options == {"--licenses": "scratch,cfs", "--requeue": "--requeue", "--nice": "10"}
    assert loaded.attributes.sbatch_options()["--qos"] == "regular"
    assert loaded.credentials is not None
    assert loaded.credentials.client_secret is not None
    assert loaded.credentials.client_secret.get_secret_value() == SECRET
    assert loaded.document_name == "whole"
    assert backend.document_name == "whole"


async def test_blocks_load_in_async_code(prefect_server: None) -> None:
    await PsikBackend(prefix="/a").asave("async", overwrite=True)
    loaded: PsikBackend = await PsikBackend.aload("async")
    assert loaded.prefix == "/a"


def test_credentials_and_collection_come_back(prefect_server: None) -> None:
    login().save("login", overwrite=True)
    loaded = GlobusCredentials.load("login")
    assert isinstance(loaded, GlobusCredentials)
    assert content(loaded) == content(login())
    GlobusCredentials().save("empty", overwrite=True)
    empty = GlobusCredentials.load("empty")
    assert isinstance(empty, GlobusCredentials)
    assert content(empty) == content(GlobusCredentials())
    collection = GlobusCollection(
        collection_id=CLIENT, base_path="/als/832", posix_root="/pscratch", credentials=loaded
    )
    collection.save("scratch", overwrite=True)
    again = GlobusCollection.load("scratch")
    assert isinstance(again, GlobusCollection)
    assert content(again) == content(collection)
    assert again.posix("raw/scan.h5") == "/pscratch/als/832/raw/scan.h5"


def test_a_changed_login_reaches_the_backends_that_refer_to_it(saved: None) -> None:
    GlobusCredentials.model_validate({"client_id": CLIENT, "client_secret": f"{SECRET}-rotated"}).save(
        "secret-login", overwrite=True
    )
    loaded = PsikBackend.load("secret-by-reference")
    assert isinstance(loaded, PsikBackend)
    assert loaded.credentials is not None
    assert loaded.credentials.client_secret is not None
    assert loaded.credentials.client_secret.get_secret_value() == f"{SECRET}-rotated"


def test_a_saved_backend_is_found_by_its_name(prefect_server: None, prefix: Path) -> None:
    backend_at(prefix).save("by-name", overwrite=True)
    result = run_job("by-name", bash("echo named"))
    assert result.stdout == "named\n"
    assert result.handle.backend == "by-name"


# ---------------------------------------------------------------------------------------- other versions


def stored(document: Path, name: str) -> type[Block]:
    """Put a kept document on the server, with the schema that it was saved under; returns its class."""
    kept = json.loads(document.read_text(encoding="utf-8"))
    kind = next(kind for kind in BLOCKS if kind.get_block_type_slug() == kept["slug"])
    for block in BLOCKS:
        block.register_type_and_schema()
    block_type = api("GET", f"/block_types/slug/{kept['slug']}")
    schema = {"fields": kept["fields"], "block_type_id": block_type["id"], "capabilities": [], "version": "0.1"}
    schema_id = api("POST", "/block_schemas/", schema)["id"]
    body = {
        "name": name,
        "data": kept["data"],
        "block_schema_id": schema_id,
        "block_type_id": block_type["id"],
    }
    api("POST", "/block_documents/", body)
    return kind


# A document is never edited or removed: when fields are added, a new one is kept beside it.
@pytest.mark.parametrize("document", sorted(DOCUMENTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_document_that_was_saved_once_loads_for_ever(prefect_server: None, document: Path) -> None:
    name = document.stem.replace(".", "-")
    loaded = stored(document, name).load(name)
    data = json.loads(document.read_text(encoding="utf-8"))["data"]
    assert shows(loaded, data), "every known field has its stored value"


def shows(loaded: Any, data: dict[str, Any]) -> bool:
    """Whether a loaded model has all values of a document, as far as it knows the fields."""
    for name, value in data.items():
        if name not in type(loaded).model_fields:
            continue
        found = getattr(loaded, name)
        if isinstance(value, dict) and hasattr(found, "model_fields_set"):
            assert shows(found, value), name
        else:
            plain = found.get_secret_value() if hasattr(found, "get_secret_value") else found
            assert (str(plain) if isinstance(plain, UUID) else plain) == value, name
    return True


def test_a_document_of_a_newer_version_can_be_worked_with(prefect_server: None) -> None:
    document = DOCUMENTS / "psik-backend-newer.json"
    data = json.loads(document.read_text(encoding="utf-8"))["data"]
    known = BackendAttributes.model_fields
    assert set(data) - set(PsikBackend.model_fields), "it has fields that this version does not know"
    assert set(data["attributes"]) - set(known)
    stored(document, "newer-to-use")
    loaded = PsikBackend.load("newer-to-use")
    assert isinstance(loaded, PsikBackend)
    assert loaded.attributes.sbatch_options()["--qos"] == "regular"
    assert loaded.default_resources is not None
    assert loaded.default_resources.memory == "64G"
    assert loaded.model_copy(update={"accept_jobs": True}).check_open() is None  # type: ignore[func-returns-value]


def test_slugs_never_change() -> None:
    slugs = {kind.__name__: kind.get_block_type_slug() for kind in BLOCKS}
    assert slugs == {
        "PsikBackend": "psik-backend",
        "GlobusCredentials": "globus-credentials",
        "GlobusCollection": "globus-collection",
    }


def test_only_optional_fields_are_added() -> None:
    for kind in BLOCKS:
        required = [name for name, field in kind.model_fields.items() if field.is_required()]
        assert required == [], kind


# ---------------------------------------------------------------------------------------------- secrets


def test_the_api_shows_no_secret(saved: None) -> None:
    documents = api("POST", "/block_documents/filter", {})
    names = {document["name"] for document in documents}
    assert {"secret-login", "secret-by-reference", "secret-inline", "secret-collection"} <= names
    seen = [documents]
    for document in documents:
        seen.append(api("GET", f"/block_documents/{document['id']}"))
    for kind in BLOCKS:
        slug = kind.get_block_type_slug()
        seen.append(api("GET", f"/block_types/slug/{slug}"))
        seen.append(api("GET", f"/block_types/slug/{slug}/block_documents"))
    seen.append(api("POST", "/block_schemas/filter", {}))
    seen.append(api("GET", "/block_types/slug/psik-backend/block_documents/name/secret-inline"))
    assert SECRET not in json.dumps(seen)
    inline = seen[-1]["data"]["credentials"]
    assert inline["client_id"] == str(CLIENT)
    assert set(inline["client_secret"]) == {"*"}
    reference = api("GET", "/block_types/slug/psik-backend/block_documents/name/secret-by-reference")
    assert reference["block_document_references"]["credentials"]["block_document"]["name"] == "secret-login"


def test_a_login_does_not_show_itself() -> None:
    backend = PsikBackend(credentials=login())
    for text in (repr(backend), str(backend), f"{backend.credentials}", repr(login()), backend.model_dump_json()):
        assert SECRET not in text


def database_files(server: PrefectServer) -> list[Path]:
    return [found for end in ("", "-wal") if (found := Path(f"{server.database}{end}")).exists()]


def holds(path: Path, word: str) -> bool:
    return path.is_file() and word.encode() in path.read_bytes()


def test_a_job_leaves_no_secret_anywhere(
    server: PrefectServer, saved: None, prefix: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In logs, artifacts, parameters, results, the database, and what lies at the facility."""
    marker = "zq-this-is-found"
    backend = backend_at(prefix).model_copy(update={"credentials": login()})
    backend.save("secret-job", overwrite=True)

    @flow(persist_result=True, result_serializer="json", log_prints=True)
    def run_both(where: PsikBackend, name: str) -> JobResult:
        print(where)
        with pytest.raises(JobFailed) as failed:
            run_job(name, bash("env; exit 3"))
        print(repr(failed.value), failed.value.result)
        return run_job(
            where, bash(f"env; cat ../spec.json ../prefect/job.json; echo {marker} > kept", expect=["kept"])
        )

    with caplog.at_level(logging.DEBUG):
        logging.getLogger("prefect_psik").debug("%r", backend)
        result = run_both(backend, "secret-job")
    assert marker in result.stdout
    assert len(job_directories(prefix)) == 2
    home = Path(str(prefect.settings.PREFECT_HOME.value()))
    storage = Path(str(prefect.settings.PREFECT_LOCAL_STORAGE_PATH.value()))
    at_facility = [path for path in prefix.rglob("*") if path.is_file()]
    assert any(holds(path, marker) for path in at_facility), "the search finds what is there"
    assert any(holds(path, marker) for path in storage.rglob("*")), "results were persisted"
    everywhere = [*at_facility, *storage.rglob("*"), *(home / "profiles.toml",), *database_files(server)]
    assert database_files(server)
    assert [path for path in everywhere if holds(path, SECRET)] == []
    assert SECRET not in caplog.text
    from_server = [
        api("POST", f"/{what}/filter", {"limit": 200, "sort": sort})
        for what, sort in (
            ("flow_runs", "START_TIME_DESC"),
            ("task_runs", "END_TIME_DESC"),
            ("logs", "TIMESTAMP_DESC"),
            ("artifacts", "CREATED_DESC"),
        )
    ]
    assert all(from_server), "there are runs, logs and artifacts to look at"
    assert str(prefix) in json.dumps(from_server, ensure_ascii=False)
    assert SECRET not in json.dumps(from_server)


def test_what_is_sent_to_the_facility_holds_no_secret(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect_psik.transport.local import LocalTransport

    sent: list[str] = []
    real = LocalTransport.call

    async def noted(self: LocalTransport, name: str, payload: dict[str, Any], **options: Any) -> dict[str, Any]:
        sent.append(json.dumps(payload))
        return await real(self, name, payload, **options)

    monkeypatch.setattr(LocalTransport, "call", noted)
    run_job.fn(backend_at(prefix).model_copy(update={"credentials": login()}), bash("true"))
    assert len(sent) >= 2
    assert not any(SECRET in text or str(CLIENT) in text for text in sent)


# ------------------------------------------------------------------------------------ registering, forms


def test_prefect_finds_the_collection() -> None:
    (entry,) = [
        point
        for point in importlib.metadata.entry_points(group="prefect.collections")
        if point.name == "prefect_psik"
    ]
    assert entry.load() is prefect_psik


def test_prefect_block_register(prefect_server: None) -> None:
    command = [sys.executable, "-m", "prefect", "block", "register", "-m", "prefect_psik"]
    environment = os.environ | {"PREFECT_API_URL": api_url(), "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in BLOCKS:
        assert str(kind._block_type_name) in done.stdout
        block_type = api("GET", f"/block_types/slug/{kind.get_block_type_slug()}")
        assert block_type["description"]
        assert kind.__name__ in block_type["code_example"]


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.__name__)
def test_a_form_says_what_each_field_is(kind: type[Block]) -> None:
    schema = kind.model_json_schema()
    models = {kind.__name__: schema, **schema.get("definitions", {})}
    silent = []
    for model, part in models.items():
        for name, field in part["properties"].items():
            made_up = name.replace("_", " ").title()
            if not field.get("description") and field.get("title", made_up) == made_up:
                silent.append(f"{model}.{name}")
    assert silent == []
    assert kind.get_description()
    assert schema["block_type_slug"] == kind.get_block_type_slug()


def test_forms_hide_what_is_secret() -> None:
    assert GlobusCredentials.model_json_schema()["secret_fields"] == ["client_secret"]
    assert PsikBackend.model_json_schema()["secret_fields"] == ["credentials.client_secret"]
    assert GlobusCollection.model_json_schema()["secret_fields"] == ["credentials.client_secret"]


# --------------------------------------------------------------------------- validators do no I/O

_touched: list[str] = []
_watching = False


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in {"open", "os.listdir", "os.mkdir", "socket.__new__", "socket.connect", "os.exec"}:
        _touched.append(f"{event} {arguments[:1]}")
    if _watching and event in {"subprocess.Popen", "os.system", "os.posix_spawn", "socket.getaddrinfo"}:
        _touched.append(f"{event} {arguments[:1]}")


@pytest.fixture
def touched() -> Iterator[list[str]]:
    """What this process opens, connects or starts, as the interpreter itself reports it."""
    global _watching
    if not _touched and not getattr(_note, "installed", False):
        sys.addaudithook(_note)
        _note.installed = True  # type: ignore[attr-defined]
    _touched.clear()
    _watching = True
    yield _touched
    _watching = False


def test_the_watch_sees_a_file(touched: list[str], tmp_path: Path) -> None:
    (tmp_path / "seen").write_text("x")
    assert any("seen" in entry for entry in touched)


def test_no_validator_touches_network_or_files(touched: list[str]) -> None:
    def construct() -> None:
        for document in documents:
            kind = next(kind for kind in BLOCKS if kind.get_block_type_slug() == document["slug"])
            block = kind.model_validate(document["data"])
            block.model_dump_json()
            block.model_copy(deep=True)
            if isinstance(block, PsikBackend):
                assert block.endpoint
                block.model_copy(update={"endpoint_id": None}).get_transport()

    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(DOCUMENTS.glob("*.json"))]
    construct()  # what is imported on first use is no work of a validator
    touched.clear()
    construct()
    assert touched == []
