"""Run by `__main__` in a copy of the project: reads mutants, and writes which of them the tests notice.

Starting Python and Prefect takes seconds, a test of pure functions takes milliseconds. So the tests are collected
once, and each mutant gets a fork of this process, in which the changed function replaces the old one wherever it
is: in its module, and in the letter that tests have made of `remote`; and so does a changed table. What acts at
import, and is not noticed that way, gets all of ours imported again in the fork. The file is changed too, for what
starts another Python.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
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
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

import psutil
import pytest
from hypothesis import Phase, settings

from prefect_psik.remote import PARTS, letter
from tests.mutants.changes import Mutant

#: A mutant has so much time of a processor, and so much more than its tests took while they were watched, which
#: makes them slower; it may wait for so much longer than that, and than they did.
LEAST_SECONDS, TIMES_AS_LONG, WAIT_TIMES = 15.0, 2.0, 2.0
#: A test that takes more time of a processor notices little that others do not, and each survivor waits for it.
SLOWEST_SECONDS = 3.0
FIRST_SECONDS = 600.0
MEMORY_BYTES = 4 * 1024**3
PR_SET_CHILD_SUBREAPER = 36
LETTER = "<letter>"
#: Where this process begins; tests may change the directory.
COPY = os.getcwd()
#: What comes of importing twice: pytest's word, and Prefect's of a block that is registered again.
IGNORED = ("-W", "ignore::pytest.PytestAssertRewriteWarning", "-W", "ignore:Type '")
PASSED, NOTICED, LATE = 0, 1, 2
OPTIONS = ("-q", "-s", "--timeout=0", "-p", "no:cacheprovider", *IGNORED)


class Test(NamedTuple):
    """How many seconds a test took, of processors and in all, and the functions that it calls: `path function`."""

    used: float
    took: float
    calls: set[str]


class FailFast:
    """A plugin of pytest: nothing is drawn at random, and the first failure ends the process."""

    def pytest_sessionstart(self) -> None:
        phases = [Phase.explicit, Phase.generate]
        busy = settings.get_profile("busy")
        settings.register_profile("mutants", busy, derandomize=True, database=None, phases=phases)
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            print(report.nodeid, report.longrepr, file=sys.stderr, flush=True)
            os._exit(NOTICED)


class Warm(FailFast):
    """Runs the tests once for each mutant."""

    def __init__(self, mutants: list[Mutant], tell: Callable[[dict[str, Any]], None]) -> None:
        self.mutants, self.tell = mutants, tell
        self.paths = {mutant.path for mutant in mutants}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        letter.cache_clear()
        items = {item.nodeid: item for item in session.items}
        tests = self._watched(list(items.values()))
        functions = _functions(self.paths)
        if _forked(lambda: _run_anew(sorted(tests)), FIRST_SECONDS) != PASSED:
            sys.exit("A test fails with nothing changed, once everything is imported again.")

        def work() -> None:
            if not at_import and _swap(mutant, functions):
                _run([items[test] for test in chosen])
                return
            if _replace_tables(mutant):
                _run([items[test] for test in chosen])
            _run_anew(chosen)

        for n, mutant in enumerate(self.mutants):
            where = f"{mutant.path} {mutant.function}".strip()
            at_import = not any(where in test.calls for test in tests.values())  # if it is called at all
            where = mutant.path if at_import else where
            chosen = [name for name, test in tests.items() if where in test.calls]
            chosen.sort(key=lambda name: tests[name].used)
            used, took = sum(tests[name].used for name in chosen), sum(tests[name].took for name in chosen)
            with _changed(mutant):
                end = _forked(work, LEAST_SECONDS + TIMES_AS_LONG * used, took) if chosen else PASSED
            self.tell({"mutant": n, "noticed": end != PASSED, "late": end not in (PASSED, NOTICED)})
        return True

    def _watched(self, items: list[pytest.Item]) -> dict[str, Test]:
        """Run all tests with nothing changed, and see what each calls; without those that are too slow."""
        found = Path("calls.json")

        def work() -> None:
            calls: dict[str, tuple[float, float, list[str]]] = {}
            current: set[str] = set()

            def see(frame: FrameType, event: str, argument: object) -> None:
                name = _name_of(frame.f_code, self.paths)
                if name is not None:
                    current.update((name, name.split(" ")[0]))

            threading.settrace(see)
            for item in items:
                current.clear()
                begin, used = time.monotonic(), _used()
                sys.settrace(see)
                _run([item])
                sys.settrace(None)
                calls[item.nodeid] = (_used() - used, time.monotonic() - begin, sorted(current))
            found.write_text(json.dumps(calls), encoding="utf-8")

        if _forked(work, FIRST_SECONDS) != PASSED:
            sys.exit("A test fails with nothing changed.")
        calls = json.loads(found.read_text(encoding="utf-8"))
        tests = {name: Test(used, took, set(names)) for name, (used, took, names) in calls.items()}
        return {name: test for name, test in tests.items() if test.used <= SLOWEST_SECONDS}


@contextlib.contextmanager
def _changed(mutant: Mutant) -> Iterator[None]:
    """Change the file, too: other processes read it."""
    path = Path(mutant.path)
    original = path.read_text(encoding="utf-8")
    path.write_text(mutant.text, encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(original, encoding="utf-8")


def _used() -> float:
    """Seconds of processors that this process and its children have had."""
    return sum(os.times()[:4])


def _forked(work: Callable[[], None], limit: float, took: float = 0.0) -> int:
    """Do work in a fork, and end all that it leaves.

    Args:
        work: Is to be done.
        limit: Seconds that it may have of a processor.
        took: How many seconds in all it took before.

    Returns:
        PASSED, NOTICED, or what else ended it. Time in which it is ready to run and others have the processors
        does not count.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))
        try:
            work()
        except BaseException as err:  # noqa: BLE001 - whatever a mutant brings about
            print(repr(err), file=sys.stderr, flush=True)
            os._exit(NOTICED)
        os._exit(PASSED)
    latest = deadline = time.monotonic() + WAIT_TIMES * limit + took  # what waits takes no time of the processor
    code = None
    try:
        while code is None and time.monotonic() < deadline:
            time.sleep(0.005)
            pid, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if pid else None
            if time.monotonic() >= deadline:
                deadline = latest + _kept_from_running()
        return LATE if code is None else code
    finally:
        while left := psutil.Process().children(recursive=True):  # also daemons: this process inherits them
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, 10)
        for path in Path(tempfile.gettempdir()).iterdir():
            shutil.rmtree(path, ignore_errors=True)


