"""What a block says of itself: typos, contradictions, and values that cannot be used."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from prefect.blocks.core import Block
from pydantic import ValidationError

from prefect_psik.blocks import GlobusCollection, PsikBackend
from prefect_psik.exceptions import SpecError
from prefect_psik.flow_run import load as resolve
from prefect_psik.jobs.preflight import preflight, unusable
from prefect_psik.models.jobs import Verdict
from prefect_psik.session.session import Channel, Session
from tests.unit.test_arrival import Facility
from tests.unit.test_preflight import GOOD

ENDPOINT = "11111111-2222-3333-4444-555555555555"


def told(caplog: pytest.LogCaptureFixture, document: dict[str, Any]) -> str:
    """What loading a block's document logs."""
    with caplog.at_level(logging.WARNING, "prefect_psik"):
        PsikBackend.model_validate(document)
    return "\n".join(caplog.messages)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"prefx": "/p"}, "'prefx' (did you mean prefix?)"),
        ({"attributes": {"queue": "debug"}}, "'attributes.queue' (did you mean attributes.queue_name?)"),
        (
            {"attributes": {"reservation": "r"}},
            "'attributes.reservation' (did you mean attributes.reservation_id?)",
        ),
        ({"default_resources": {"node_cuont": 2}}, "(did you mean default_resources.node_count?)"),
        ({"default_resources": {"zzz": 2}}, "'default_resources.zzz': it is ignored"),
    ],
)
def test_a_typo_is_told_at_any_depth(
    caplog: pytest.LogCaptureFixture, document: dict[str, Any], says: str
) -> None:
    assert says in told(caplog, document)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"attributes": {"type": "local", "queue_name": "debug"}}, "on this machine"),
        ({"attributes": {"type": "local", "project_name": "m1"}}, "attributes.project_name would be ignored"),
        (
            {"attributes": {"type": "local", "options": {"--licenses": "cfs"}}},
            "attributes.options would be ignored",
        ),
        (
            {"attributes": {"type": "local", "qos": "q", "constraint": "gpu"}},
            "attributes.qos, attributes.constraint",
        ),
        ({"attributes": {"type": "local"}, "endpoint_id": ENDPOINT}, "on the login node of the endpoint"),
    ],
)
async def test_what_needs_a_scheduler_where_there_is_none_is_told_when_loaded_and_by_the_preflight(
    caplog: pytest.LogCaptureFixture, document: dict[str, Any], says: str
) -> None:
    assert says in told(caplog, document)
    assert len(caplog.messages) == 1
    channel = Channel(Session.current(), Facility("preflight", GOOD, whole=True), "/p", 1.0)
    report = await preflight(channel, PsikBackend.model_validate(document))
    [row] = [check for check in report.checks if check.name == "block"]
    assert row.verdict is Verdict.warning
    assert says in row.message


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"attributes": {"type": "local"}},
        {"endpoint_id": ENDPOINT, "attributes": {"type": "slurm", "queue_name": "q"}},
    ],
)
def test_a_block_in_order_says_nothing(caplog: pytest.LogCaptureFixture, document: dict[str, Any]) -> None:
    assert told(caplog, document) == ""


BAD: list[tuple[type[Block], dict[str, Any], str]] = [
    (PsikBackend, {"umask": "0999"}, "umask"),
    (PsikBackend, {"attributes": {"type": "pbs"}}, "attributes.type"),
    (PsikBackend, {"default_resources": {"duration": 0}}, "default_resources.duration"),
    (PsikBackend, {"endpoint_id": "not-a-uuid"}, "endpoint_id"),
    (GlobusCollection, {"collection_id": "not-a-uuid"}, "collection_id"),
]


@pytest.mark.parametrize(("kind", "document", "field"), BAD)
def test_a_stored_block_with_a_bad_value_is_an_error_that_names_the_field(
    monkeypatch: pytest.MonkeyPatch, kind: type[Block], document: dict[str, Any], field: str
) -> None:
    def load(name: str, **_: Any) -> Block:
        try:
            return kind.model_validate(document)
        except ValidationError as err:  # as Prefect does
            raise RuntimeError(f"Unable to load {name!r} due to failed validation.") from err

    monkeypatch.setattr(kind, "load", load)
    monkeypatch.setattr(resolve, "existing_blocks", lambda _: ["mine"])
    loaded = resolve.load_backend if kind is PsikBackend else resolve.load_collection
    with pytest.raises(SpecError, match=rf"/mine cannot be used: {field}: ") as caught:
        loaded("mine")
    assert "not-a-uuid" not in str(caught.value), "it may be a secret in the wrong field"
    [row] = unusable("mine", caught.value).checks
    assert (row.name, row.verdict) == ("block", Verdict.failed)
    assert field in row.message
