"""What all commands share: the app, exit codes, and how errors are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

import httpx
from cyclopts import App
from rich.console import Console
from rich.text import Text

from prefect_psik.exceptions import PrefectPsikError, SpecError
from prefect_psik.plain_text import plain

#: Exit codes: bad input, everything else that is not success, and an interrupted wait.
BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130

app = App(name="prefect-psik", help="Run psik batch jobs through Prefect and Globus Compute.")
#: For our own messages; stdout is for results.
notes = Console(stderr=True, highlight=False, soft_wrap=True)


def shown(found: object, style: str = "") -> Text:
    """Text that is shown literally: neither rich nor the terminal interprets anything in it."""
    return Text(plain(str(found)), style=style)


def passed_on(text: str, to: TextIO) -> str:
    """What a job printed: unchanged for a file or a pipe, without control characters for a terminal."""
    return plain(text) if to.isatty() else text


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(_carefully(lambda: int(app(arguments, exit_on_error=True, result_action="return_value") or 0)))


def _carefully(command: Callable[[], int]) -> int:
    try:
        return command()
    except SpecError as err:
        notes.print(shown(err, "red"))
        return BAD_INPUT
    except PrefectPsikError as err:
        notes.print(shown(err, "red"))
        return FAILURE
    except httpx.HTTPError as err:
        notes.print(shown(f"Prefect's API does not answer: {err}. Check PREFECT_API_URL.", "red"))
        return FAILURE
