"""The faults: what each does to the facility or to a client, how long it lasts, and how it is mended."""

from __future__ import annotations

import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.data import STEP_SECONDS, Ring, work
from tests.chaos.services import Services, kill
from tests.chaos.truth import Fault
from tests.testbed.facility import Facility
from tests.testbed.slurm_conf import NODES
from tests.testbed.small_disk import filled
from tests.testbed.state import TestbedError

#: Requests of clients that a fault of the service hits: those that send calls, and those that ask for results.
REQUESTS = ("POST /v3/endpoints/*/submit", "POST /v2/batch_status")
#: How long an order to the emulator waits for a request that it fits, and a killer for its victim.
PATIENCE_SECONDS = 30


@dataclass
class Field:
    """Where faults happen.

    Attributes:
        facility: The testbed.
        services: Prefect.
        prefix: The directory of psik's jobs.
        flow_runs: Ids of the flow runs that go on.
        faults: Those that happened.
        losses: What faults that move and prune data have found missing or spoilt, as sentences.
    """

    facility: Facility
    services: Services
    prefix: Path
    flow_runs: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    _turns: dict[str, threading.Lock] = field(default_factory=dict)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def turn(self, what: str) -> threading.Lock:
        """One fault at a time for the same thing."""
        with self._mutex:
            return self._turns.setdefault(what, threading.Lock())

    def killed(self, daemon: str) -> None:
        """Kill a daemon without warning."""
        self.facility.daemons.signal(daemon, signal.SIGKILL)


Steps = Generator[float, None, Any]
#: How long a daemon that was killed is started again and again.
RESTART_SECONDS = 90.0
#: Does the harm, yields the seconds that it lasts, then mends it; returns the flow run that it killed, if any.
Act = Callable[[Field, Random], Steps]


class DidNotBite(Exception):
    """There was nothing that the fault could harm."""


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


def inject(kind: Kind, field: Field, dice: Random, ended: threading.Event) -> bool:
    """Let a fault happen and mend it; early, if the run ends. Says whether it happened, and notes when."""
    with field.turn(kind.target):
        begin, act = time.time(), kind.act(field, dice)
        try:
            while True:
                ended.wait(next(act))
        except StopIteration as end:
            field.faults.append(Fault(kind.name, begin, time.time(), end.value))
            return True
        except (DidNotBite, TestbedError, OSError, subprocess.TimeoutExpired) as err:
            print(f"         {kind.name} did not bite: {err}", flush=True)
            return False


def _restart(start: Callable[[], object]) -> None:
    """Start what was killed, again and again as a service manager does: it may need what is down as well."""
    deadline = time.monotonic() + RESTART_SECONDS
    while True:
        try:
            start()
            return
        except (TestbedError, OSError, subprocess.TimeoutExpired):
            if time.monotonic() > deadline:
                raise
        time.sleep(2)


# ------------------------------------------------------------------------------------------------- clients


@_kind("flow process killed", "flow process")
def _flow(field: Field, dice: Random) -> Steps:
    for _ in range(PATIENCE_SECONDS):
        processes = field.services.flow_processes()
        if running := sorted(set(processes) & field.flow_runs):
            victim = dice.choice(running)
            kill(processes[victim])
            return victim
        yield 1.0
    raise DidNotBite("no flow process ran")


@_kind("worker killed", "worker")
def _worker(field: Field, dice: Random) -> Steps:
    field.services.kill_worker()
    yield dice.uniform(0, 10)
    field.services.start_worker()


@_kind("client clock jumps", "clock")
def _clock(field: Field, dice: Random) -> Steps:
    if not field.services.flow_processes():
        raise DidNotBite("no flow process ran")
    ahead = dice.choice((-1, 1)) * dice.choice((300.0, 7200.0, 200_000.0))
    _write_clock(field.services.clock, ahead)
    yield dice.uniform(5, 20)
    _write_clock(field.services.clock, 0.0)


def _write_clock(path: Path, ahead: float) -> None:
    with path.open("r+b") as file:
        file.write(struct.pack("d", ahead))


# ----------------------------------------------------------------------------------------- Globus and endpoint


@_kind("endpoint killed", "endpoint")
def _endpoint(field: Field, dice: Random) -> Steps:
    field.killed("endpoint")
    yield dice.uniform(0, 10)
    environment = {**field.facility.globus.env("owner"), **field.facility.slurm.env}
    _restart(partial(field.facility.endpoint.start, environment))


@_kind("user endpoint killed", "endpoint")
def _user_endpoint(field: Field, dice: Random) -> Steps:
    for _ in range(PATIENCE_SECONDS):
        if field.facility.endpoint.kill_user_endpoint():
            return
        yield 1.0
    raise DidNotBite("there was no user endpoint")


