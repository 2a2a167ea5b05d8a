"""Checks before a job is submitted: could it work? Turns facts from the facility into checks with verdicts."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from prefect_psik.blocks import PsikBackend
from prefect_psik.exceptions import FacilityError, PreflightFailed, SpecError
from prefect_psik.models.jobs import Check, PreflightReport, Verdict
from prefect_psik.outcome.arrival import read
from prefect_psik.outcome.preflight_facts import (
    Owners,
    PrefixFacts,
    PreflightAnswer,
    PythonFacts,
    Said,
    SiteFacts,
    SlurmFacts,
)
from prefect_psik.outcome.reservations import held_by
from prefect_psik.remote import letter
from prefect_psik.session.admission import line_of
from prefect_psik.session.session import Channel
from prefect_psik.spec.directives import Note
from prefect_psik.spec.identity import Identity
from prefect_psik.spec.jobspec import JobSpec
from prefect_psik.spec.sbatch import read_arguments

PSIK_OLDEST = (3, 1, 1)
#: The oldest Python that psik 3.1.1 runs on.
PYTHON_OLDEST = (3, 9)
#: Below the first number nothing can be submitted; below the second, somebody should free some space.
FREE_BYTES = 10_000_000, 1_000_000_000
FREE_INODES = 100, 10_000
#: A facility that takes longer than this to answer a preflight has a problem itself.
ANSWER_SECONDS = 90.0

#: Commands that submit -> the scheduler they belong to.
_SCHEDULERS = {"qsub": "PBS", "bsub": "LSF", "condor_submit": "HTCondor", "flux": "Flux"}


async def preflight(channel: Channel, block: PsikBackend, spec: JobSpec | None = None) -> PreflightReport:
    """Check a backend from here to its scheduler. Submits nothing; problems are reported, never raised.

    Args:
        channel: The block's channel.
        block: The backend to check.
        spec: The job whose resources the scheduler is asked about; None: the block's defaults.
    """
    transport = channel.transport
    checks = [_block_is_open(block)]
    try:
        status = await transport.endpoint_status()
        checks.append(_endpoint(status, transport.place))
        if checks[-1].verdict is not Verdict.failed:
            spec = spec or JobSpec(name="preflight", script="true\n")
            checks += _directives(block.prepare(spec).notes)
            payload = preflight_payload(block, spec)
            answer = await transport.call("preflight", payload, timeout=ANSWER_SECONDS)
            facts = read(PreflightAnswer, answer, what="the preflight", place=transport.place)
            options = read_arguments(payload["spec"]["attributes"])
            asked = {"required": options.get("--nodelist", ""), "excluded": options.get("--exclude", "")}
            checks += judge_preflight(facts, duration=payload["duration"], nodes=payload["nodes"], asked=asked)
    except SpecError as err:
        checks.append(_check("directives", Verdict.failed, str(err)))
    except FacilityError as err:
        checks.append(_check("call" if len(checks) > 1 else "endpoint", Verdict.failed, str(err)))
    return PreflightReport(backend=block.document_name or transport.place, checks=checks)


def unusable(backend: str, error: SpecError) -> PreflightReport:
    """The report on a block that cannot be loaded, so that nothing else could be checked."""
    return PreflightReport(backend=backend, checks=[_check("block", Verdict.failed, str(error))])


def _directives(notes: list[Note]) -> list[Check]:
    """The check of the script's scheduler directives, if it has any."""
    verdict = Verdict.warning if any(note.warning for note in notes) else Verdict.ok
    return [_check("directives", verdict, f"Script, {'; '.join(note.text for note in notes)}.")] if notes else []


def preflight_payload(block: PsikBackend, spec: JobSpec) -> dict[str, Any]:
    """What `remote.preflight` needs: the same backend and spec as a submission."""
    job = block.submission(spec, Identity(key="preflight", stamp="0", attempt=[]), {})
    resources = job["spec"]["resources"]
    return {
        "prefix": block.prefix,
        "backend": job["backend"],
        "spec": job["spec"],
        **line_of(job),
        "duration": job["asked"]["duration"],
        "nodes": resources.get("node_count") or 1,
    }


def failure_of(report: PreflightReport) -> PreflightFailed | None:
    """The error for a report with failures, or None."""
    if report.ok:
        return None
    found = " ".join(f"{check.name}: {check.message}" for check in report.failures)
    return PreflightFailed(
        f"The preflight of {report.backend} failed, so nothing was submitted. {found}", report=report
    )


def judge_preflight(
    facts: PreflightAnswer, *, duration: int, nodes: int, asked: Mapping[str, str] | None = None
) -> list[Check]:
    """Judge what the facility answered.

    Args:
        facts: As `remote.preflight` gathers them.
        duration: Requested walltime, minutes.
        nodes: Requested number of nodes.
        asked: Nodes that the job's options name as `required` or `excluded`.
    """
    checks = [
        _check("call", Verdict.ok, f"Calls run as {facts.user} on {facts.host}."),
        _function(facts.letter),
        _versions(facts),
        _psik(facts),
        *_site(facts.site),
    ]
    if facts.prefix:
        checks += _prefix(facts.prefix)
    if facts.psik_python:
        checks.append(_psik_python(facts.psik_python))
    if facts.slurm:
        checks += _slurm(facts.slurm, duration, nodes)
        checks += _maintenance(facts.slurm, duration, nodes, asked or {}, facts.now)
    return checks


