"""AT EVERY START OF A MEASURED PYTHON: starts coverage, and executes the letter as the files that it is made of.

This file is copied into environments, also where nothing of ours is installed. The letter travels as text, which
coverage cannot attribute to a file. Here `exec` knows the letter by its hash and executes its parts, one
after the other in the same namespace, each compiled with its file's name and line numbers.
"""

# Without `from __future__`: what is executed below must not inherit it from here.
import __future__

import builtins
import contextlib
import functools
import importlib
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MODULE = "prefect_psik_coverage"
#: Arguments of processes that would only be slower: nothing of ours works in Prefect's server.
_NOT_OURS = {"prefect.server.api.server:create_app"}
_exec = builtins.exec


def start(settings: dict[str, Any]) -> None:
    """Measure this process, unless the run that asked for it has ended without clearing up."""
    if not os.path.exists(f"/proc/{settings['pid']}") or _NOT_OURS.intersection(sys.orig_argv):
        return
    import coverage

    os.environ["COVERAGE_PROCESS_START"] = settings["config"]
    try:
        measurement = coverage.process_startup()
    finally:
        # Children are measured if they start this environment's Python, whatever their environment.
        del os.environ["COVERAGE_PROCESS_START"]
    if measurement is not None:
        vars(measurement)["save"] = functools.partial(_save, measurement.save)
    vars(builtins)["exec"] = _executor(settings["hash"], settings["parts"])
    # Imports stay as they are: frames of ours in them would show in warnings.
    for name in ("importlib._bootstrap", "importlib._bootstrap_external"):
        vars(importlib.import_module(name))["exec"] = _exec


def _save(save: Callable[[], None]) -> None:
    """Keep quiet where nothing can be saved: with a limit on files' sizes, or when the run is over."""
    import sqlite3

    import coverage

    with contextlib.suppress(coverage.CoverageException, sqlite3.Error, OSError):
        save()


def _executor(letter_hash: str, parts: list[tuple[str, str]]) -> Any:
    last_line = f'\nLETTER = "{letter_hash}"\n'

    @functools.cache
    def compiled() -> list[types.CodeType]:
        return [compile(text, path, "exec", dont_inherit=True) for path, text in parts]

    def is_letter(source: Any) -> bool:
        if isinstance(source, types.CodeType):
            return source.co_name == "<module>" and letter_hash in source.co_consts
        return isinstance(source, str) and source.endswith(last_line)

    def measured_exec(source: Any, /, globals: Any = None, locals: Any = None, **more: Any) -> None:  # noqa: A002
        if is_letter(source) and globals is not None and locals is None:
            for code in compiled():
                _exec(code, globals)
            globals["LETTER"] = letter_hash
            return
        caller = sys._getframe(1)
        if isinstance(source, str):
            flags = caller.f_code.co_flags & __future__.annotations.compiler_flag
            source = compile(source, "<string>", "exec", flags=flags, dont_inherit=True)
        if globals is None:
            globals, locals = caller.f_globals, caller.f_locals if locals is None else locals  # noqa: A001
        _exec(source, globals, locals, **more)

    return measured_exec


if __name__ == _MODULE:
    start(json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")))