@_kind("RabbitMQ killed", "globus")
def _broker(field: Field, dice: Random) -> Steps:
    field.killed("rabbitmq")
    yield dice.uniform(0, 5)
    _restart(field.facility.broker.start)


@_kind("emulator killed", "globus")
def _emulator(field: Field, dice: Random) -> Steps:
    field.killed("emulator")
    yield dice.uniform(0, 10)
    _restart(field.facility.globus.start)


def _ordered(kind: str, **order: object) -> Act:
    """A fault that the emulator commits by itself at the next requests or messages that fit; none later."""

    def act(field: Field, dice: Random) -> Steps:
        chosen = {name: dice.choice(value) if isinstance(value, tuple) else value for name, value in order.items()}
        title = f"{kind} {chosen['status']}" if kind == "error" else kind
        globus = field.facility.globus
        before, times = globus.happened().get(title, 0), int(str(chosen.get("times", 1)))
        globus.order_fault(kind, **chosen)
        happened = 0
        for _ in range(PATIENCE_SECONDS):
            happened = globus.happened().get(title, 0) - before
            if happened >= times:
                break
            yield 1.0
        globus.clear_faults()
        if not happened:
            raise DidNotBite("no request or message fitted")

    return act


_kind("task lost", "globus")(_ordered("lose_result", match="*", times=(1, 2)))
_kind("task delivered twice", "globus")(_ordered("duplicate_task", match="*", times=(1, 3)))
_kind("reply lost", "globus")(_ordered("drop_reply", match=REQUESTS, times=(1, 2)))
_kind("slow answer", "globus")(_ordered("delay", match=REQUESTS, times=(1, 3), seconds=(3.0, 15.0)))
_kind("401", "globus")(_ordered("error", match=REQUESTS, status=401, code="AUTHENTICATION_ERROR"))
_kind("429", "globus")(_ordered("error", match=REQUESTS, status=429, code="TOO_MANY_REQUESTS", times=(1, 5)))
_kind("5xx", "globus")(_ordered("error", match=REQUESTS, status=(500, 502, 503, 504), times=(1, 5)))


# ------------------------------------------------------------------------------------------------- Slurm


@_kind("slurmctld killed", "slurmctld")
def _controller(field: Field, dice: Random) -> Steps:
    field.killed("slurmctld")
    yield dice.uniform(0, 15)
    _restart(field.facility.slurm.start_controller)


@_kind("slurmctld hangs", "slurmctld")
def _hang(field: Field, dice: Random) -> Steps:
    field.facility.daemons.signal("slurmctld", signal.SIGSTOP)
    yield dice.uniform(5, 30)
    field.facility.daemons.signal("slurmctld", signal.SIGCONT)


@_kind("slurmdbd killed", "slurmdbd")
def _database(field: Field, dice: Random) -> Steps:
    field.killed("slurmdbd")
    yield dice.uniform(0, 20)
    _restart(field.facility.slurm.start_accounting)


@_kind("slurmd killed", "slurmd")
def _node(field: Field, dice: Random) -> Steps:
    node = dice.choice(NODES)
    field.killed(f"slurmd-{node}")
    # Slurm gives up a node after 30 s.
    yield dice.choice((5.0, 45.0))
    _restart(partial(field.facility.slurm.start_node, node))


# -------------------------------------------------------------------------------------------------- disk


@_kind("disk full", "disk")
def _disk(field: Field, dice: Random) -> Steps:
    with filled(field.prefix):
        yield dice.uniform(2, 10)


# -------------------------------------------------------------------------------------------------- data


def _on_data(what: tuple[str, ...], *, writes: bool) -> Act:
    """Processes that work on the same directories, crosswise or in a ring; one of them may be killed."""

    def act(field: Field, dice: Random) -> Steps:
        top = Path(tempfile.mkdtemp(prefix="data-", dir=field.services.place))
        ring = Ring(top, dice.choice((2, 2, 3)))
        for turn in range(2):  # the second finds what the first one's dead have left
            started = ring.start(what, field.services.environment)
            victim = dice.randrange(len(started)) if turn == 0 and dice.random() < 0.5 else None
            for number, _ in enumerate(work(started, victim, dice.uniform(1, 8))):
                if writes:
                    ring.write(dice, 1000 * turn + number)
                yield STEP_SECONDS
        field.losses += ring.losses()

    return act


_kind("prunes crosswise", "data")(_on_data(("prune",), writes=False))
_kind("writer beside prunes and transfers", "data")(_on_data(("prune", "move"), writes=True))
