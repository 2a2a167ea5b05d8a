"""Keeps every message that crossed the broker, and finds pickled objects among them."""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PICKLING = ("00", "01", "02", "03", "04")
"""First line of a buffer that one of the SDK's strategies made with dill or pickle."""

_RAW = re.compile(rb"\x80[\x02-\x05]")
_ENCODED = re.compile(r"(?=(gA[I-X][A-Za-z0-9+/_-]{2,}[A-Za-z0-9+/=_\r\n-]*))")
"""Base64 of the two bytes that open a pickle of protocol 2 to 5 and what may follow; matches may overlap."""


@dataclass(frozen=True)
class Message:
    """One message body that crossed the broker."""

    at: float
    kind: str
    """`command`, `task`, `result`, `result-copy` or `heartbeat`."""
    queue: str
    body: bytes


@dataclass(frozen=True)
class Finding:
    """A pickled object in a message."""

    message: Message
    how: str


class Capture:
    """The file of messages, one JSON object a line, the body in base64."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()

    def write(self, kind: str, queue: str, body: bytes) -> None:
        """Append a message."""
        line = json.dumps(
            {"at": time.time(), "kind": kind, "queue": queue, "body": base64.b64encode(body).decode()}
        )
        with self._mutex, self._path.open("a") as out:
            out.write(line + "\n")


def read_capture(path: Path) -> Iterator[Message]:
    """Yield the messages of a capture file, oldest first; one that is being written comes the next time."""
    if not path.exists():
        return
    with path.open() as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            entry = json.loads(line)
            yield Message(entry["at"], entry["kind"], entry["queue"], base64.b64decode(entry["body"]))


def find_pickles(path: Path) -> list[Finding]:
    """Return the pickled objects in a capture file: raw, in base64, or in a buffer of an SDK strategy."""
    return [Finding(message, how) for message in read_capture(path) for how in pickles_in(message.body)]


def pickles_in(body: bytes) -> list[str]:
    """Say how pickled objects show in one message body; an empty list means there are none.

    Strings are looked at as they were before JSON escaped them, to any depth.
    """
    found = ["raw pickle" for match in _RAW.finditer(body) if _is_pickle(body[match.start() :])]
    try:
        value = json.loads(body.lstrip(b"\x01"))
    except ValueError:
        value = body.decode("latin-1")
    for text in _strings(value):
        found += [
            f"strategy {name}" for name, rest in _buffers(text) if name in _PICKLING and _encodes_pickle(rest)
        ]
        encoded = (match.group(1) for match in _ENCODED.finditer(text))
        found += [f"base64 pickle {part[:24]}..." for part in encoded if _encodes_pickle(part)]
    return found


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings in a JSON value, and those in strings that hold JSON themselves."""
    if isinstance(value, str):
        yield value
        inner = value.partition("\n")[2] if value[2:3] == "\n" else value
        if inner[:1] in ("{", "[", '"'):
            try:
                yield from _strings(json.loads(inner))
            except ValueError:
                return
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _buffers(text: str) -> Iterator[tuple[str, str]]:
    """Yield name and content of each serialized buffer, of one alone or packed: `LENGTH\\nBUFFER...`."""
    rest, buffers = text, []
    while rest:
        length, _, tail = rest.partition("\n")
        if not length.isdigit() or int(length) > len(tail):
            break
        buffers.append(tail[: int(length)])
        rest = tail[int(length) :]
    for buffer in buffers if not rest else [text]:
        if buffer[2:3] == "\n":
            yield buffer[:2], buffer[3:]


def _encodes_pickle(text: str) -> bool:
    compact = re.sub(r"[\r\n]", "", text).replace("-", "+").replace("_", "/").partition("=")[0]
    try:
        return _is_pickle(base64.b64decode(compact + "=" * (-len(compact) % 4)))
    except binascii.Error:
        return _is_pickle(base64.b64decode(compact[: len(compact) // 4 * 4]))


def _is_pickle(data: bytes) -> bool:
    """Say whether these bytes begin with a whole pickle: valid operations up to its end mark."""
    try:
        return any(operation.name == "STOP" for operation, _, _ in pickletools.genops(data))
    except ValueError:
        return False
