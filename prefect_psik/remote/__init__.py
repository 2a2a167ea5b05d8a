"""AT THE FACILITY: all code that runs there, sent there as one text, with one entry point: `call`.

This package is a letter. Its parts are joined into one text, which imports only the standard library, and psik
to submit a job, but none of our modules. JSON goes in and out. Every operation is short, safe to run twice, and
changes no state of its process (umask, working directory, environment, signals, log levels), because an endpoint
may run several calls as threads of one process. It gathers facts and does atomic file work; what the facts mean
is decided by `outcome` on our side.

A job directory is psik's, with one directory of ours in it::

    PREFIX/STAMP/  spec.json status.csv work/ log/        psik's
                   prefect/job.json                       key, spec and owner; written last when creating
                           script                         the user's script
                           intent.N                       run N is about to be submitted: time, attempt, asked
                           native.N                       what was started: pid, start, session (local)
                           process.N.ID nodes.N.ID owner.N refused.N.ID    written by the launcher in the job
                           signals.N.ID                   signals that the script received from outside
                           cancel.N                       we were asked to cancel run N
                           none.N                         when Slurm first had no trace of run N
                           vanished.N                     when Slurm's queue first no longer listed run N
                           found.N                        reports on run N's results, and when they were made
                           end.N                          how Slurm ended run N, where psik recorded no end
    PREFIX/.runs/FLOWRUN/STAMP                            which jobs a flow run submitted
    PREFIX/.locks/STAMP                                   held while a job is created and submitted
    PREFIX/.locks/squeue.json sacct.json usage.json       what Slurm said last, shared by all callers
    PREFIX/audit.jsonl                                    who submitted and canceled what
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib import resources

#: In the order in which they are joined: a part uses only those before it. No two define the same name.
PARTS = (
    "ownership",
    "files",
    "wire",
    "site",
    "job_directory",
    "signals",
    "processes",
    "slurm",
    "reservations",
    "slurm_answers",
    "matches",
    "fetch",
    "status",
    "usage",
    "inventory",
    "sbatch",
    "launch",
    "submit",
    "cancel",
    "preflight",
    "call",
)


@cache
def letter() -> str:
    """Return the text that is sent: all parts, without their imports from each other."""
    texts = ["from __future__ import annotations\n"]
    for part in PARTS:
        text = resources.files(__name__).joinpath(f"{part}.py").read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        for node in ast.parse(text).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith((__name__, "__future__")):
                for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                    lines[number] = ""
        texts.append(f"# {part}\n{''.join(lines)}")
    text = "\n".join(texts)
    return f'{text}\nLETTER = "{hashlib.sha256(text.encode()).hexdigest()}"\n'
