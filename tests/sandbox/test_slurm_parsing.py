"""Output of Slurm's commands -> rows, on strings taken from a real Slurm 22.05."""

import pytest

from hpcbridge_sandbox.cluster import User
from hpcbridge_sandbox.scheduling.base import JobSubmission
from hpcbridge_sandbox.scheduling.slurm import parsing
from hpcbridge_sandbox.scheduling.slurm.config import Ports, account_commands, slurm_conf
from hpcbridge_sandbox.scheduling.slurm.scheduler import sbatch_options, without_directives

DONE = (
    "112|1|cluster|0:0|users|staff|rec|localhost|normal|4294901651|CANCELLED by 2001|None|17|1795166101|1795166101|"
    "1795166118|00:00:00|5|alice|/home/alice\n"
    "112.batch|1|cluster|0:15|||batch|localhost|||CANCELLED||17|1795166101|1795166101|1795166118|00:00:00|||\n"
)
ARRAY = (
    "144_0|1|cluster|0:0|users|staff|arrmix|localhost|normal|4294901624|RUNNING|None|1|1795166272|1795166273|Unknown|"
    "00:00:00|60|alice|/home/alice\n"
    "144_[2-4%2]|0|cluster|0:0|users|staff|arrmix|None assigned|normal|4294901624|PENDING|JobArrayTaskLimit|0|"
    "1795166272|Unknown|Unknown|00:00:00|60|alice|/home/alice\n"
)
QUEUE = (
    "144|1|cluster||users|staff|arrmix||normal|4294901624|PENDING|JobArrayTaskLimit|0:00|1795166272|N/A|N/A||1:00:00|"
    "alice|/home/alice\n"
    "145|1|cluster||users|staff|arrmix|localhost|normal|4294901624|RUNNING|None|0:01|1795166272|1795166273|1795169873||"
    "1:00:00|alice|/home/alice\n"
)


def test_a_row_of_accounting_and_its_step():
    (row,) = parsing.job_rows(DONE, limit_in_minutes=True)
    assert row == {
        "jobId": "112",
        "name": "rec",
        "status": {"state": "CANCELLED by 2001", "stateReason": "None", "exitCode": 0, "interruptSignal": 0},
        "tasks": [
            {
                "id": "112.batch",
                "name": "batch",
                "status": {"state": "CANCELLED", "stateReason": None, "exitCode": 0, "interruptSignal": 15},
                "time": {"elapsed": 17, "start": 1795166101, "end": 1795166118, "suspended": 0, "limit": None},
            }
        ],
        "time": {"elapsed": 17, "start": 1795166101, "end": 1795166118, "suspended": 0, "limit": 300},
        "account": "staff",
        "allocationNodes": 1,
        "cluster": "cluster",
        "group": "users",
        "nodes": "localhost",
        "partition": "normal",
        "killRequestUser": None,
        "user": "alice",
        "workingDirectory": "/home/alice",
        "priority": 4294901651,
    }


def test_accounting_and_queue_are_merged_as_the_server_merges_them():
    rows = parsing.merge(
        parsing.job_rows(ARRAY, limit_in_minutes=True), parsing.job_rows(QUEUE, limit_in_minutes=False)
    )
    assert [row["jobId"] for row in rows] == ["144_0", "144_[2-4%2]", "144", "145"]
    waiting = rows[2]
    assert waiting["status"] == {
        "state": "PENDING", "stateReason": "JobArrayTaskLimit", "exitCode": None, "interruptSignal": None,
    }  # fmt: skip
    assert waiting["time"] == {"elapsed": 0, "start": None, "end": None, "suspended": None, "limit": 3600}
    assert rows[1]["nodes"] == "None assigned"
    pending = parsing.merge([{"jobId": "1", "status": {"state": "PENDING"}, "from": "accounting"}],
                            [{"jobId": "1", "status": {"state": "PENDING"}, "from": "queue"}])  # fmt: skip
    assert pending[0]["from"] == "queue"
    running = parsing.merge([{"jobId": "1", "status": {"state": "PENDING"}, "from": "accounting"}],
                            [{"jobId": "1", "status": {"state": "RUNNING"}, "from": "queue"}])  # fmt: skip
    assert running[0]["from"] == "accounting"


