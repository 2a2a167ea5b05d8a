"""How a script is started: from a file, with its own interpreter, and only once per submission."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from prefect_psik.spec.time_warning import WARNING_SIGNAL

#: Where the facility keeps the user's script, relative to psik's job directory.
SCRIPT_FILE = "prefect/script"
#: An endpoint's environment may hold these, and psik's local backend passes it on; Slurm jobs get none of it.
SECRETS = ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET")
#: Exit code of a launcher when another Slurm job is already doing the same run (sysexits' EX_TEMPFAIL).
NOT_THE_OWNER = 75
#: Exit code of a launcher whose run was canceled before it began (the number of BSD's EX_PROTOCOL).
CANCELED = 76
#: Exit code of a launcher that cannot write to the job's directory (sysexits' EX_CANTCREAT).
NOT_WRITABLE = 73

# psik runs this text with $base (the job's directory), $jobndx and $jobid set. The first of two Slurm jobs
# of the same run makes the link; a requeued job keeps its id and passes.
_LAUNCHER = """\
#!/bin/bash
d="$base/prefect"
{{ read -r s < "/proc/$$/stat"; }} 2> /dev/null
printf '%s\\n' "${{s:-$$}}" > "$d/process.$jobndx.$jobid"
printf '%s %s\\n' "${{nodes:-1}}" "${{SLURM_JOB_NODELIST:-$HOSTNAME}}" > "$d/nodes.$jobndx.$jobid"
ln -s "$jobid" "$d/owner.$jobndx" 2> /dev/null
owner=$(readlink "$d/owner.$jobndx")
if [ -z "$owner" ]; then
  echo "$d is not writable where the job runs: its file system is full, or not shared with the login node." >&2
  exit {not_writable}
elif [ "$owner" != "$jobid" ]; then
  : > "$d/refused.$jobndx.$jobid"
  echo "Another job, $owner, is already doing this run; this one, $jobid, does nothing." >&2
  exit {not_the_owner}
elif [ -e "$d/cancel.$jobndx" ]; then
  echo "This run was canceled before it began." >&2
  exit {canceled}
fi
{exports}{warning}umask {umask}
exec {interpreter} "$base/{script_file}"{arguments} < /dev/null
"""
_SLURM_EXPORTS = """\
export SLURM_EXPORT_ENV=ALL
export SLURM_SUBMIT_DIR="$PWD"
"""
# Without a scheduler the launcher warns. The timer is not a child of the script, which may wait for its own; it is
# in its process group, and ends with it.
_WARNING = """\
( (
  timeout --foreground {seconds} tail --pid=$$ -f /dev/null
  [ $? = 124 ] && echo {signal} >> "$d/signals.$jobndx.$jobid" && kill -s {signal} $$
) < /dev/null > /dev/null 2>&1 & )
"""


def normalize_script(script: str) -> tuple[list[str], str]:
    """Clean up a script, and find its interpreter.

    A byte-order mark, blank lines before the shebang and carriage returns are removed. Without a shebang the
    interpreter is bash, as in psik.

    Returns:
        The interpreter with its arguments, and the script's text.
    """
    text = script.removeprefix("\ufeff").replace("\r\n", "\n")
    body = text.lstrip(" \t\n") if text.lstrip(" \t\n").startswith("#!") else text
    if not body.endswith("\n"):
        body += "\n"
    words = body[2:].split("\n", 1)[0].split() if body.startswith("#!") else []
    if words[1:2] == ["-S"]:
        # env splits the rest itself, and understands quotes.
        words = [*words[:2], body[2:].split("\n", 1)[0].split(None, 2)[2].rstrip()] if words[2:] else words
    return words or ["/bin/bash"], body


def launcher_script(
    interpreter: list[str],
    arguments: Sequence[str] = (),
    *,
    umask: str,
    scheduler: str,
    warn_after: int | None = None,
) -> str:
    """Write the script that psik runs: a single-run guard, then `exec INTERPRETER ARGS FILE ARGUMENTS </dev/null`.

    Args:
        interpreter: From `normalize_script`.
        arguments: Of the script.
        umask: Octal digits.
        scheduler: With `slurm`, job steps get the job's environment even though it was submitted with
            `--export=NIL`, and $SLURM_SUBMIT_DIR is where the script starts, as after a plain `sbatch`.
        warn_after: Seconds after which the script gets SIGUSR1; None: the scheduler sends it, or nothing does.
    """
    return _LAUNCHER.format(
        canceled=CANCELED,
        not_the_owner=NOT_THE_OWNER,
        not_writable=NOT_WRITABLE,
        exports=_SLURM_EXPORTS if scheduler == "slurm" else f"unset {' '.join(SECRETS)}\n",
        warning="" if warn_after is None else _WARNING.format(seconds=warn_after, signal=WARNING_SIGNAL),
        umask=umask,
        interpreter=shlex.join(interpreter),
        script_file=SCRIPT_FILE,
        arguments="".join(f" {shlex.quote(argument)}" for argument in arguments),
    )
