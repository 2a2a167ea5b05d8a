"""Run by `__main__` in a copy of the project: reads mutants, and writes which of them the tests notice.

Starting Python and Prefect takes seconds, a test of pure functions takes milliseconds. So the tests are collected
once, and each mutant gets a fork of this process, in which the changed function replaces the old one wherever it
is: in its module, and in the letter that tests have made of `remote`. What acts at import gets all of ours
imported again in the fork. The file is changed too, for what starts another Python.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
from hypothesis import Phase, settings

from prefect_psik.remote import PARTS, letter
from tests.mutants.changes import Mutant

#: A mutant has so much time, and so much more than its tests took before.
LEAST_SECONDS, TIMES_AS_LONG = 10.0, 5.0
FIRST_SECONDS = 3600.0
MEMORY_BYTES = 4 * 1024**3
LETTER = "<letter>"
PASSED, NOTICED = 0, 1

#: What a test calls: paths of modules, and functions in them as `path function`.
Calls = dict[str, tuple[float, set[str]]]


class Warm:
    """A plugin of pytest that runs its tests once for each mutant."""

    def __init__(self, mutants: list[Mutant], tell: Callable[[dict[str, Any]], None]) -> None:
        self.mutants, self.tell = mutants, tell
        self.paths = {mutant.path for mutant in mutants}

    def pytest_sessionstart(self) -> None:
        settings.register_profile(  # nothing at random; the first failure is enough
            "mutants",
            settings.get_profile("busy"),
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
        )
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            print(report.nodeid, file=sys.stderr, flush=True)
            os._exit(NOTICED)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        letter.cache_clear()
        calls = self._watched(session)
        functions = _functions(self.paths)
        untouched = Mutant("", 0, "", "", "", "")
        if self._noticed(session, untouched, sorted(calls), FIRST_SECONDS, functions):
            sys.exit("A test fails with nothing changed, once everything is imported again.")
        for n, mutant in enumerate(self.mutants):
            where = f"{mutant.path} {mutant.function}".strip()
            chosen = sorted((test for test in calls if where in calls[test][1]), key=lambda test: calls[test][0])
            begin = time.monotonic()
            limit = LEAST_SECONDS + TIMES_AS_LONG * sum(calls[test][0] for test in chosen)
            noticed = bool(chosen) and self._noticed(session, mutant, chosen, limit, functions)
            seconds = time.monotonic() - begin
            self.tell({"mutant": n, "noticed": noticed, "tests": len(chosen), "seconds": seconds})
        return True

    def _watched(self, session: pytest.Session) -> Calls:
        """Run all tests with nothing changed, and see what each calls."""
        found = Path("calls.json")

        def work() -> None:
            calls: dict[str, tuple[float, list[str]]] = {}
            current: set[str] = set()

            def see(frame: FrameType, event: str, argument: object) -> None:
                name = _name_of(frame.f_code, self.paths)
                if name is not None:
                    current.update((name, name.split(" ")[0]))

            threading.settrace(see)
            for item in session.items:
                current.clear()
                begin = time.monotonic()
                sys.settrace(see)
                _run([item])
                sys.settrace(None)
                calls[item.nodeid] = (time.monotonic() - begin, sorted(current))
            found.write_text(json.dumps(calls), encoding="utf-8")

        if _forked(work, FIRST_SECONDS) != PASSED:
            sys.exit("A test fails with nothing changed.")
        calls = json.loads(found.read_text(encoding="utf-8"))
        return {test: (seconds, set(names)) for test, (seconds, names) in calls.items()}

    def _noticed(
        self,
        session: pytest.Session,
        mutant: Mutant,
        chosen: list[str],
        limit: float,
        functions: dict[str, list[FunctionType]],
    ) -> bool:
        def work() -> None:
            if not _swap(mutant, functions):
                for name in [name for name in sys.modules if name.split(".")[0] in ("prefect_psik", "tests")]:
                    del sys.modules[name]
                session.perform_collect(chosen)
            by_id = {item.nodeid: item for item in session.items}
            _run([by_id[test] for test in chosen])

        if not mutant.path:
            return _forked(work, limit) != PASSED
        original = Path(mutant.path).read_text(encoding="utf-8")
        Path(mutant.path).write_text(mutant.text, encoding="utf-8")
        try:
            return _forked(work, limit) != PASSED
        finally:
            Path(mutant.path).write_text(original, encoding="utf-8")


def _forked(work: Callable[[], None], limit: float) -> int:
    """Do work in a fork, and end all that it leaves; taking too long counts as noticed."""
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        try:
            work()
        except BaseException as err:  # noqa: BLE001 - whatever a mutant brings about
            print(repr(err), file=sys.stderr, flush=True)
            os._exit(NOTICED)
        os._exit(PASSED)
    deadline, status = time.monotonic() + limit, None
    try:
        while status is None and time.monotonic() < deadline:
            time.sleep(0.005)
            pid, code = os.waitpid(child, os.WNOHANG)
            status = code if pid else None
        return NOTICED if status is None else status
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if status is None:
            os.waitpid(child, 0)
        for left in Path(tempfile.gettempdir()).iterdir():
            shutil.rmtree(left, ignore_errors=True)


def _run(items: list[pytest.Item]) -> None:
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)


def _name_of(code: CodeType, paths: set[str]) -> str | None:
    """Path and outermost function of what is called, if it is one of ours."""
    function = code.co_qualname.split(".<locals>")[0]
    if code.co_filename == LETTER:
        path = _parts_of_letter().get(function.split(".")[0], "")
    else:
        path = os.path.relpath(code.co_filename) if code.co_filename.endswith(".py") else ""
    return f"{path} {function}" if path in paths else None


@cache
def _parts_of_letter() -> dict[str, str]:
    """Where each function and class of the letter is from: no name comes twice in it."""
    paths = [f"prefect_psik/remote/{part}.py" for part in PARTS]
    trees = [(path, ast.parse(Path(path).read_text(encoding="utf-8"))) for path in paths]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name: path for path, tree in trees for node in tree.body if isinstance(node, kinds)}


def _functions(paths: set[str]) -> dict[str, list[FunctionType]]:
    """All functions that exist now, also wrapped ones and the letter's, by path and name."""
    found: dict[str, list[FunctionType]] = {}
    for each in gc.get_objects():
        if type(each) is FunctionType and (name := _name_of(each.__code__, paths)):
            found.setdefault(name, []).append(each)
    return found


