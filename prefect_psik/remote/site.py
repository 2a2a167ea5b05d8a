"""What jobs may ask for: the limits of the site's own psik.json, if there is one, and psik's own fields."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from typing import Any

from prefect_psik.remote.wire import Trouble

#: In psik's own format. Anything it leaves out is not restricted.
SITE_FILE = "/etc/prefect-psik/psik.json"
SITE_BYTES = 1024 * 1024
_BACKEND_FIELDS = ("type", "queue_name", "project_name", "reservation_id")
#: sbatch options that mean the same as a field of psik's backend.
_SAME_AS = {"--partition": "queue_name", "--account": "project_name", "--reservation": "reservation_id"}
#: psik writes it into the first line of its batch script, where a blank or a newline would change its meaning.
_PSIK_PYTHON = re.compile(r"/[\w./+,:=@~-]+")
#: Another cluster has partitions and accounts of its own.
_NEVER = ("--clusters",)


def _site_rules(path: str | None = None) -> dict[str, Any]:
    """Read what the site allows; empty if it has no rules.

    Returns:
        `{"file", "prefix", "backends"}`; prefix is None, and backends empty, if the file does not restrict them.

    Raises:
        Trouble: The file exists, but cannot be trusted or understood. Then nothing may be submitted.
    """
    path = path or SITE_FILE
    try:
        text = _site_text(path)
    except FileNotFoundError:
        return {}
    except OSError as err:
        raise _no_rules(path, err.strerror or str(err)) from None
    try:
        document = json.loads(text)
        backends = document.get("backends", {})
        unknown = [key for key in document if key not in ("prefix", "backends")]
        unknown += [
            key for each in backends.values() for key in each if key not in (*_BACKEND_FIELDS, "attributes")
        ]
        pins = {name: _pins(each) for name, each in backends.items()}
        prefix = os.path.expanduser(os.path.expandvars(document["prefix"])) if "prefix" in document else None
    except (AttributeError, TypeError, ValueError) as err:
        raise _no_rules(path, f"it is not a valid psik.json ({err})") from None
    if unknown:
        raise _no_rules(path, f"it has the unknown field {unknown[0]!r}")
    if prefix is not None and ("$" in prefix or not os.path.isabs(prefix)):
        raise _no_rules(path, f"its prefix becomes {prefix!r}, which is not an absolute path")
    return {"file": path, "prefix": prefix, "backends": pins}


def _pins(backend: dict[str, Any]) -> dict[str, str]:
    pins = {name: backend[name] for name in _BACKEND_FIELDS if backend.get(name) is not None}
    pins.update(backend.get("attributes", {}))
    if not all(isinstance(value, str) for value in pins.values()):
        raise TypeError("a value is not a string")
    return pins


def _site_text(path: str) -> bytes:
    """Read a file that cannot have been written by this user; follows no link."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory = os.open(os.path.dirname(path), flags | os.O_DIRECTORY)
    try:
        handle = os.open(os.path.basename(path), flags | os.O_NONBLOCK, dir_fd=directory)
        try:
            above, found = os.fstat(directory), os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(None, "it is not a plain file")
            if (above.st_mode | found.st_mode) & 0o022:
                raise OSError(None, "it or its directory is writable by a group or by everybody")
            if above.st_uid == os.getuid() != 0 or found.st_uid not in (0, above.st_uid):
                raise OSError(None, "it must belong to root, or to the owner of its directory if that is not you")
            return os.read(handle, SITE_BYTES)
        finally:
            os.close(handle)
    finally:
        os.close(directory)


def _no_rules(path: str, why: str) -> Trouble:
    return Trouble(
        "setup",
        f"{path} on {socket.gethostname()}, which sets what this site allows, cannot be used: {why.rstrip('.')}. "
        "Nothing is submitted until the site's administrator fixes it: it must be a plain file in psik's format, "
        "owned by root, with mode 0644.",
    )


def _check_prefix(rules: dict[str, Any], prefix: str) -> None:
    """Refuse a prefix that is neither the site's nor below it."""
    allowed = rules.get("prefix")
    if allowed is None:
        return
    top = os.path.realpath(allowed)
    if os.path.commonpath([top, os.path.realpath(prefix)]) != top:
        raise Trouble(
            "rejected",
            f"{rules['file']} on {socket.gethostname()} does not allow the prefix {prefix}: it must be {allowed} "
            "or a directory below it. Change the prefix of the psik-backend block.",
        )


def _check_backend(rules: dict[str, Any], backend: dict[str, Any], arguments: dict[str, str]) -> None:
    """Refuse a job that none of the site's backends allows, and options that would bypass the check.

    Args:
        rules: From `_site_rules`.
        backend: psik's BackendConfig.
        arguments: The job's attributes, which psik passes to sbatch, keys and values.
    """
    _check_attributes(backend)
    if not rules.get("backends"):
        return
    asked = _asked_for(rules, backend, arguments)
    for pins in rules["backends"].values():
        if all(asked.get(name) == {value} for name, value in pins.items()):
            return
    wanted = {name for pins in rules["backends"].values() for name in pins}
    raise Trouble(
        "rejected",
        f"{rules['file']} on {socket.gethostname()} does not allow this job, which asks for "
        f"{_words({name: '/'.join(sorted(asked.get(name, ['none']))) for name in sorted(wanted)})}. Allowed: "
        f"{'; '.join(f'{name} ({_words(pins)})' for name, pins in rules['backends'].items())}. Change the "
        "attributes of the psik-backend block.",
    )


def _check_attributes(backend: dict[str, Any]) -> None:
    """Refuse backend attributes that psik would merge into sbatch's arguments."""
    attributes = dict(backend.get("attributes") or {})
    python = attributes.pop("psik_python", None)
    if attributes:
        raise Trouble(
            "rejected",
            f"The attributes of psik's backend contain {min(attributes, key=str)!r}, which psik would pass to "
            "sbatch unchecked: only psik_python may be set there. Put sbatch options in the options of the "
            "psik-backend block, or in the attributes of the job.",
        )
    if python is not None and not (isinstance(python, str) and _PSIK_PYTHON.fullmatch(python)):
        raise Trouble(
            "rejected",
            f"psik_python is {python!r}, but must be the absolute path of a Python, without blanks, quotes or "
            "arguments. Change psik_python in the psik-backend block.",
        )


def _asked_for(rules: dict[str, Any], backend: dict[str, Any], arguments: dict[str, str]) -> dict[str, set[str]]:
    """What a job asks for, by psik's fields and sbatch's long options, which sbatch lets users abbreviate."""
    asked = {name: {str(backend[name])} for name in _BACKEND_FIELDS if backend.get(name) is not None}
    given = list((backend.get("attributes") or {}).items())
    for argument in dict.fromkeys([*arguments, *arguments.values()]):
        name, _, value = argument.partition("=")
        if not argument.startswith("--") or any(never.startswith(name) for never in _NEVER):
            raise Trouble(
                "rejected",
                f"{rules['file']} on {socket.gethostname()} restricts what jobs may ask for, so {argument!r} is "
                "refused: use sbatch's long options, such as --qos, and no other cluster.",
            )
        given.append((name, value))
    watched = [*_SAME_AS, *(name for pins in rules["backends"].values() for name in pins)]
    for name, value in given:
        for full in watched:
            if full == name or (full.startswith(name) and name.startswith("--")):
                asked.setdefault(_SAME_AS.get(full, full), set()).add(str(value))
    return asked


def _words(pins: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in pins.items()) or "anything"
