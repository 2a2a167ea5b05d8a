"""A short soak: the faults of the service, without the drills that take a facility of their own."""

from __future__ import annotations

from tests.soak.calls import Soak
from tests.testbed.facility import Facility


def test_each_call_has_its_own_result_or_one_clear_error_and_nothing_is_left(facility: Facility) -> None:
    with facility.client():
        soak = Soak(facility, seed=1, count=60, with_drills=False)
        soak.run()
    assert soak.problems() == []
    assert soak.trouble.happened.total() > 0
