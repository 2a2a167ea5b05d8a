"""The faults: what each does to the facility or to a client, how long it lasts, and how it is mended."""

from __future__ import annotations

import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.chaos.services import Services, kill
from tests.testbed.facility import Facility
from tests.testbed.slurm_conf import NODES
from tests.testbed.small_disk import filled

#: Requests of clients that a fault of the service hits: those that send calls, and those that ask for results.
REQUESTS = ("POST /v3/endpoints/*/submit", "POST /v2/batch_status")
#: How long an order to the emulator holds.
ORDER_SECONDS = 10.0


@dataclass
class Field:
    """Where faults happen.

    Attributes:
        facility: The testbed.
        services: Prefect.
        prefix: The directory of psik's jobs.
        flow_runs: Ids of the flow runs that go on.
        disk_full: When the disk at the prefix was full.
    """

    facility: Facility
    services: Services
    prefix: Path
    flow_runs: set[str] = field(default_factory=set)
    disk_full: list[tuple[float, float]] = field(default_factory=list)
    _turns: dict[str, threading.Lock] = field(default_factory=dict)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def turn(self, what: str) -> threading.Lock:
        """One fault at a time for the same thing."""
        with self._mutex:
            return self._turns.setdefault(what, threading.Lock())

    def killed(self, daemon: str) -> None:
        """Kill a daemon without warning."""
        self.facility.daemons.signal(daemon, signal.SIGKILL)


#: Does the harm, yields the seconds that it lasts, then mends it.
Act = Callable[[Field, Random], Iterator[float]]


@dataclass(frozen=True)
class Kind:
    """A kind of fault; `target` is what it breaks, which no other fault breaks meanwhile."""

    name: str
    target: str
    act: Act


KINDS: dict[str, Kind] = {}


def _kind(name: str, target: str) -> Callable[[Act], Act]:
    def enter(act: Act) -> Act:
        KINDS[name] = Kind(name, target, act)
        return act

    return enter


def inject(kind: Kind, field: Field, dice: Random, ended: threading.Event) -> None:
    """Let a fault happen and mend it; early, if the run ends."""
    with field.turn(kind.target):
        for seconds in kind.act(field, dice):
            ended.wait(seconds)


# ------------------------------------------------------------------------------------------------- clients


@_kind("flow process killed", "flow process")
def _flow(field: Field, dice: Random) -> Iterator[float]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        processes = field.services.flow_processes()
        if running := sorted(set(processes) & field.flow_runs):
            kill(processes[dice.choice(running)])
            return
        yield 1.0
    raise RuntimeError("no flow process ran for 30 s")


@_kind("worker killed", "worker")
def _worker(field: Field, dice: Random) -> Iterator[float]:
    field.services.kill_worker()
    yield dice.uniform(0, 10)
    field.services.start_worker()


@_kind("client clock jumps", "clock")
def _clock(field: Field, dice: Random) -> Iterator[float]:
    ahead = dice.choice((-1, 1)) * dice.choice((300.0, 7200.0, 200_000.0))
    _write_clock(field.services.clock, ahead)
    yield dice.uniform(5, 20)
    _write_clock(field.services.clock, 0.0)


def _write_clock(path: Path, ahead: float) -> None:
    with path.open("r+b") as file:
        file.write(struct.pack("d", ahead))


# ----------------------------------------------------------------------------------------- Globus and endpoint


@_kind("endpoint killed", "endpoint")
def _endpoint(field: Field, dice: Random) -> Iterator[float]:
    field.killed("endpoint")
    yield dice.uniform(0, 10)
    field.facility.endpoint.start({**field.facility.globus.env("owner"), **field.facility.slurm.env})


@_kind("user endpoint killed", "endpoint")
def _user_endpoint(field: Field, dice: Random) -> Iterator[float]:
    field.facility.endpoint.kill_user_endpoint()
    yield 0.0


@_kind("RabbitMQ killed", "globus")
def _broker(field: Field, dice: Random) -> Iterator[float]:
    field.killed("rabbitmq")
    yield dice.uniform(0, 5)
    field.facility.broker.start()


@_kind("emulator killed", "globus")
def _emulator(field: Field, dice: Random) -> Iterator[float]:
    field.killed("emulator")
    yield dice.uniform(0, 10)
    field.facility.globus.start()


def _ordered(kind: str, **order: object) -> Act:
    """A fault that the emulator commits by itself at the next request or message that fits; none later."""

    def act(field: Field, dice: Random) -> Iterator[float]:
        chosen = {name: dice.choice(value) if isinstance(value, tuple) else value for name, value in order.items()}
        field.facility.globus.order_fault(kind, **chosen)
        yield ORDER_SECONDS
        field.facility.globus.clear_faults()

    return act


_kind("task lost", "orders")(_ordered("lose_result", match="*", times=(1, 2)))
_kind("task delivered twice", "orders")(_ordered("duplicate_task", match="*", times=(1, 3)))
_kind("reply lost", "orders")(_ordered("drop_reply", match=REQUESTS, times=(1, 2)))
_kind("slow answer", "orders")(_ordered("delay", match=REQUESTS, times=(1, 3), seconds=(3.0, 15.0)))
_kind("401", "orders")(_ordered("error", match=REQUESTS, status=401, code="AUTHENTICATION_ERROR"))
_kind("429", "orders")(_ordered("error", match=REQUESTS, status=429, code="TOO_MANY_REQUESTS", times=(1, 5)))
_kind("5xx", "orders")(_ordered("error", match=REQUESTS, status=(500, 502, 503, 504), times=(1, 5)))


# ------------------------------------------------------------------------------------------------- Slurm


@_kind("slurmctld killed", "slurmctld")
def _controller(field: Field, dice: Random) -> Iterator[float]:
    field.killed("slurmctld")
    yield dice.uniform(0, 15)
    field.facility.slurm.start_controller()


@_kind("slurmctld hangs", "slurmctld")
def _hang(field: Field, dice: Random) -> Iterator[float]:
    field.facility.daemons.signal("slurmctld", signal.SIGSTOP)
    yield dice.uniform(5, 30)
    field.facility.daemons.signal("slurmctld", signal.SIGCONT)


@_kind("slurmdbd killed", "slurmdbd")
def _database(field: Field, dice: Random) -> Iterator[float]:
    field.killed("slurmdbd")
    yield dice.uniform(0, 20)
    field.facility.slurm.start_accounting()


@_kind("slurmd killed", "slurmd")
def _node(field: Field, dice: Random) -> Iterator[float]:
    node = dice.choice(NODES)
    field.killed(f"slurmd-{node}")
    # Slurm gives up a node after 30 s.
    yield dice.choice((5.0, 45.0))
    field.facility.slurm.start_node(node)


# -------------------------------------------------------------------------------------------------- disk


@_kind("disk full", "disk")
def _disk(field: Field, dice: Random) -> Iterator[float]:
    begin = time.time()
    with filled(field.prefix):
        yield dice.uniform(2, 10)
    field.disk_full.append((begin, time.time()))
