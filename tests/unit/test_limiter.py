"""The budget of requests: exact by a fake clock, and shared by real processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import pytest

from prefect_psik.transport.globus import request_budget as limiter
from prefect_psik.transport.globus.request_budget import UNDER_WAY_SECONDS, Ledger, LedgerBusy, RequestBudget
from tests.testbed.emulator.meter import most_in_window


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["file", "memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Ledger, Clock]:
    """Three places in 10 s, in a file or not."""
    clock = Clock()
    path = tmp_path / "requests" if request.param == "file" else None
    return Ledger(path, limit=3, window=10.0, clock=clock), clock


def test_a_place_is_kept_until_the_window_after_its_answer(ledger: tuple[Ledger, Clock]) -> None:
    book, clock = ledger
    assert [book.try_take(name) for name in "abc"] == [0, 0, 0]
    assert 0 < book.try_take("d") < 1, "requests under way are looked at again soon"
    clock.now += 30
    assert book.try_take("d") > 0, "a slow request may not have arrived yet"
    book.answered("a")
    assert book.try_take("d") == pytest.approx(10)
    clock.now += 9.9
    assert book.try_take("d") == pytest.approx(0.1)
    clock.now += 0.2
    assert book.try_take("d") == 0
    assert book.try_take("e") > 0


def test_a_request_that_nobody_ends_loses_its_place_at_last(ledger: tuple[Ledger, Clock]) -> None:
    book, clock = ledger
    for name in "abc":
        book.try_take(name)
    clock.now += UNDER_WAY_SECONDS + 0.1
    assert book.try_take("d") == 0


def test_silence_that_the_service_asks_for_is_kept_up_to_a_limit(ledger: tuple[Ledger, Clock]) -> None:
    book, clock = ledger
    book.try_take("a")
    book.answered("a", silence=7)
    assert book.try_take("b") == pytest.approx(7)
    clock.now += 7.1
    assert book.try_take("b") == 0
    book.answered("b", silence=100_000)
    assert book.try_take("c") == pytest.approx(60)


def test_places_of_a_process_that_died_are_free_after_two_windows(tmp_path: Path) -> None:
    path = tmp_path / "requests"
    code = (
        "import sys; from pathlib import Path; from prefect_psik.transport.globus.request_budget import Ledger\n"
    )
    code += "book = Ledger(Path(sys.argv[1]), limit=2); book.try_take('a'); book.try_take('b')"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=300)
    clock = Clock()
    clock.now = time.monotonic()
    book = Ledger(path, limit=2, window=50.0, clock=clock)
    assert book.try_take("c") > 0
    clock.now += 51
    assert book.try_take("c") > 0, "its requests may have arrived after its end"
    clock.now += 50
    assert book.try_take("c") == 0


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"places": 5}', '{"places": {"a": 1}, "silent_until": 0}', "\0" * 100],
)
def test_a_damaged_file_starts_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "requests"
    path.write_text(text)
    book = Ledger(path, limit=1)
    assert book.try_take("a") == 0
    assert book.try_take("b") > 0


def test_moments_from_before_a_reboot_count_for_nothing(tmp_path: Path) -> None:
    clock = Clock()
    book = Ledger(tmp_path / "requests", limit=1, clock=clock)
    book.try_take("a")
    book.answered("a", silence=30)
    clock.now = 5.0
    assert book.try_take("b") == 0


def test_a_ledger_held_for_ever_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "_LOCK_TRIES", 5)
    book = Ledger(tmp_path / "requests")
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path / "requests")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LedgerBusy):
            book.try_take("a")
        budget = RequestBudget(book)
        begin = time.monotonic()
        place = asyncio.run(budget.take())
        assert time.monotonic() - begin < 30
        budget.answered(place)
    finally:
        holder.kill()
        holder.wait()


_HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_directory_that_others_can_reach_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, runtime = tmp_path / "tmp", tmp_path / "run"
    for path in (temporary, runtime):
        path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    name = f"prefect-psik-{os.getuid()}"
    assert limiter._private_directory() == temporary / name
    assert (temporary / name).stat().st_mode & 0o777 == 0o700
    (temporary / name).chmod(0o755)
    assert limiter._private_directory() == runtime / name
    (runtime / name).rmdir()
    (runtime / name).symlink_to(tmp_path)
    assert limiter._private_directory() is None


_PROCESS = """
import asyncio, sys, time
from pathlib import Path
from prefect_psik.transport.globus.request_budget import Ledger, RequestBudget

async def main():
    budget = RequestBudget(Ledger(Path(sys.argv[1]), limit=5, window=1.0))
    async def one():
        place = await budget.take()
        await asyncio.sleep(0.1)
        print(time.monotonic(), flush=True)  # it arrives at the service
        await asyncio.sleep(0.1)
        budget.answered(place)
    await asyncio.gather(*(one() for _ in range(6)))
asyncio.run(main())
"""


def test_several_processes_keep_to_one_limit(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(tmp_path / "requests")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    moments = [float(line) for process in processes for line in process.communicate(timeout=300)[0].split()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(moments) == 18
    assert most_in_window(sorted(moments), 1.0) <= 5


def test_whoever_is_killed_while_writing_leaves_the_places_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "requests"
    book = Ledger(path, limit=2, window=0.2)
    assert book.try_take("a") == book.try_take("b") == 0
    with monkeypatch.context() as killed:
        killed.setattr(os, "pwrite", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            book.answered("a")
    assert Ledger(path, limit=2).try_take("c") > 0
    for place in ("a", "b"):
        book.answered(place)
    time.sleep(0.25)
    assert book.try_take("c") == 0, "a shorter text is read, too"