def _swap(mutant: Mutant, functions: dict[str, list[FunctionType]]) -> bool:
    """Give the functions their changed code; False if that is not enough."""
    same = functions.get(f"{mutant.path} {mutant.function}", [])
    if not mutant.function or not same:
        return False
    code = _find(compile(mutant.text, same[0].__code__.co_filename, "exec"), mutant.function)
    if code is None or any(code.co_freevars != each.__code__.co_freevars for each in same):
        return False
    for each in same:
        each.__code__ = code
    return True


def _find(code: CodeType, name: str) -> CodeType | None:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_qualname == name:
                return constant
            if name.startswith(f"{constant.co_qualname}.") and (found := _find(constant, name)):
                return found
    return None


def main() -> None:
    """Read mutants from a file, and write what became of each to a descriptor, a line of JSON each."""
    given, descriptor, *arguments = sys.argv[1:]
    mutants = [Mutant(*fields) for fields in json.loads(Path(given).read_text(encoding="utf-8"))]
    sys.dont_write_bytecode = True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what is running is ended first
    with os.fdopen(int(descriptor), "w", buffering=1) as answers:
        plugin = Warm(mutants, lambda answer: print(json.dumps(answer), file=answers))
        ours = [
            "-q",
            "-s",
            "--timeout=0",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
        ]
        sys.exit(pytest.main([*ours, *arguments], plugins=[plugin]))


if __name__ == "__main__":
    main()
