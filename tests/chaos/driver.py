"""Starts the flow runs, cancels some, and does what a person would: presses Retry, ends what nobody supervises."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Crashed

from tests.chaos.faults import Field
from tests.chaos.flows import BACKEND, JOB_VARIABLE
from tests.chaos.plan import FLOWS, Scenario
from tests.chaos.score import Ended
from tests.chaos.services import POOL
from tests.testbed.daemons import all_pids, environment_of

PARALLEL = 6
LOOK_SECONDS = 2.0
#: After this time without a process, a flow run that is said to run, or to be cancelled, is a zombie.
ZOMBIE_SECONDS = 60.0
ZOMBIE = "zombie"
#: A person would give up after so many tries.
TRIES = 12


@dataclass
class Life:
    """A scenario under way."""

    scenario: Scenario
    id: UUID
    begin: float
    process_seen: float
    cancelled_at: float | None = None
    final: str | None = None
    tries: int = 1


class Driver:
    """All flow runs of a run of chaos; `step` looks at them once."""

    def __init__(self, field: Field, scenarios: list[Scenario]) -> None:
        self._field = field
        self._waiting = scenarios[::-1]
        self._deployments: dict[str, UUID] = {}
        self.lives: list[Life] = []
        self.jobs_started = 0
        #: When a process of a job was seen last, by the name of the job.
        self.seen: dict[str, float] = {}
        #: What was done by hand, and how often.
        self.by_hand: Counter[str] = Counter()

    @property
    def is_done(self) -> bool:
        """Whether all scenarios came to an end."""
        return not self._waiting and all(life.final for life in self.lives)

    @property
    def jobs_settled(self) -> int:
        """How many jobs ran, or are of a flow run that came to its end."""
        ran = set(self._field.services.runs())
        ran |= {job.name for life in self.lives if life.final for job in life.scenario.jobs}
        return len(ran)

    @property
    def ended(self) -> dict[str, Ended]:
        """How the flow runs ended."""
        return {
            life.scenario.name: Ended(life.final or "not final", life.cancelled_at, str(life.id), life.begin)
            for life in self.lives
        }

    async def deploy(self) -> None:
        """Make a work pool, and a deployment of each flow."""
        async with get_client() as client:
            await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
            for name in FLOWS:
                # By its module: with a path, the worker would copy all that lies there for each flow run.
                self._deployments[name] = await client.create_deployment(
                    flow_id=await client.create_flow_from_name(name),
                    name=name,
                    entrypoint=f"tests.chaos.flows.{name}",
                    work_pool_name=POOL,
                )

    async def step(self, jobs_allowed: int) -> None:
        """Look at all flow runs, and start more if so many jobs may have been started."""
        self.see()
        if stuck := self._field.facility.endpoint.end_stuck_forks():
            self.by_hand["stuck fork of the endpoint killed"] += stuck
        async with get_client() as client:
            await self._look(client)
            alive = sum(life.final is None for life in self.lives)
            while self._waiting and alive < PARALLEL and self.jobs_started < jobs_allowed:
                await self._start(client, self._waiting.pop())
                alive += 1
        self._field.flow_runs = {str(life.id) for life in self.lives if life.final is None}

    def see(self) -> set[str]:
        """The names of the jobs that have processes."""
        names = {environment_of(pid).get(JOB_VARIABLE) for pid in all_pids()} - {None}
        self.seen |= {str(name): time.time() for name in names}
        return {str(name) for name in names}

    def start_no_more(self, jobs: int) -> None:
        """Start only what is missing to so many jobs."""
        waiting, self._waiting, total = self._waiting[::-1], [], self.jobs_started
        for scenario in waiting:
            if total < jobs:
                self._waiting.insert(0, scenario)
                total += len(scenario.jobs)

    async def _start(self, client: PrefectClient, scenario: Scenario) -> None:
        run = await client.create_flow_run_from_deployment(
            self._deployments[scenario.flow], name=scenario.name, parameters=scenario.parameters()
        )
        now = time.time()
        self.lives.append(Life(scenario, run.id, now, now))
        self.jobs_started += len(scenario.jobs)

    async def _look(self, client: PrefectClient) -> None:
        lives = {life.id: life for life in self.lives if life.final is None}
        if not lives:
            return
        processes = self._field.services.flow_processes()
        found = await client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=list(lives))))
        for run in found:
            life, is_alive = lives[run.id], str(run.id) in processes
            if is_alive:
                life.process_seen = time.time()
            # A worker may tell of a crash twice. After two retries another process goes on when one has completed.
            if not (is_alive and run.state and run.state.is_completed()):
                await self._care_for(client, life, run)

    async def _care_for(self, client: PrefectClient, life: Life, run: FlowRun) -> None:
        state, now = run.state, time.time()
        assert state is not None
        if state.is_cancelled() or state.is_completed():
            life.final = state.name
        elif state.is_cancelling():
            if now - max(life.process_seen, life.cancelled_at or 0.0) > ZOMBIE_SECONDS:
                await self._end_zombie(client, life)
        elif state.is_failed() or state.is_crashed():
            await self._retry(client, life, str(state.name), state.message or "")
        elif self._is_to_be_cancelled(life, now):
            life.cancelled_at = now
            await client.set_flow_run_state(run.id, Cancelling())
        elif not state.is_scheduled() and now - life.process_seen > ZOMBIE_SECONDS:
            await self._retry(client, life, ZOMBIE, f"{state.name} without a process")

    def _is_to_be_cancelled(self, life: Life, now: float) -> bool:
        scenario = life.scenario
        if scenario.cancel_after is None or life.cancelled_at is not None:
            return False
        names = {job.name for job in scenario.jobs}
        begins = [runs[0].begin for name, runs in self._field.services.runs().items() if name in names]
        begin = life.begin if scenario.cancel_early else min(begins, default=now)
        return now - begin > scenario.cancel_after

    async def _retry(self, client: PrefectClient, life: Life, what: str, message: str) -> None:
        # One that was cancelled and ended in another way is not run again: its jobs are in the score.
        if life.cancelled_at is not None or life.tries >= TRIES:
            life.final = what
            return
        print(f"         {life.scenario.name} ({life.scenario.flow}) {what}: {message[:300]}", flush=True)
        life.tries += 1
        life.process_seen = time.time()
        self.by_hand[f"retry after {what}"] += 1
        if what == ZOMBIE:
            await client.set_flow_run_state(life.id, Crashed(), force=True)
        # Not by force: Prefect would still take it for the retry of a process that is gone, and start it nowhere.
        await client.set_flow_run_state(life.id, AwaitingRetry())

    async def _end_zombie(self, client: PrefectClient, life: Life) -> None:
        """A flow run whose runner is gone is cancelled by nobody: the command line does it."""
        self.by_hand["cancel without a runner"] += 1
        command = [sys.executable, "-m", "prefect_psik.cli", "cancel", "--flow-run", str(life.id)]
        done = await asyncio.to_thread(
            subprocess.run,
            [*command, "--backend", BACKEND],
            env=self._field.services.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        print(f"         {life.scenario.name} cancelled by hand: {(done.stdout + done.stderr)[-300:]}", flush=True)
        if done.returncode == 0:
            await client.set_flow_run_state(life.id, Cancelled(), force=True)
