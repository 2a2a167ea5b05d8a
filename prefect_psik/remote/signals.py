"""Signals that Slurm or a person sends to the batch shell of a job: passed on to its script, and recorded."""

from __future__ import annotations

import os

from prefect_psik.remote.files import _read
from prefect_psik.remote.job_directory import _launched

#: Put into psik's batch script, before its first import. psik is the batch shell, would die of these signals, and
#: runs the script in a process group of its own. It handles SIGTERM and SIGINT itself; those of job control reach
#: all processes of a job, and the others left out are a process's own. A signal that comes before the script is
#: kept for it, until it handles the signal or has run for 10 s. Like Slurm without psik this signals the script
#: alone, not what it started.
HAND_ON_SIGNALS = """\
import glob, os, signal, sys, threading, time

def hand_on_signals():
    ours = os.path.join(os.getcwd(), "prefect")
    job = os.environ.get("SLURM_JOB_ID", "")
    kept = "TERM INT KILL STOP CONT TSTP TTIN TTOU CHLD PIPE XFSZ SEGV BUS FPE ILL TRAP SYS"

    def notes(kind):
        return glob.glob(os.path.join(glob.escape(ours), kind + ".*." + job))

    def script():
        for note in notes("process"):
            with open(note) as file:
                pid = int(file.read().split()[0])
            with open("/proc/%d/stat" % pid) as file:
                if int(file.read().rsplit(")", 1)[1].split()[1]) == os.getpid():
                    return pid, os.path.join(ours, os.path.basename(note).replace("process", "signals"))
        return None

    def handles(pid, number):
        with open("/proc/%d/status" % pid) as file:
            caught = [line.split()[1] for line in file if line.startswith("SigCgt:")]
        return int(caught[0], 16) >> (number - 1) & 1

    def deliver(number):
        patience = 0
        while True:
            try:
                pid, note = script()
                if patience <= 0 or handles(pid, number):
                    break
                patience -= 1
            except (OSError, ValueError, IndexError, TypeError):
                patience = 50
            time.sleep(0.2)
        try:
            with open(note, "a") as file:
                print(signal.Signals(number).name if number in list(signal.Signals) else number, file=file)
        except OSError:
            pass
        os.kill(pid, number)

    def handle(number, frame):
        threading.Thread(target=deliver, args=(number,), daemon=True).start()

    for note in notes("signals"):
        try:
            os.unlink(note)
        except OSError:
            pass
    for number in signal.valid_signals() - {getattr(signal, "SIG" + name, None) for name in kept.split()}:
        signal.signal(number, handle)

try:
    hand_on_signals()
except Exception as err:  # a job without its signals is better than none
    print("Signals are not passed on to the script: %r" % err, file=sys.stderr)
"""
MAX_SIGNALS_BYTES = 4096


def _signals(base: str, jobndx: int) -> list[str]:
    """The names of the signals that the script of a run received from outside, in order."""
    launched = _launched(base, jobndx)
    data = launched and _read(os.path.join(base, "prefect", f"signals.{jobndx}.{launched[0]}"), MAX_SIGNALS_BYTES)
    return data.decode("utf-8", "replace").split() if data else []
