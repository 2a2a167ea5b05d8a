"""The block that holds a Globus login; nothing else reads secrets."""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.blocks.abstract import CredentialsBlock
from pydantic import Field, SecretStr

from prefect_psik.exceptions import SpecError
from prefect_psik.models.single import Single

if TYPE_CHECKING:
    from globus_sdk import GlobusApp

#: Keeps fingerprints from being compared with those of any other process.
_SALT = secrets.token_bytes(16)


class GlobusCredentials(Single, CredentialsBlock):
    """A Globus login for Compute and Transfer.

    With both fields empty, the worker's own login is used: the variables `GLOBUS_COMPUTE_CLIENT_ID` and
    `GLOBUS_COMPUTE_CLIENT_SECRET`, or the login that `globus-compute-endpoint login` stored.

    Example:
        ```python
        from prefect_psik import GlobusCredentials

        credentials = GlobusCredentials(
            client_id="11111111-2222-3333-4444-555555555555", client_secret="the client's secret"
        )
        ```
    """

    _block_type_name = "Globus Credentials"
    _block_type_slug = "globus-credentials"
    _description = (
        "Log in to Globus Compute and Transfer as a confidential client, or with the worker's own login."
    )

    client_id: UUID | None = Field(
        default=None, title="Client UUID", description="UUID of the confidential client, not of its secret."
    )
    client_secret: SecretStr | None = Field(default=None, title="Client secret")

    @property
    def is_empty(self) -> bool:
        """Whether to use the worker's own login."""
        return self.client_id is None and self.client_secret is None

    @property
    def fingerprint(self) -> str:
        """A hash that distinguishes logins and their secrets within this process, without revealing them."""
        secret = self.client_secret.get_secret_value() if self.client_secret else ""
        return hashlib.blake2b(f"{self.client_id} {secret}".encode(), key=_SALT, digest_size=16).hexdigest()

    @property
    def identity(self) -> str:
        """A name that distinguishes logins without revealing the secret."""
        return str(self.client_id or "worker")

    def get_client(self) -> GlobusApp:
        """Create a Globus app that logs in with these credentials and keeps its tokens only in memory.

        Raises:
            SpecError: Only one of the two fields is set, or both are empty.
        """
        from globus_sdk import ClientApp, GlobusAppConfig

        if self.client_id is None or self.client_secret is None:
            raise SpecError(
                "The Globus credentials need both client_id and client_secret. Fill in both in the "
                "globus-credentials block, or leave both empty to use the worker's own login."
            )
        return ClientApp(
            "prefect-psik",
            client_id=str(self.client_id),
            client_secret=self.client_secret.get_secret_value(),
            config=GlobusAppConfig(token_storage="memory"),
        )


def transfer_login(credentials: GlobusCredentials | None) -> GlobusCredentials:
    """The login for Globus Transfer: the given one, or the client of the worker's environment.

    Raises:
        SpecError: There is none. A login that a person has stored is for Globus Compute only.
    """
    if credentials is not None and not credentials.is_empty:
        return credentials
    client_id = os.environ.get("GLOBUS_COMPUTE_CLIENT_ID")
    client_secret = os.environ.get("GLOBUS_COMPUTE_CLIENT_SECRET")
    if not client_id or not client_secret:
        raise SpecError(
            "There is no login for Globus Transfer. Add a globus-credentials block with client_id and "
            "client_secret to the globus-collection block, or set GLOBUS_COMPUTE_CLIENT_ID and "
            "GLOBUS_COMPUTE_CLIENT_SECRET in the worker's environment."
        )
    return GlobusCredentials(client_id=UUID(client_id), client_secret=SecretStr(client_secret))
