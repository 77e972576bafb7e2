"""The configuration of a Slurm on one machine without systemd or cgroups; no I/O.

Known to work with Debian's slurm-wlm 22.05 as root (``backend/slurm.md``). Everything listens on loopback, keeps its
files in a directory of its own, and runs inside the cluster's namespaces as root.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hpcbridge_sandbox.cluster import User

HOME = "/var/lib/cluster/slurm"
"""Where the cluster sees Slurm's files (kept with the sandbox's state)."""

CONF = f"{HOME}/etc/slurm.conf"
CLUSTER = "cluster"
NODE = "localhost"
CPUS = 64
MEMORY_MB = 16000
ACCOUNT_LIMITS: Mapping[str, int | None] = {"limited": 1, "proj1": None}
"""Accounts that every user has besides the own one, and their MaxSubmitJobs."""


@dataclass(frozen=True)
class Ports:
    """Loopback ports of the three daemons that have one."""

    slurmctld: int
    slurmd: int
    slurmdbd: int


def slurm_conf(hostname: str, ports: Ports) -> str:
    """Return the text of slurm.conf."""
    return f"""\
ClusterName={CLUSTER}
SlurmctldHost={hostname}(127.0.0.1)
SlurmctldPort={ports.slurmctld}
SlurmdPort={ports.slurmd}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={HOME}/state
SlurmdSpoolDir={HOME}/spool
SlurmctldPidFile={HOME}/run/slurmctld.pid
SlurmdPidFile={HOME}/run/slurmd.pid
SlurmctldLogFile={HOME}/log/slurmctld.log
SlurmdLogFile={HOME}/log/slurmd.log
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=5
PriorityType=priority/basic
MaxJobCount=50000
MinJobAge=300
KillWait=2
SlurmctldTimeout=30
SlurmdTimeout=60
MailProg=/bin/true
EnforcePartLimits=NO
LaunchParameters=use_interactive_step
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports.slurmdbd}
AccountingStorageEnforce=associations,limits,qos
AccountingStoreFlags=job_comment,job_env,job_script
NodeName={NODE} NodeHostname={hostname} NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={MEMORY_MB} Feature=f7t,mc
PartitionName=DEFAULT Nodes={NODE} MaxTime=1-00:00:00 DefaultTime=01:00:00 State=UP
PartitionName=normal Default=YES
PartitionName=debug MaxTime=00:30:00 DefaultTime=00:10:00
PartitionName=xfer
PartitionName=hidden Hidden=YES
"""


def slurmdbd_conf(ports: Ports) -> str:
    """Return the text of slurmdbd.conf; the database is reached by its socket in the cluster's own ``/run``."""
    return f"""\
AuthType=auth/munge
CommunicationParameters=NoInAddrAny
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports.slurmdbd}
SlurmUser=root
PidFile={HOME}/run/slurmdbd.pid
LogFile={HOME}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""


NO_DEFAULT_ACCOUNTS = "UPDATE cluster_assoc_table SET is_def = 0"
"""SQL that makes jobs name their account; ``sacctmgr`` insists that every user have a default."""


def account_commands(users: Iterable[User]) -> str:
    """Return what ``sacctmgr -i`` reads to know the accounts and users; few commands, for each takes half a second."""
    people = list(users)
    names = ",".join(user.name for user in people)
    accounts = sorted({*(user.account for user in people), *ACCOUNT_LIMITS})
    default = people[0].account
    return "\n".join(
        [
            f"add cluster {CLUSTER}",
            f"add account {','.join(accounts)} cluster={CLUSTER}",
            f"add user {names} account={','.join(accounts)} cluster={CLUSTER} defaultaccount={default}",
            *(
                f"modify account {account} cluster={CLUSTER} set MaxSubmitJobs={ACCOUNT_LIMITS[account]}"
                for account in accounts
                if ACCOUNT_LIMITS.get(account) is not None
            ),
            "",
        ]
    )
