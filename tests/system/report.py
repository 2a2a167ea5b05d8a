"""What the smoke test prints: text that can be pasted into an issue."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

PACKAGES = ("prefect-psik", "prefect", "globus-compute-sdk", "globus-sdk", "psik")
_UUID = re.compile(r"\b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """One step: its verdict (ok, FAILED or left out), how long it took, and what was seen."""

    verdict: str
    seconds: float
    step: str
    seen: str


def head(service: str) -> str:
    """Return when, with what and against what."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"prefect-psik smoke test, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, against {service}\n"
        f"{versions}\nPython {platform.python_version()} on {platform.system()} {platform.machine()}\n"
    )


def row(line: Line) -> str:
    """Return one step as a line."""
    return f"{line.verdict:8} {line.seconds:7.1f} s  {line.step:34} {' '.join(line.seen.split())}".rstrip()


def tail(lines: list[Line]) -> str:
    """Return the sum."""
    counts = {verdict: sum(line.verdict == verdict for line in lines) for verdict in ("ok", "FAILED", "left out")}
    return f"\n{counts['ok']} ok, {counts['FAILED']} failed, {counts['left out']} left out"


def redact(text: str, *secrets: str | None) -> str:
    """Take out secrets, and all of each UUID but its beginning."""
    for secret in secrets:
        text = text.replace(secret, "[secret]") if secret else text
    return _UUID.sub(r"\1-…", text)
