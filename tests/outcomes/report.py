"""The table of what was told, for the terminal and for the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.outcomes.case import Result, Seen

_INTRODUCTION = """\
# How batch jobs end, and what is reported

Each row was provoked on a real Slurm {version}, with psik {psik}. "psik alone" is the last line of psik's
`status.csv`, where `canceled` is written by us; "Slurm alone" is what `sacct` says. A job whose state is not final
was polled while it waited, and `rejected` is what `SubmitRejected` says.
`make outcomes ARGS="--write docs/reference/outcomes.md"` writes this page, from a run in which all rows passed.

"""


def show(console: Console, results: dict[str, Result]) -> None:
    """Print the table; what went wrong stands below it."""
    table = Table(show_lines=False, header_style="bold", expand=True)
    table.add_column("", no_wrap=True)
    table.add_column("case", ratio=4)
    table.add_column("told", ratio=3)
    table.add_column("psik alone", ratio=2)
    table.add_column("Slurm alone", ratio=2)
    table.add_column("message", ratio=7)
    table.add_column("s", justify="right", no_wrap=True)
    for name, result in results.items():
        seen = result.seen or Seen("–")
        mark = Text("FAILED", "red") if result.problems else Text("ok", "green")
        words = "; ".join([plain(seen.message), *map(plain, seen.notes)])
        cells = (name, _told(seen), plain(seen.psik), plain(seen.slurm), words)
        table.add_row(mark, *map(Text, cells), f"{result.seconds:.0f}")
    console.print(table)
    for name, result in results.items():
        for problem in result.problems:
            console.print(Text(f"\n{name}: {problem}"))


def markdown(results: dict[str, Result], *, version: str, psik: str) -> str:
    """Write the page of the documentation."""
    rows = ["| Case | Reported | psik alone | Slurm alone |", "|---|---|---|---|"]
    words = []
    for name, result in results.items():
        seen = result.seen or Seen("–")
        cells = (_told(seen), plain(seen.psik), plain(seen.slurm))
        rows.append(f"| {name} | " + " | ".join(f"`{_cell(cell)}`" for cell in cells) + " |")
        notes = "".join(f" *{_cell(plain(note))}*" for note in seen.notes)
        words.append(f"- **{name}**: {_cell(plain(seen.message))}{notes}")
    text = _INTRODUCTION.format(version=version, psik=psik)
    return text + "\n".join(rows) + "\n\n## What a person reads\n\n" + "\n".join(words) + "\n"


def write(path: Path, text: str) -> None:
    """Write the page."""
    path.write_text(text, encoding="utf-8")


def plain(text: str) -> str:
    """A text without what differs from run to run: directories, stamps, native ids and times."""
    text = re.sub(r"(?:/[\w.-]+)+/(?=\d{20}\b)", "PREFIX/", text)
    text = re.sub(r"\d{20}", "STAMP", text)
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", text)
    text = re.sub(r"slurm_script: /[\w/.-]+", "slurm_script: PATH", text)
    text = re.sub(r"\d+ [A-Z][a-z]{2} \d\d:\d\d \w+; (.*) \d+ min", r"DAY TIME ZONE; \1 N min", text)
    return re.sub(r"\s+", " ", text)


def _told(seen: Seen) -> str:
    return seen.outcome + (f", exit {seen.exit_code}" if seen.exit_code is not None else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")
