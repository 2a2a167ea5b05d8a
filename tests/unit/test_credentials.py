"""What tells logins apart, and what it does not tell."""

from __future__ import annotations

from uuid import UUID, uuid4

from prefect_psik import GlobusCredentials
from prefect_psik.transport.globus.transport import GlobusTransport


def test_a_changed_secret_is_another_way() -> None:
    client, endpoint = uuid4(), uuid4()

    def key(secret: str, of: UUID = client) -> str:
        login = GlobusCredentials(client_id=of, client_secret=secret)
        return GlobusTransport(endpoint, credentials=login).key

    assert key("old secret") == key("old secret")
    assert key("old secret") != key("new secret")
    assert key("old secret") != key("old secret", uuid4())
    assert "old secret" not in key("old secret")