def _kept_from_running() -> float:
    """Seconds in which our descendants were ready to run and others had the processors, all of them added up."""
    kept = 0
    for process in psutil.Process().children(recursive=True):
        for thread in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # it has ended
                kept += int(thread.read_text(encoding="ascii").split()[1])  # nanoseconds, see Linux's sched-stats
    return kept / 1e9


def _run(items: list[pytest.Item]) -> None:
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)


def _run_anew(tests: list[str]) -> None:
    """Run tests with everything of ours imported again."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("prefect_psik", "tests")]:
        del sys.modules[name]
    if pytest.main([*OPTIONS, *tests], plugins=[FailFast()]):
        os._exit(NOTICED)


def _name_of(code: CodeType, paths: set[str]) -> str | None:
    """Path and outermost function of what is called, if it is one of ours."""
    path = _path(code.co_filename)  # for nearly all calls this is all: each of them comes here
    if path not in paths and path != LETTER:
        return None
    function = code.co_qualname.split(".<locals>")[0]
    if path == LETTER:
        path = _parts_of_letter().get(function.split(".")[0], "")
    return f"{path} {function}" if path in paths else None


@cache
def _path(filename: str) -> str:
    return os.path.relpath(filename, COPY) if filename.endswith(".py") else filename


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


def _replace_tables(mutant: Mutant) -> bool:
    """Replace what the assignments of a module make wherever it was imported; False if that replaces nothing.

    Functions and classes stay, and with them what they keep of the old value: a test that passes proves nothing.
    """
    module = sys.modules.get(mutant.path.removesuffix(".py").replace("/", "."))
    if mutant.function or module is None or "/remote/" in mutant.path:  # tests run that as a letter
        return False
    tree = ast.parse(mutant.text)
    tree.body = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) or _is_future(node)]
    changed = dict(vars(module))
    exec(compile(tree, mutant.path, "exec"), changed)
    before = {name: value for name, value in vars(module).items() if changed[name] != value}
    for other in [each for name, each in sys.modules.items() if name.split(".")[0] in ("prefect_psik", "tests")]:
        for name in before.keys() & vars(other).keys():
            if vars(other)[name] is before[name]:
                setattr(other, name, changed[name])
    return bool(before)


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


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
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with os.fdopen(int(descriptor), "w", buffering=1) as answers:
        plugin = Warm(mutants, lambda answer: print(json.dumps(answer), file=answers))
        sys.exit(pytest.main([*OPTIONS, *arguments], plugins=[plugin]))


if __name__ == "__main__":
    main()
