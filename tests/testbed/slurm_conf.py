"""The text of Slurm's configuration files: what this pretended cluster looks like. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CLUSTER = "testbed"
NODES = ("n1", "n2", "n3", "n4")
CPUS_PER_NODE = 16
MEMORY_PER_NODE_MB = 16000
ACCOUNT = "proj1"
OTHER_ACCOUNT = "stf006"
"""Another that takes everyone; the account of the set-up guide that psik's documentation gives."""
FOREIGN_ACCOUNT = "proj2"
LIMITED_ACCOUNT = "proj3"
"""Each user may have only `SUBMIT_LIMIT` jobs of it in the queue or running."""
CLOSED_ACCOUNT = "proj4"
"""Its users may not submit a single job: MaxSubmitJobs is 0."""
SUBMIT_LIMIT = 3
LIMITED_QOS = "few"
"""A quality of service of which each user may have one job in the queue or running."""
BRIEF_QOS = "brief"
"""A quality of service that denies a job of more than five minutes when it is submitted."""
QOS = {LIMITED_QOS: "MaxSubmitJobsPerUser=1", BRIEF_QOS: "MaxWall=5 Flags=DenyOnLimit"}

PARTITIONS = {
    "debug": "Default=YES MaxTime=60 PriorityTier=1 PreemptMode=OFF",
    "batch": "MaxTime=60 PriorityTier=1 PreemptMode=OFF",
    "high": "PriorityTier=10 PreemptMode=OFF",
    "low": "PriorityTier=1 PreemptMode=REQUEUE",
    "lowc": "PriorityTier=1 PreemptMode=CANCEL",
    "off": "State=DOWN PriorityTier=1 PreemptMode=OFF",
}


@dataclass(frozen=True)
class Site:
    """What the files need to know of the machine and the run."""

    root: Path
    hostname: str
    address: str
    controller_port: int
    database_daemon_port: int
    database_port: int
    database_password: str
    node_ports: dict[str, int]
    accounting: bool = True

    @property
    def munge_socket(self) -> Path:
        """Return the socket of this run's munged."""
        return self.root / "munge" / "socket"


def slurm_conf(site: Site) -> str:
    """Return slurm.conf: four nodes on one machine, no cgroups, short time-outs, accounts enforced."""
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={site.hostname} NodeAddr={site.address} Port={port}"
        f" CPUs={CPUS_PER_NODE} RealMemory={MEMORY_PER_NODE_MB} State=UNKNOWN"
        for name, port in site.node_ports.items()
    )
    partitions = "\n".join(f"PartitionName={name} Nodes=ALL {text}" for name, text in PARTITIONS.items())
    root = site.root
    return f"""\
ClusterName={CLUSTER}
SlurmctldHost={site.hostname}({site.address})
SlurmctldPort={site.controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={site.munge_socket}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={root}/ctld
SlurmdSpoolDir={root}/slurmd-%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=10
MinJobAge=60
MessageTimeout=20
JobAcctGatherType=jobacct_gather/linux
JobCompType=jobcomp/filetxt
JobCompLoc={root}/acct/jobcomp.log
{_accounting(site)}
{nodes}
{partitions}
"""


def _accounting(site: Site) -> str:
    if not site.accounting:
        return "AccountingStorageType=accounting_storage/none"
    return f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={site.address}
AccountingStoragePort={site.database_daemon_port}
AccountingStoragePass={site.munge_socket}
AccountingStorageEnforce=associations,limits"""


#: For a node that holds its jobs to their memory; needs version 1 of cgroups, and its controller `memory`.
CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainRAMSpace=yes
"""


def memory_conf(conf: str) -> str:
    """Return the slurm.conf of a node that holds its jobs to their memory."""
    return conf.replace("TaskPlugin=task/none", "TaskPlugin=task/cgroup")


def slurmdbd_conf(site: Site) -> str:
    """Return slurmdbd.conf. It holds the database's password: mode 0600."""
    root = site.root
    return f"""\
AuthType=auth/munge
AuthInfo=socket={site.munge_socket}
CommunicationParameters=NoInAddrAny
DbdHost={site.hostname}
DbdAddr={site.address}
DbdPort={site.database_daemon_port}
SlurmUser=root
PidFile={root}/run/slurmdbd.pid
LogFile={root}/log/slurmdbd.log
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={site.database_port}
StorageUser=slurm
StoragePass={site.database_password}
StorageLoc=slurm_acct
"""


def mariadb_conf(site: Site) -> str:
    """Return the database server's option file: loopback only, little memory, no durability.

    Of a `tmpdir` that several share, each removes the others' files when it starts.
    """
    home = site.root / "mariadb"
    return f"""\
[mariadbd]
datadir={home}/data
tmpdir={home}
socket={home}/socket
pid-file={home}/pid
bind-address=127.0.0.1
port={site.database_port}
skip-name-resolve
innodb_buffer_pool_size=64M
innodb_log_file_size=16M
innodb_flush_log_at_trx_commit=0
innodb_lock_wait_timeout=900
performance_schema=OFF
max_connections=64
"""
