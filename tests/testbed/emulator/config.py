"""What the emulator is told when it starts: its port, its broker, its files and the clients it knows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class KnownClient:
    """A registered confidential client and its identities."""

    client_id: str
    secret: str
    username: str
    identity_set: tuple[str, ...]
    """All identities linked to it, itself first. An endpoint obeys any identity linked to its owner."""


@dataclass(frozen=True)
class Config:
    """The emulator's settings, kept as one JSON file that only its user can read."""

    port: int
    broker_url: str
    directory: str
    token_key: str
    clients: tuple[KnownClient, ...]

    def dumps(self) -> str:
        """Return the settings as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read the settings from a file."""
        fields = json.loads(path.read_text())
        clients = tuple(
            KnownClient(**{**entry, "identity_set": tuple(entry["identity_set"])})
            for entry in fields.pop("clients")
        )
        return cls(**fields, clients=clients)
