"""What identifies a submission: the idempotency key, psik's stamp derived from it, and the attempt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

#: psik accepts only digits; twenty hold 64 bits of the key's hash. The facility compares the whole key.
STAMP_DIGITS = 20


@dataclass(frozen=True)
class Identity:
    """The key of a submission, its stamp, and the attempt.

    Args:
        key: Submissions with the same key are the same submission.
        stamp: psik's stamp, derived from the key.
        attempt: Run counts, compared in order.
        is_own: No other root run can have this key.
    """

    key: str
    stamp: str
    attempt: list[int] = field(default_factory=list)
    is_own: bool = False


def stamp_of(key: str) -> str:
    """Derive psik's stamp, digits only, from a key."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return f"{number:0{STAMP_DIGITS}d}"
