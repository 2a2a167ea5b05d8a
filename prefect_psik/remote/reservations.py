"""Reservations that may keep pending jobs from starting, as Slurm shows them."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from prefect_psik.remote.files import _user
from prefect_psik.remote.slurm import _slurm

#: Reasons of pending jobs that may be caused by a reservation.
RESERVED = re.compile("ReqNodeNotAvail|[Rr]eserved")
#: What is kept of a reservation.
RESERVATION_FIELDS = re.compile(r"(?<!\S)(?:ReservationName|StartTime|EndTime|Nodes|Flags)=\S*")
#: What squeue is asked of a pending job: `%P`, `%l`, `%D`, `%n` and `%x`.
ASKED_FIELDS = ("partition", "limit", "nodes", "required", "excluded")
#: The time limit of each of these commands: a call runs squeue first, and has 60 s for everything.
HELD_SECONDS = 5.0
#: What is kept for all jobs, and what the facts of one job may carry; more is left out.
HELD_BYTES = 1024 * 1024
HELD_JOB_BYTES = 64 * 1024


def _held(rows: dict[str, list[str]]) -> dict[str, Any]:
    """Look up what may keep pending jobs from starting, if Slurm's reasons mention a reservation.

    Args:
        rows: The queue, as `_rows_by_id` reads it.

    Returns:
        `{"reserved": as of `_reservations`, "jobs": {native id: ASKED_FIELDS by name}}`; empty if no reason
        mentions one, if a command fails, and if there is too much to keep.
    """
    if not any(row[0] == "PENDING" and RESERVED.search(row[5]) for row in rows.values()):
        return {}
    reserved = _reservations(HELD_SECONDS)
    if reserved is None:
        return {}
    which = ("-h", "-t", "PD", "-u", _user(), "-o", "%i|%P|%l|%D|%n|%x|%r")
    ok, text = _slurm("squeue", *which, seconds=HELD_SECONDS)
    jobs = {}
    for line in text.splitlines() if ok else []:
        native_id, *fields = line.strip().split("|", len(ASKED_FIELDS) + 1)
        if len(fields) == len(ASKED_FIELDS) + 1 and RESERVED.search(fields[-1]):
            jobs[native_id] = dict(zip(ASKED_FIELDS, fields))
    held = {"reserved": reserved, "jobs": jobs}
    return held if jobs and len(json.dumps(held)) <= HELD_BYTES else {}


def _reservations(seconds: float) -> dict[str, Any] | None:
    """All reservations, the nodes of all partitions, and what the clocks here show at their times.

    Args:
        seconds: How long each command of Slurm may take.

    Returns:
        `{"reservations": [line], "partitions": {name: nodes}, "clock": {Unix time: text}}`; None: Slurm does not
        answer.
    """
    ok, text = _slurm("scontrol", "-o", "show", "reservation", seconds=seconds)
    if not ok:
        return None
    found = [
        " ".join(RESERVATION_FIELDS.findall(line)) for line in text.splitlines() if "ReservationName=" in line
    ]
    ok, text = _slurm("scontrol", "-o", "show", "partition", seconds=seconds)
    if not ok:
        return None
    nodes = re.findall(r"(?m)^PartitionName=(\S+).*?\sNodes=(\S*)", text)
    times = set(re.findall(r"(?:Start|End)Time=(\d{1,12})(?!\S)", " ".join(found)))
    clock = {moment: time.strftime("%d %b %H:%M %Z", time.localtime(int(moment))).lstrip("0") for moment in times}
    return {"reservations": found, "partitions": dict(nodes), "clock": clock}


def _held_of(held: dict[str, Any], native_id: str) -> dict[str, Any] | None:
    """What may keep one job from starting: its own partitions, and the reservations on nodes like theirs.

    Args:
        held: As `_held` returns it, or what a job wrote in its place.
        native_id: Slurm's id of the job.

    Returns:
        What `reservations.Held` reads; None: nothing is known, or it is too large.
    """
    reserved: Any = held.get("reserved")
    jobs: Any = held.get("jobs")
    asked: Any = jobs.get(native_id) if isinstance(jobs, dict) else None
    if not _is_texts(asked, ASKED_FIELDS) or not isinstance(reserved, dict):
        return None
    fields: Any = [reserved.get(name) for name in ("reservations", "partitions", "clock")]
    lines, partitions, clock = fields
    if not (isinstance(lines, list) and all(map(_is_text, lines)) and _is_texts(partitions) and _is_texts(clock)):
        return None
    ours = {name: partitions[name] for name in asked["partition"].split(",") if name in partitions}
    kinds = _kinds(asked["required"]).union(*map(_kinds, ours.values()))
    near = [line for line in lines if kinds & _kinds("".join(re.findall(r"(?<!\S)Nodes=(\S*)", line)))]
    shown = {moment: text for moment, text in clock.items() if any(f"Time={moment}" in line for line in near)}
    facts = {**asked, "reservations": near, "partitions": ours, "clock": shown}
    return facts if len(json.dumps(facts)) <= HELD_JOB_BYTES else None


def _kinds(nodes: str) -> set[str]:
    """The beginnings of the names in a list of nodes, each up to its first digit: `n[1-4,7],gpu01` has n and gpu.

    Two lists that share a node share one of these.
    """
    return set(re.findall(r"(?:^|,)([^\d\[,]*)", re.sub(r"\[[^\]]*\]", "[", nodes)))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_texts(value: Any, names: tuple[str, ...] | None = None) -> bool:
    """Whether these are texts by name; with the names given, by these."""
    whole = isinstance(value, dict) and all(map(_is_text, [*value, *value.values()]))
    return whole and (names is None or set(value) == set(names))