def test_a_bar_in_a_name_is_noticed():
    with pytest.raises(parsing.BarInName):
        parsing.job_rows(DONE.replace("|rec|", "|a|b|"), limit_in_minutes=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("86", 86), ("5:00", 300), ("1:00:00", 3600), ("1-00:00:00", 86400), ("UNLIMITED", None), ("", None)],
)
def test_clocks(text, seconds):
    assert parsing.seconds(text) == seconds


def test_log_paths_may_hold_spaces():
    line = (
        "JobId=120 ArrayJobId=120 ArrayTaskId=2 JobName=a b WorkDir=/home/al ice StdErr=/home/al ice/e StdIn=/dev/null "
        "StdOut=/home/al ice/o Power= MailUser=\nJobId=121 StdErr=/x StdIn=/y StdOut=/z Power=\n"
    )
    assert parsing.log_paths(line) == {
        "standardInput": "/dev/null", "standardOutput": "/home/al ice/o", "standardError": "/home/al ice/e",
    }  # fmt: skip
    assert parsing.log_paths("") is None


def test_partitions_reservations_and_nodes():
    text = "PartitionName=normal Hidden=NO State=UP TotalCPUs=64 TotalNodes=1 X=\nPartitionName=h Hidden=YES State=UP TotalCPUs=1 TotalNodes=1\n"  # noqa: E501
    assert parsing.partition_rows(text, show_hidden=False) == [
        {"name": "normal", "cpus": 64, "totalNodes": 1, "partition": "UP"}
    ]
    assert len(parsing.partition_rows(text, show_hidden=True)) == 2
    assert parsing.reservation_rows("No reservations in the system\n") == []
    text = (
        "ReservationName=res1 StartTime=1795166966 EndTime=1795167566 Duration=00:10:00 Nodes=localhost NodeCnt=1 "
        "Features=(null) PartitionName=(null) State=ACTIVE Watts=n/a\n"
    )
    assert parsing.reservation_rows(text) == [
        {"name": "res1", "nodeList": "localhost", "startTime": 1795166966, "endTime": 1795167566, "features": None,
         "state": "active"}
    ]  # fmt: skip
    line = "64:1:1|64|0.65|21723|f7t,mc|localhost|127.0.0.1|vm|idle|{}|1|22.05.8|16000|0/64/0/64\n"
    (node,) = parsing.node_rows(line.format("normal") + line.format("xfer"))
    assert node == {
        "address": "127.0.0.1", "allocCpus": 0, "allocMemory": 16000, "cores": 64, "cpuLoad": 0.65, "cpus": 64,
        "features": "f7t,mc", "freeMemory": 21723, "hostname": "vm", "idleCpus": 64, "name": "localhost",
        "partitions": ["normal", "xfer"], "sockets": 64, "state": ["IDLE"], "threads": 64, "weight": 1,
    }  # fmt: skip


def test_the_calls_fields_become_options():
    job = JobSubmission(workingDirectory="/w", env={"A": "b,c"}, name="n", constraints="mc")
    assert sbatch_options(job, rest=False) == ["--export=ALL,A=b,c", "--chdir=/w", "--job-name=n", "--constraint=mc"]
    assert sbatch_options(JobSubmission(workingDirectory="/w", env={}), rest=True) == [
        "--export=NONE", "--chdir=/w", "--job-name=allocation",
    ]  # fmt: skip
    assert without_directives("#!/bin/sh\n#SBATCH -J x\ntrue\n") == "#!/bin/sh\n:\n#SBATCH -J x\ntrue\n"


def test_configuration_names_ports_users_and_accounts():
    text = slurm_conf("node1", Ports(1, 2, 3))
    for line in ("SlurmctldHost=node1(127.0.0.1)", "SlurmctldPort=1", "SlurmdPort=2", "AccountingStoragePort=3"):
        assert line in text.splitlines()
    users = [User("alice", 2001, 100, "/home/alice", "staff"), User("bob", 2002, 100, "/home/bob", "staff")]
    commands = account_commands(users).splitlines()
    assert commands[2] == "add user alice,bob account=limited,proj1,staff cluster=cluster defaultaccount=staff"
    assert "modify account limited cluster=cluster set MaxSubmitJobs=1" in commands
