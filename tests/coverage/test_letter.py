"""The letter is executed as the files that it is made of, as the SDK and as `LocalTransport` execute it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from coverage import CoverageData

from prefect_psik.remote import letter
from tests.coverage.environments import PACKAGE, parts, write_config, write_module

_SDK = "exec(text, names)"
_LOCAL = "exec(compile(text, '<prefect_psik.remote>', 'exec'), names)"
_RUN = """\
import sys
import prefect_psik_coverage
text, names = open(sys.argv[1]).read(), {{}}
{how}
print(names["call"]("hello", {{}})["protocol"], names["LETTER"])
"""


def test_the_parts_are_the_letter_with_the_lines_where_they_stand_in_the_files() -> None:
    statements: list[ast.stmt] = []
    for path, text in parts():
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        assert all(line in ("", there) for line, there in zip(text.splitlines(), lines, strict=True))
        statements += ast.parse(text).body

    def is_kept(node: ast.stmt) -> bool:
        return not (isinstance(node, ast.ImportFrom) and node.module == "__future__")

    joined = ast.Module([node for node in statements if is_kept(node)], [])
    *whole, _ = ast.parse(letter()).body
    assert ast.dump(joined) == ast.dump(ast.Module([node for node in whole if is_kept(node)], []))


@pytest.mark.parametrize("how", [_SDK, _LOCAL])
def test_lines_of_the_letter_count_for_its_parts(tmp_path: Path, how: str) -> None:
    config = write_config(tmp_path)
    write_module(tmp_path, config)
    text = tmp_path / "letter"
    text.write_text(letter(), encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, "-c", _RUN.format(how=how), str(text)],
        env={"PYTHONPATH": str(tmp_path)},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == ["1", letter().rsplit('"', 2)[1]]
    (file,) = tmp_path.glob("data.*")
    data = CoverageData(str(file))
    data.read()
    entry = PACKAGE / "remote" / "call.py"
    numbers = {number for number, line in enumerate(entry.read_text().splitlines(), 1) if '"protocol"' in line}
    assert numbers <= set(data.lines(str(entry)) or ())
    assert not any(name.startswith("<") for name in data.measured_files())


@pytest.mark.parametrize("how", [_SDK, _LOCAL])
def test_another_text_is_executed_as_it_is(tmp_path: Path, how: str) -> None:
    write_module(tmp_path, write_config(tmp_path))
    text = tmp_path / "letter"
    text.write_text(letter().replace('"protocol": PROTOCOL', '"protocol": "another"'), encoding="utf-8")
    text.write_text(text.read_text().replace('LETTER = "', 'LETTER = "0'), encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, "-c", _RUN.format(how=how), str(text)],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.startswith("another 0")


def test_code_is_executed_where_the_caller_is(tmp_path: Path) -> None:
    write_module(tmp_path, write_config(tmp_path))
    program = """
from __future__ import annotations
import prefect_psik_coverage
exec("here = 1")
def inside():
    there = 2
    exec("assert there == 2 and here == 1")
    names = {}
    exec("def typed(x: missing): pass", names)
    return names["typed"].__annotations__
print(here, inside())
"""
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "1 {'x': 'missing'}\n"


def test_a_run_that_left_its_hook_measures_nothing(tmp_path: Path) -> None:
    write_module(tmp_path, write_config(tmp_path))
    settings = tmp_path / "prefect_psik_coverage.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pid": 2**22 + 1}))
    command = "import prefect_psik_coverage, sys; print('coverage' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", command],
        env={"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert answer.stdout == "False\n"


def test_a_process_that_cannot_save_says_nothing_of_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_module(tmp_path, write_config(data))
    text = tmp_path / "letter"
    text.write_text(letter(), encoding="utf-8")
    command = _RUN.format(how=_LOCAL) + "import shutil; shutil.rmtree(sys.argv[2])"
    answer = subprocess.run(
        [sys.executable, "-c", command, str(text), str(data)],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stderr == ""
