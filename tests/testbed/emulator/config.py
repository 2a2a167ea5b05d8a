"""What the emulator is told when it starts: its port, its broker, its files and the clients it knows."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Consent = Literal["none", "data_access", "never"]
"""What a collection asks of the caller's token; `never`: nothing is enough."""


@dataclass(frozen=True)
class KnownClient:
    """A registered confidential client and its identities."""

    client_id: str
    secret: str
    username: str
    identity_set: tuple[str, ...]
    """All identities linked to it, itself first. An endpoint obeys any identity linked to its owner."""


@dataclass(frozen=True)
class Collection:
    """A Globus Transfer collection: a real directory under a UUID."""

    id: str
    name: str
    root: str
    consent: Consent = "none"
    writable: bool = True
    owner: str | None = None
    """The user whom new files belong to; None: who runs the emulator."""

    def real(self, path: str) -> Path:
        """Return where a path of the collection lies on this machine; a link or `..` leads nowhere else."""
        return Path(self.root) / os.path.normpath("/" + path).lstrip("/")

    def path(self, real: Path) -> str:
        """Return the collection's path of a real one."""
        return "/" + str(real.relative_to(self.root))

    def make_directory(self, real: Path) -> None:
        """Make a directory and those above it."""
        missing = [place for place in (real, *real.parents) if not place.exists()]
        for place in reversed(missing):
            place.mkdir(exist_ok=True)
            self.own(place)

    def own(self, real: Path) -> None:
        """Give a new file or directory to whom it belongs."""
        if self.owner is not None:
            shutil.chown(real, self.owner, self.owner)


@dataclass(frozen=True)
class Config:
    """The emulator's settings, kept as one JSON file that only its user can read."""

    port: int
    broker_url: str
    directory: str
    token_key: str
    clients: tuple[KnownClient, ...]
    collections: tuple[Collection, ...]

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
        collections = tuple(Collection(**entry) for entry in fields.pop("collections"))
        return cls(**fields, clients=clients, collections=collections)