def _check(name: str, verdict: Verdict, message: str) -> Check:
    return Check(name=name, verdict=verdict, message=message)


def _block_is_open(block: PsikBackend) -> Check:
    if block.accept_jobs:
        if block.contradiction is not None:
            return _check("block", Verdict.warning, f"The block accepts jobs, but {block.contradiction}")
        return _check("block", Verdict.ok, "The block accepts jobs.")
    why = f": {block.note}" if block.note else ""
    text = f"The block does not accept jobs (accept_jobs is off){why}. Wait, or use another backend."
    return _check("block", Verdict.failed, text)


def _endpoint(status: str, place: str) -> Check:
    if status == "online":
        return _check("endpoint", Verdict.ok, f"{place[0].upper()}{place[1:]} is online.")
    return _check(
        "endpoint",
        Verdict.failed,
        f"The {place} is {status}. Start it at the facility: globus-compute-endpoint start NAME.",
    )


def _versions(facts: PreflightAnswer) -> Check:
    here, there = platform.python_version(), facts.python
    sdk = importlib.metadata.version("globus-compute-sdk")
    endpoint = facts.versions.get("globus-compute-endpoint")
    message = f"Python {here} here and {there} there"
    if endpoint is not None:
        message += f", globus-compute-sdk {sdk} here and globus-compute-endpoint {endpoint} there"
    if tuple(map(int, there.split(".")[:2])) < PYTHON_OLDEST:
        oldest = ".".join(map(str, PYTHON_OLDEST))
        text = f"{message}: Python {there} is too old for psik. Run the endpoint with Python {oldest} or newer."
        return _check("versions", Verdict.failed, text)
    same = here.rsplit(".", 1)[0] == there.rsplit(".", 1)[0] and endpoint in (None, sdk)
    harmless = "" if same else "; the difference does no harm, since only text and JSON are exchanged"
    return _check("versions", Verdict.ok, f"{message}{harmless}.")


def _psik(facts: PreflightAnswer) -> Check:
    version = facts.versions.get("psik")
    oldest = ".".join(map(str, PSIK_OLDEST))
    if version is None:
        return _check(
            "psik",
            Verdict.failed,
            f"{facts.executable} on {facts.host} has no psik. Install it: pip install 'psik>={oldest}'.",
        )
    found = tuple(int("".join(filter(str.isdecimal, part)) or 0) for part in version.split(".")[:3])
    if found < PSIK_OLDEST:
        return _check(
            "psik",
            Verdict.failed,
            f"psik {version} on {facts.host} is too old. Upgrade it there: pip install 'psik>={oldest}'.",
        )
    if found[:2] != PSIK_OLDEST[:2]:
        return _check(
            "psik",
            Verdict.warning,
            f"psik {version} is installed, but this package was tested with {oldest}. Try one job first.",
        )
    return _check("psik", Verdict.ok, f"psik {version} is installed.")


def _psik_python(facts: PythonFacts) -> Check:
    if facts.executable:
        return _check("psik_python", Verdict.ok, f"{facts.path} can be executed on the login node.")
    return _check(
        "psik_python",
        Verdict.warning,
        f"{facts.path} cannot be executed on the login node. Jobs will fail unless the compute nodes have it.",
    )


def _function(answering: str | None) -> Check:
    if letter().endswith(f'\nLETTER = "{answering}"\n'):
        return _check("function", Verdict.ok, "The registered function is allowed and matches this release.")
    return _check(
        "function",
        Verdict.warning,
        "The endpoint runs the function of another release. Register this release's with `prefect-psik functions "
        "register`, and put its UUID into function_id of the block and allowed_functions of the endpoint.",
    )


def _site(facts: SiteFacts) -> Iterator[Check]:
    if facts.error is not None:
        yield _check("site", Verdict.failed, facts.error)
    elif facts.file:
        yield _check("site", Verdict.ok, f"{facts.file} allows this prefix and job.")


def _prefix(facts: PrefixFacts) -> Iterator[Check]:
    if facts.error is not None:
        yield _check("prefix", Verdict.failed, facts.error)
        return
    yield _check("prefix", Verdict.ok, f"{facts.path} is writable.")
    if facts.owners is not None:  # an older release's function does not report them
        yield _owners(facts.path, facts.owners)
    yield _room("space", facts.free_bytes, FREE_BYTES, "bytes")
    if facts.free_inodes is not None:
        yield _room("inodes", facts.free_inodes, FREE_INODES, "inodes")
    if facts.locks:
        yield _check("locks", Verdict.ok, "File locks work.")
    else:
        yield _check(
            "locks",
            Verdict.failed,
            f"flock does not work on the file system of {facts.path}, so two calls could submit a job twice. "
            "Put the prefix on a file system with file locks, or have it mounted with them (Lustre: -o flock).",
        )


