"""What happens to the endpoint and to the service as a whole while calls are under way."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.testbed.facility import Facility
from tests.testbed.state import TestbedError

#: Between two drills, so that calls get through as well.
PAUSE_SECONDS = 12.0
AWAY_SECONDS = 3.0


@dataclass
class Trouble:
    """The weather, and drill after drill, both by the dice of one seed.

    Args:
        facility: Where.
        seed: Of the dice.
    """

    facility: Facility
    seed: int
    happened: Counter[str] = field(default_factory=Counter)
    """How often what happened."""

    @asynccontextmanager
    async def while_it_lasts(self, *, with_drills: bool) -> AsyncIterator[None]:
        """Have trouble while the block runs, and a facility in good order afterwards."""
        self.facility.globus.begin_weather(self.seed)
        drilling = asyncio.ensure_future(self._drill()) if with_drills else None
        try:
            yield
        finally:
            if drilling:
                drilling.cancel()
                await asyncio.wait([drilling])
            self.facility.globus.clear_faults()
            self.happened.update(self.facility.globus.happened())
        if drilling and not drilling.cancelled():
            drilling.result()

    async def _drill(self) -> None:
        dice = random.Random(self.seed)
        drills = [self._offline, self._crash, self._killed, self._deleted, self._service_down]
        while True:
            dice.shuffle(drills)
            for drill in drills:
                await asyncio.sleep(PAUSE_SECONDS)
                self.happened[f"endpoint or service: {drill.__name__.strip('_').replace('_', ' ')}"] += 1
                await _to_the_end(drill)

    def _start(self) -> None:
        """Start what is down; once more, as a person would, where the weather kept it from registering."""
        try:
            self.facility.start()
        except TestbedError as err:
            log = self.facility.state.root / "log" / "endpoint.log"
            print(f"{err}\n{log.read_text(errors='replace')[-1500:]}", file=sys.stderr)
            self.happened["endpoint or service: started twice"] += 1
            self.facility.start()

    def _offline(self) -> None:
        """The endpoint is stopped, and started some time later: maintenance."""
        self.facility.endpoint.stop()
        time.sleep(AWAY_SECONDS)
        self._start()

    def _crash(self) -> None:
        """The endpoint dies without warning and is started anew, in the middle of calls."""
        self.facility.daemons.signal("endpoint", signal.SIGKILL)
        time.sleep(0.5)
        self._start()

    def _killed(self) -> None:
        """What runs the calls dies without warning. Its pid file bars the way until the endpoint is restarted."""
        self.facility.endpoint.kill_user_endpoint()
        time.sleep(AWAY_SECONDS)
        self.facility.endpoint.stop()
        self._start()

    def _deleted(self) -> None:
        """The service does not know the endpoint any more, until it registers again."""
        self.facility.globus.delete_endpoint(self.facility.endpoint_id)
        time.sleep(AWAY_SECONDS)
        self.facility.daemons.signal("endpoint", signal.SIGKILL)
        self._start()

    def _service_down(self) -> None:
        """Connections to the service are refused, until it is back."""
        globus = self.facility.globus
        globus.clear_faults()
        self.happened.update(globus.happened())
        globus.stop()
        time.sleep(AWAY_SECONDS)
        globus.start()
        # Its dice are new, too: with the same seed the same faults would come again and again.
        self.seed += 1_000
        globus.begin_weather(self.seed)


async def _to_the_end(drill: Callable[[], None]) -> None:
    """Run a drill in a thread. A cancellation waits for its end: it must not leave the facility half down."""
    running = asyncio.ensure_future(asyncio.to_thread(drill))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await running
        raise
