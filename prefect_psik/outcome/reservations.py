"""Reservations that keep a job from starting: read from Slurm's output and compared with the job."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from pydantic import Field

from prefect_psik.outcome.arrival import Answer, Text

#: No cluster has more nodes, and no set of reservations more in all. Longer lists are not read: a job can write
#: anything into the file they come from.
MOST_NODES, MOST_READ = 200_000, 1_000_000
#: The longest name that a host may have.
LONGEST_NAME = 255


class Reservation(NamedTuple):
    """One reservation; times are Unix times."""

    name: str
    start: int
    end: int
    nodes: frozenset[str]
    is_maintenance: bool

    def __str__(self) -> str:
        return "maintenance" if self.is_maintenance else f"reservation {self.name}"


class Held(Answer):
    """A job that may wait for a reservation to end, as the facility describes both; nodes as Slurm writes them.

    Args:
        partition: One name or several with commas.
        limit: Its time limit, as Slurm writes it.
        nodes: The number of nodes that it asks for: `2`, or `2-4`.
        required: The nodes that it must have.
        excluded: The nodes that it must not have.
        reservations: Lines of `scontrol -o show reservation`, with Unix times.
        partitions: The nodes of each partition.
        clock: Unix time -> the facility's local time, with the name of its time zone.
    """

    partition: str = ""
    limit: Text = ""
    nodes: str = "1"
    required: str = ""
    excluded: str = ""
    reservations: list[str] = Field(default_factory=list)
    partitions: dict[str, str] = Field(default_factory=dict)
    clock: dict[str, Text] = Field(default_factory=dict)


def held_by(held: Held, seconds: float, now: float, reason: str = "") -> str | None:
    """Say which reservation keeps a job from starting, until when, and how short the job would have to be.

    Args:
        held: What the facility knows.
        seconds: The job's time limit; infinite: it has none.
        now: By the facility's clock, Unix time.
        reason: Slurm's own; if it mentions maintenance, a job whose nodes are unknown waits for that.

    Returns:
        Text that follows the job's name; None if no reservation is known to hold it.
    """
    due = [found for found in read_reservations(held.reservations) if found.start < now + seconds]
    obstacle = _obstacle(held, [found for found in due if found.end > now], now, sure="maintenance" in reason)
    if obstacle is None:
        return None
    if obstacle.start <= now:
        return f"the {obstacle} on nodes that it needs ends {_on_the_clock(held, obstacle.end)}"
    text = f"does not fit before the {obstacle} that starts {_on_the_clock(held, obstacle.start)}"
    minutes = int(obstacle.start - now) // 60
    return f"{text}; with a duration of at most {in_hours(minutes)} it could start now" if minutes else text


def _obstacle(held: Held, due: Sequence[Reservation], now: float, *, sure: bool) -> Reservation | None:
    """The first reservation with which too few nodes are left for the job."""
    required = expand(held.required)
    ours = _together(held.partitions.get(name, "") for name in held.partition.split(","))
    usable = (required or ours) - expand(held.excluded)
    number = re.match("[0-9]{1,9}", held.nodes)
    needed = max(int(number[0]) if number else 1, len(required))

    def block(found: Iterable[Reservation]) -> bool:
        return len(usable.difference(*(one.nodes for one in found))) < needed

    due = sorted((found for found in due if found.nodes & usable), key=lambda found: found.start)
    under_way = [found for found in due if found.start <= now]
    if under_way and block(under_way):
        return max(under_way, key=lambda found: (found.is_maintenance, found.end))
    for count in range(len(under_way) + 1, len(due) + 1):
        if block(due[:count]):
            return due[count - 1]
    # It may need nodes of a kind that cannot be seen here.
    return next((found for found in due if found.is_maintenance), None) if sure else None


def read_reservations(lines: Iterable[str]) -> list[Reservation]:
    """Read lines of `scontrol -o show reservation`; those without times or nodes hold no job."""
    found = []
    read = 0
    for line in lines:
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        times = [fields.get(name, "") for name in ("StartTime", "EndTime")]
        nodes = expand(fields.get("Nodes", ""))
        read += len(nodes)
        if read > MOST_READ:
            break
        if all(re.fullmatch("[0-9]{1,12}", time) for time in times) and nodes:
            maintenance = "MAINT" in fields.get("Flags", "").split(",")
            start, end = map(int, times)
            found.append(Reservation(fields.get("ReservationName", ""), start, end, nodes, maintenance))
    return found


def _together(hostlists: Iterable[str]) -> frozenset[str]:
    nodes: set[str] = set()
    for hostlist in hostlists:
        nodes |= expand(hostlist)
        if len(nodes) > MOST_NODES:
            break
    return frozenset(nodes)


@lru_cache(maxsize=256)
def expand(hostlist: str) -> frozenset[str]:
    """Read a list of nodes as Slurm writes it: `n[1-4,07],gpu1`, `r[1-2]n[01-10]`; empty where it is none."""
    names: set[str] = set()
    if hostlist == "(null)":
        return frozenset()
    for word in re.findall(r"[^,\[\]]+(?:\[[^\[\]]*\][^,\[\]]*)*", hostlist):
        literals = re.split(r"\[[^\]]*\]", word)
        axes: list[list[str]] = []
        count = 1
        for ranges in re.findall(r"\[([^\]]*)\]", word):
            axes.append(_numbers(ranges))
            count *= len(axes[-1])
            if len(names) + count > MOST_NODES or not count:
                break
        if len(names) + count > MOST_NODES or sum(map(len, literals)) > LONGEST_NAME:
            return frozenset()
        if count:
            for chosen in itertools.product(*axes):
                names.add("".join(itertools.chain(*itertools.zip_longest(literals, chosen, fillvalue=""))))
    return frozenset(names)


def _numbers(text: str) -> list[str]:
    """Read the inside of brackets: `1-4,07`."""
    numbers: list[str] = []
    for part in text.split(","):
        ends = re.fullmatch("([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if ends and last - first <= MOST_NODES:
            numbers += [str(number).zfill(len(ends[1])) for number in range(first, last + 1)]
        if len(numbers) > MOST_NODES:
            break
    return numbers


def lasting(reason: str) -> str:
    """A reason without the part that changes as time passes: how short the job would have to be."""
    return re.sub(r"; with a duration of at most .+? it could start now", "", reason)


def in_hours(minutes: int) -> str:
    """A duration as a person reads it: 45 min, 5 h 10 min, 2 days 3 h."""
    days, minutes = divmod(minutes, 24 * 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(days, "day" if days == 1 else "days"), (hours, "h"), (minutes, "min")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 min"


def _on_the_clock(held: Held, time: int) -> str:
    return held.clock.get(str(time), f"Unix time {time}")
