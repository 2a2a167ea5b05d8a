"""A real Slurm with accounting: munge, MariaDB, slurmdbd, slurmctld and four slurmd."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.testbed.daemons import Daemons
from tests.testbed.packages import FACILITY_USER, MAPPED_USER
from tests.testbed.slurm_conf import (
    ACCOUNT,
    CGROUP_CONF,
    CLOSED_ACCOUNT,
    CLUSTER,
    FOREIGN_ACCOUNT,
    LIMITED_ACCOUNT,
    NODES,
    OTHER_ACCOUNT,
    QOS,
    SUBMIT_LIMIT,
    Site,
    mariadb_conf,
    memory_conf,
    slurm_conf,
    slurmdbd_conf,
)
from tests.testbed.state import State, TestbedError, wait_until

_START_SECONDS = 300.0
_COMMAND_SECONDS = 180.0
_DRAIN_SECONDS = 3.0
_DATABASE_USER = "mysql"
#: Of nodes whose daemon answers, whatever is run or planned there; one that does not has a `*` behind it.
_READY_STATES = {"idle", "mixed", "allocated", "completing", "planned"}
NODE_DAEMONS = tuple(f"slurmd-{node}" for node in NODES)
_MEMORY_CONTROLLER = Path("/sys/fs/cgroup/memory")


class Slurm:
    """One Slurm. Its files are below `state.root`; its daemons' names are those of the programs.

    Args:
        state: Its directory.
        daemons: Its processes.
        accounting: Whether there is a database of ended jobs.
        memory_node: A node that holds its jobs to their memory, see `can_limit_memory`.
    """

    def __init__(
        self, state: State, daemons: Daemons, *, accounting: bool = True, memory_node: str | None = None
    ) -> None:
        self._state = state
        self._accounting = accounting
        self._memory_node = memory_node
        self.daemons = daemons
        self.conf = state.root / "slurm" / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """Return what a process must have in its environment to use this Slurm."""
        return {"SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        """Start what does not run, in order, and wait until all nodes take jobs.

        Raises:
            TestbedError: a part did not come up; names its log.
        """
        self._configure()
        self._start_munge()
        if self._accounting:
            self._start_database()
            self.start_accounting()
        self.start_controller()
        self._start_nodes()

    def stop(self) -> None:
        """Cancel all jobs, then stop every daemon, clients before servers: else they wait for time-outs."""
        if self.daemons.find("slurmctld") is not None:
            self._cancel_everything()
        for name in (*NODE_DAEMONS, "slurmctld", "slurmdbd", "mariadbd", "munged"):
            self.daemons.stop(name)

    def run(
        self, *command: str, user: str | None = None, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command against this Slurm, as this or another user; look at the result yourself."""
        env = {**self.daemons.environment(), **self.env}
        return subprocess.run(
            command if user is None else as_user(command, user),
            env=env,
            cwd="/",
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )

    def ask(self, *command: str) -> str:
        """Run one of Slurm's commands and return what it printed.

        Raises:
            TestbedError: it failed; quotes its words.
        """
        done = self.run(*command)
        if done.returncode:
            raise TestbedError(f"`{' '.join(command)}` failed with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _site(self) -> Site:
        hostname = socket.gethostname().partition(".")[0]
        try:
            address = socket.gethostbyname(hostname)
        except OSError as err:
            raise TestbedError(
                f"The name of this machine, {hostname}, has no address. Add it to /etc/hosts."
            ) from err
        return Site(
            root=self._state.root,
            hostname=hostname,
            address=address,
            controller_port=self._state.port("slurmctld"),
            database_daemon_port=self._state.port("slurmdbd"),
            database_port=self._state.port("mariadbd"),
            database_password=self._state.need("database_password", lambda: secrets.token_hex(16)),
            node_ports={node: self._state.port(f"slurmd-{node}") for node in NODES},
            accounting=self._accounting,
        )

    def _configure(self) -> None:
        site = self._site()
        for name in ("slurm", "run", "log", "ctld", "acct", "munge"):
            self._state.directory(name)
        for node in NODES:
            self._state.directory(f"slurmd-{node}")
        self._state.file("slurm", "slurm.conf", text=slurm_conf(site))
        if self._memory_node:
            self._state.directory("slurm-memory")
            self._state.file("slurm-memory", "slurm.conf", text=memory_conf(slurm_conf(site)))
            self._state.file("slurm-memory", "cgroup.conf", text=CGROUP_CONF)
        self._state.file("slurm", "slurmdbd.conf", text=slurmdbd_conf(site), mode=0o600)
        self._state.directory("mariadb", owner=_DATABASE_USER)
        self._state.file("mariadb", "my.cnf", text=mariadb_conf(site))
        if not (self._state.directory("munge-key", mode=0o700) / "munge.key").exists():
            self._state.file("munge-key", "munge.key", text=secrets.token_hex(64), mode=0o600)

    def _start_munge(self) -> None:
        if self.daemons.find("munged") is not None:
            return
        root = self._state.root
        command = ["munged", "--foreground", "--force", "--num-threads=4"]
        command += [
            f"--socket={root}/munge/socket",
            f"--pid-file={root}/munge/pid",
            f"--log-file={root}/log/munged.log",
        ]
        command += [f"--key-file={root}/munge-key/munge.key", f"--seed-file={root}/munge-key/seed"]
        self.daemons.start("munged", command)
        probe = ["munge", "-n", "-S", f"{root}/munge/socket"]
        self.daemons.wait_ready("munged", lambda: self.run(*probe).returncode == 0, seconds=_START_SECONDS)

    def _start_database(self) -> None:
        home = self._state.root / "mariadb"
        options = f"--defaults-file={home}/my.cnf"
        if self.daemons.find("mariadbd") is None:
            if not (home / "data").exists():
                made = self.run(
                    "mariadb-install-db",
                    options,
                    f"--user={_DATABASE_USER}",
                    "--skip-test-db",
                    "--skip-name-resolve",
                )
                if made.returncode:
                    raise TestbedError(f"The database could not be made: {made.stdout}{made.stderr}")
            self.daemons.start("mariadbd", ["mariadbd", options, f"--user={_DATABASE_USER}"])
        client = ["mariadb", f"--socket={home}/socket", "--user=root"]
        self.daemons.wait_ready(
            "mariadbd", lambda: self.run(*client, "-e", "SELECT 1").returncode == 0, seconds=_START_SECONDS
        )
        password = self._state.get("database_password")
        self.ask(
            *client,
            "-e",
            "CREATE DATABASE IF NOT EXISTS slurm_acct;"
            f" CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY '{password}';"
            " GRANT ALL ON slurm_acct.* TO slurm@'127.0.0.1';",
        )

    def start_accounting(self) -> None:
        """Start slurmdbd if it does not run, and wait until it answers."""
        if self.daemons.find("slurmdbd") is not None:
            return
        self.daemons.start("slurmdbd", ["slurmdbd", "-D"], env=self.env, own_log=True)

        def answers() -> bool:
            return self.run("sacctmgr", "-n", "list", "cluster").returncode == 0

        self.daemons.wait_ready("slurmdbd", answers, seconds=_START_SECONDS)
        steps = _account_steps()
        if self._state.get("accounts") != "; ".join(steps):
            self._make_accounts(steps)
            self._state.put("accounts", "; ".join(steps))

    def _make_accounts(self, steps: Sequence[str]) -> None:
        for step in steps:
            done = self.run("sacctmgr", "-i", *step.split())
            if done.returncode and "Nothing new added" not in done.stdout + done.stderr:
                raise TestbedError(f"`sacctmgr {step}` failed: {done.stdout}{done.stderr}")

    def start_controller(self) -> None:
        """Start slurmctld if it does not run, and wait until it answers."""
        if self.daemons.find("slurmctld") is None:
            self.daemons.start("slurmctld", ["slurmctld", "-D"], env=self.env, own_log=True)
        ping = ("scontrol", "ping")
        self.daemons.wait_ready("slurmctld", lambda: " is UP" in self.run(*ping).stdout, seconds=_START_SECONDS)

    def start_node(self, node: str) -> None:
        """Start a node's daemon if it does not run, and do not wait for it."""
        if self.daemons.find(f"slurmd-{node}") is None:
            conf = self._state.root / "slurm-memory" / "slurm.conf" if node == self._memory_node else self.conf
            command = ["slurmd", "-D", "-N", node, "-f", str(conf)]
            self.daemons.start(f"slurmd-{node}", command, env={"SLURM_CONF": str(conf)}, own_log=True)

    def _start_nodes(self) -> None:
        for node in NODES:
            self.start_node(node)

        def all_ready() -> bool:
            states = self.run("sinfo", "-h", "-N", "-p", "debug", "-o", "%T").stdout.split()
            return len(states) == len(NODES) and set(states) <= _READY_STATES

        wait_until(
            all_ready,
            seconds=_START_SECONDS,
            what=f"nodes {', '.join(NODES)} ready",
            log=self._state.log("slurmctld"),
        )

    def _cancel_everything(self) -> None:
        """Ask all jobs to end, and give them a moment; the sweep after the stop kills the rest."""
        try:
            for user in ("root", FACILITY_USER, MAPPED_USER):
                self.run("scancel", f"--user={user}")
            wait_until(
                lambda: not self.run("squeue", "-h").stdout.strip(), seconds=_DRAIN_SECONDS, what="jobs ended"
            )
        except (TestbedError, subprocess.TimeoutExpired):
            return


def _account_steps() -> list[str]:
    """What sacctmgr is asked for: accounts, of which all but the foreign one have this testbed's users in them."""
    limits = {ACCOUNT: "", OTHER_ACCOUNT: ""}
    limits |= {LIMITED_ACCOUNT: f" MaxSubmitJobs={SUBMIT_LIMIT}", CLOSED_ACCOUNT: " MaxSubmitJobs=0"}
    return [
        f"add cluster {CLUSTER}",
        *(f"add qos {name} {limit}" for name, limit in QOS.items()),
        *(
            f"add account {name} cluster={CLUSTER} Description={name} Organization=testbed"
            for name in (*limits, FOREIGN_ACCOUNT)
        ),
        *(
            f"add user {user} cluster={CLUSTER} account={account} DefaultAccount={ACCOUNT}{limit}"
            for user in ("root", FACILITY_USER, MAPPED_USER)
            for account, limit in limits.items()
        ),
    ]


def can_limit_memory() -> bool:
    """Say whether a node can hold its jobs to their memory on this machine."""
    return _MEMORY_CONTROLLER.is_dir() and os.access(_MEMORY_CONTROLLER, os.W_OK)


@contextmanager
def private_slurm(root: Path, *, accounting: bool = True, memory_node: str | None = None) -> Iterator[Slurm]:
    """Run a second, independent Slurm in an own directory, for tests that stop or hang its daemons.

    The facility's user must be able to enter `root` and its parents: pytest's `tmp_path` is closed to others.
    For `accounting` and `memory_node` see `Slurm`.
    """
    state = State(root)
    state.create()
    daemons = Daemons(state)
    slurm = Slurm(state, daemons, accounting=accounting, memory_node=memory_node)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
        daemons.sweep()
        if memory_node:
            _remove_cgroup(_MEMORY_CONTROLLER / f"slurm_{memory_node}")


def _remove_cgroup(directory: Path) -> None:
    """Remove what slurmd leaves of its cgroup; a group that has processes, as of another Slurm, stays."""
    for path, _, _ in os.walk(directory, topdown=False):
        with suppress(OSError):
            os.rmdir(path)


def as_user(command: Sequence[str], user: str) -> list[str]:
    """Return the command line that runs `command` as another user of this machine."""
    if os.geteuid() != 0:
        raise TestbedError("Only root can run a command as another user.")
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *command]