def _owners(path: str, owners: Owners) -> Check:
    wrong = [*owners.planted, *owners.shared]
    if wrong:
        return _check("owners", Verdict.warning, " ".join(wrong))
    return _check("owners", Verdict.ok, f"Nobody else can put job directories into {path}.")


def _room(name: str, free: int, limits: tuple[int, int], unit: str) -> Check:
    least, comfortable = limits
    verdict = Verdict.failed if free < least else Verdict.warning if free < comfortable else Verdict.ok
    advice = "" if verdict is Verdict.ok else " Remove old job directories, or choose another prefix."
    return _check(name, verdict, f"{free:,} {unit} are free on the prefix's file system.{advice}")


def _slurm(facts: SlurmFacts, duration: int, nodes: int) -> Iterator[Check]:
    if "sbatch" not in facts.commands:
        yield _no_sbatch(facts.commands)
        return
    if not facts.controller.ok:
        yield _check(
            "scheduler", Verdict.failed, f"Slurm cannot be reached: {facts.controller.text}. Try again later."
        )
        return
    yield _check("scheduler", Verdict.ok, f"{facts.version}: {facts.controller.text}.")
    if not facts.accounting.ok:
        yield _check(
            "accounting",
            Verdict.warning,
            f"sacct does not work: {facts.accounting.text}. How jobs ended is read from the queue and the logs.",
        )
    yield _queue(facts.partition, duration, nodes)
    yield _test(facts.test)


def _no_sbatch(commands: list[str]) -> Check:
    other = next((f"{name} ({scheduler})" for name, scheduler in _SCHEDULERS.items() if name in commands), None)
    if other:
        text = (
            f"There is no sbatch, only {other}, which psik 3.1.1 does not support. Choose a facility with Slurm."
        )
    else:
        text = (
            "sbatch is not on the PATH of the endpoint. Start the endpoint where Slurm's commands are available."
        )
    return _check("scheduler", Verdict.failed, text)


def _queue(partition: Mapping[str, str] | None, duration: int, nodes: int) -> Check:
    if partition is None:
        return _check(
            "queue",
            Verdict.failed,
            "Slurm shows no such partition. Correct queue_name of the block; sinfo lists the partitions.",
        )
    name = partition.get("PartitionName", "(without a name)")
    if partition.get("State") != "UP":
        return _check(
            "queue",
            Verdict.failed,
            f"The partition {name} is {partition.get('State')}, so jobs would wait. Use another partition.",
        )
    longest = slurm_minutes(partition.get("MaxTime", ""))
    if longest is not None and duration > longest:
        return _check(
            "queue",
            Verdict.failed,
            f"The partition {name} allows at most {longest} min, but the job asks for {duration}, so it would "
            "never start. Ask for less.",
        )
    most = min(
        (int(partition[key]) for key in ("MaxNodes", "TotalNodes") if partition.get(key, "").isdecimal()),
        default=None,
    )
    if most is not None and nodes > most:
        return _check(
            "queue",
            Verdict.failed,
            f"The partition {name} offers at most {most} nodes, but the job asks for {nodes}. Ask for fewer.",
        )
    limit = f" of at most {longest} min" if longest is not None else ""
    return _check("queue", Verdict.ok, f"The partition {name} is up and accepts jobs{limit}.")


def _maintenance(
    facts: SlurmFacts, duration: int, nodes: int, asked: Mapping[str, str], now: float
) -> Iterator[Check]:
    """The check for a reservation that would keep the job waiting, if there is one."""
    name = (facts.partition or {}).get("PartitionName")
    if name is None or facts.held is None:
        return
    job = {"partition": name, "nodes": str(nodes), **asked}
    if text := held_by(facts.held.model_copy(update=job), duration * 60, now):
        yield _check("maintenance", Verdict.warning, f"The job would wait: {text}.")


def _test(test: Said | None) -> Check:
    if test is None or test.ok is None:
        why = test.text if test else "psik is not installed"
        return _check("resources", Verdict.warning, f"The job was not tested with sbatch: {why}.")
    if test.full:
        text = f"The queue is full for now ({test.full}): a submission would wait for a place."
        return _check("resources", Verdict.warning, text)
    text = re.sub(r"start at ([0-9]{9,11})\b", _as_time, test.text.rstrip("."))
    if test.ok:
        return _check("resources", Verdict.ok, f"sbatch would accept the job: {text}.")
    return _check(
        "resources",
        Verdict.failed,
        f"sbatch would refuse the job: {text}. Correct the partition, account, options or resources.",
    )


def _as_time(found: re.Match[str]) -> str:
    return f"start at {datetime.fromtimestamp(int(found.group(1)), UTC):%Y-%m-%d %H:%M} UTC"


def slurm_minutes(text: str) -> int | None:
    """Read a time limit of Slurm (`[days-]hours:minutes:seconds`), whole minutes; None for no limit."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in (*parts, days or "0")):
        return None
    hours, minutes, _ = map(int, parts)
    return (int(days or 0) * 24 + hours) * 60 + minutes
