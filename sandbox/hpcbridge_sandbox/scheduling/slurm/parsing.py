"""Output of ``sacct``, ``squeue``, ``scontrol`` and ``sinfo`` -> rows of the REST interface; no I/O.

Formats and merging are those of FirecREST 2.5 in SSH mode, read in its answers and its published code.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]

SACCT_FIELDS = (
    "JobID,AllocNodes,Cluster,ExitCode,Group,Account,JobName,NodeList,Partition,Priority,State,Reason,ElapsedRaw,"
    "Submit,Start,End,Suspended,TimelimitRaw,User,WorkDir"
)

SQUEUE_FORMAT = (
    "JobID:|,NumNodes:|,Cluster:||,GroupName:|,Account:|,Name:|,NodeList:|,Partition:|,PriorityLong:|,State:|,Reason:|,"
    "TimeUsed:|,SubmitTime:|,StartTime:|,EndTime:||,TimeLimit:|,UserName:|,WorkDir:"
)
"""Lines up with `SACCT_FIELDS`: exit code and suspension are empty columns."""

SINFO_FORMAT = "%z|%c|%O|%e|%f|%N|%o|%n|%T|%R|%w|%v|%m|%C"

_COLUMNS = 20


class BarInName(ValueError):
    """A row has too many columns: a job's name holds a ``|``. The real server answers 500 from then on."""


def seconds(text: str) -> int | None:
    """Return the seconds of ``86``, ``5:00``, ``1:00:00`` or ``1-00:00:00``; None for ``UNLIMITED`` and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text)
    if not match:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + rest


def _stamp(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _exit(text: str) -> tuple[int | None, int | None]:
    code, _, signal = text.partition(":")
    return (int(code), int(signal)) if code and signal else (None, None)


def _status(fields: list[str], reason: str | None) -> Row:
    code, signal = _exit(fields[3])
    return {"state": fields[10], "stateReason": reason, "exitCode": code, "interruptSignal": signal}


def _time(fields: list[str], limit: int | None) -> Row:
    return {
        "elapsed": seconds(fields[12]),
        "start": _stamp(fields[14]),
        "end": _stamp(fields[15]),
        "suspended": seconds(fields[16]),
        "limit": limit,
    }


def job_rows(output: str, *, limit_in_minutes: bool) -> list[Row]:
    """Return a row per job; the lines of its steps become its ``tasks``.

    `limit_in_minutes`: ``sacct``'s TimelimitRaw counts minutes, ``squeue``'s TimeLimit is a clock. Raises `BarInName`.
    """
    rows: dict[str, Row] = {}
    for line in output.split("\n"):
        fields = line.split("|")
        if len(fields) > _COLUMNS:
            raise BarInName(line)
        if len(fields) < _COLUMNS:
            continue
        job_id, dot, _ = fields[0].partition(".")
        if dot:
            if job_id in rows:
                task = {
                    "id": fields[0],
                    "name": fields[6],
                    "status": _status(fields, None),
                    "time": _time(fields, None),
                }
                rows[job_id]["tasks"].append(task)
            continue
        limit = seconds(fields[17])
        if limit is not None and limit_in_minutes:
            limit *= 60
        rows[job_id] = {
            "jobId": job_id,
            "name": fields[6],
            "status": _status(fields, fields[11]),
            "tasks": [],
            "time": _time(fields, limit),
            "account": fields[5],
            "allocationNodes": int(fields[1] or 0),
            "cluster": fields[2],
            "group": fields[4],
            "nodes": fields[7],
            "partition": fields[8],
            "killRequestUser": None,
            "user": fields[18],
            "workingDirectory": fields[19],
            "priority": _stamp(fields[9]),
        }
    return list(rows.values())


def merge(accounting: Iterable[Row], queue: Iterable[Row]) -> list[Row]:
    """Return the rows of accounting, then the queue's where accounting has none or where the job waits."""
    rows: dict[str, Row] = {}
    for row in (*accounting, *queue):
        if row["jobId"] not in rows or row["status"]["state"] == "PENDING":
            rows[row["jobId"]] = row
    return list(rows.values())


def log_paths(output: str) -> Row | None:
    """Return standard input, output and error of the first job of ``scontrol -o show job``."""
    line = output.split("\n", 1)[0]
    match = re.search(r" StdErr=(?P<err>.*?) StdIn=(?P<in>.*?) StdOut=(?P<out>.*?) Power=", line)
    if not match:
        return None
    return {"standardInput": match["in"], "standardOutput": match["out"], "standardError": match["err"]}


def _attributes(line: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S*)", line))


def partition_rows(output: str, *, show_hidden: bool) -> list[Row]:
    """Return the partitions of ``scontrol -a -o show partitions``."""
    found = [_attributes(line) for line in output.splitlines() if line.startswith("PartitionName=")]
    return [
        {
            "name": values["PartitionName"],
            "cpus": int(values["TotalCPUs"]),
            "totalNodes": int(values["TotalNodes"]),
            "partition": values["State"],
        }
        for values in found
        if show_hidden or values["Hidden"].lower() == "no"
    ]


def reservation_rows(output: str) -> list[Row]:
    """Return the reservations of ``SLURM_TIME_FORMAT=%s scontrol -o show reservations``."""
    now = time.time()
    rows = []
    for line in output.splitlines():
        values = _attributes(line)
        if "ReservationName" not in values:
            continue
        start, end = int(values["StartTime"]), int(values["EndTime"])
        features = values.get("Features", "(null)")
        rows.append(
            {
                "name": values["ReservationName"],
                "nodeList": values["Nodes"],
                "startTime": start,
                "endTime": end,
                "features": None if features == "(null)" else features,
                "state": values.get("State", "active" if start <= now < end else "inactive").lower(),
            }
        )
    return rows


_NODE_STATES: Mapping[str, str] = {
    "idle": "IDLE",
    "allocated": "ALLOCATED",
    "mixed": "MIXED",
    "down": "DOWN",
    "drained": "DRAIN",
    "draining": "DRAIN",
    "completing": "COMPLETING",
    "reserved": "RESERVED",
}


def node_rows(output: str) -> list[Row]:
    """Return the nodes of ``sinfo -a -N`` in `SINFO_FORMAT`, which has one line per node and partition.

    As on the recorded server, sockets, cores and threads are all the first number of ``64:1:1``, and ``allocMemory`` is
    the node's memory.
    """
    rows: dict[str, Row] = {}
    for line in output.splitlines():
        fields = line.split("|")
        if len(fields) != len(SINFO_FORMAT.split("|")):
            continue
        if fields[5] in rows:
            rows[fields[5]]["partitions"].append(fields[9])
            continue
        sockets = int(fields[0].split(":")[0])
        allocated, idle = (int(part) for part in fields[13].split("/")[:2])
        state = fields[8].rstrip("*+~#%$@").lower()
        rows[fields[5]] = {
            "sockets": sockets,
            "cores": sockets,
            "threads": sockets,
            "cpus": int(fields[1]),
            "cpuLoad": float(fields[2]) if fields[2] != "N/A" else None,
            "freeMemory": _stamp(fields[3]),
            "features": fields[4],
            "name": fields[5],
            "address": fields[6],
            "hostname": fields[7],
            "state": [_NODE_STATES.get(state, "UNKNOWN")],
            "partitions": [fields[9]],
            "weight": int(fields[10]),
            "allocMemory": int(fields[12]),
            "allocCpus": allocated,
            "idleCpus": idle,
        }
    return list(rows.values())
