"""How long a beamline's pipeline is: `python -m tests.lines` prints the table of docs/how-to/new-beamline.md."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
#: splash-flows at 1648452, counted there by `wc -l` of these files.
SPLASH = 3188
SPLASH_FILES = (
    "orchestration/{prefect,prune_controller,transfer_controller,globus/transfer}.py",
    "orchestration/flows/bl832/{alcf,dispatcher,job_controller,move,nersc,prune,streaming_mixin}.py",
)
#: Of the pipeline of one beamline with two facilities, blank lines and comments included.
PARTS = {
    "here: flows": [
        f"flows/{name}.py" for name in ("tomography", "store", "dispatcher", "streaming", "ingest", "prune")
    ],
    "job scripts": [
        f"flows/scripts/{name}.py" for name in ("reconstruct", "multiscale", "report", "frame_service")
    ],
    "configuration": [
        *("prefect.yaml", "blocks/als.yaml", "blocks/perlmutter.yaml", "blocks/frontier.yaml"),
        *("blocks/register.py", "blocks/deploy.sh"),
    ],
    "the package, which every beamline shares": ["prefect_psik/**/*.py"],
}


def count(patterns: list[str]) -> int:
    """Lines of all files that match, as `wc -l` counts them."""
    return sum(path.read_bytes().count(b"\n") for pattern in patterns for path in sorted(ROOT.glob(pattern)))


def table() -> list[str]:
    """The lines of the table, as Markdown."""
    rows = [("splash-flows", SPLASH, list(SPLASH_FILES))]
    rows += [(part, count(patterns), patterns) for part, patterns in PARTS.items()]
    return ["| | Lines | Files |", "|---|---|---|"] + [
        f"| {part} | {lines:,} | {', '.join(f'`{pattern}`' for pattern in files)} |" for part, lines, files in rows
    ]


if __name__ == "__main__":
    print("\n".join(table()))
