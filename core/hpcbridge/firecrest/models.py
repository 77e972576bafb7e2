"""What the REST interface answers, as frozen records; each is parsed from JSON by `from_json`.

Field names follow this library; the names on the wire are those of FirecREST's OpenAPI document (2.5). Parsers take
what they know and keep the rest in `raw`, because servers add fields, and nearly everything is nullable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hpcbridge.credentials.secret import Secret

MAX_OPS_FILE_SIZE = 5 * 1024 * 1024
"""Bytes of one direct upload when the server does not say otherwise (FirecREST's own default)."""

_UNSET_U32 = 0xFFFFFFFE
"""slurmrestd's NO_VAL; anything from here on means "not set"."""

Json = Mapping[str, Any]


def _time(seconds: Any) -> datetime | None:
    """Epoch seconds to an aware datetime; Slurm writes 0 for "not yet"."""
    return datetime.fromtimestamp(seconds, UTC) if isinstance(seconds, int | float) and seconds > 0 else None


def _iso(text: Any) -> datetime | None:
    try:
        parsed = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _code(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < _UNSET_U32 else None


def _duration(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < _UNSET_U32 else None


@dataclass(frozen=True, slots=True)
class Scheduler:
    """The batch system of a cluster: `kind` slurm or pbs, `mode` ssh, hybrid or rest."""

    kind: str
    version: str
    mode: str
    timeout: float = 10.0

    @classmethod
    def from_json(cls, data: Json) -> Scheduler:
        """Parse `scheduler` of `/status/systems`."""
        return cls(
            kind=str(data.get("type") or "slurm"),
            version=str(data.get("version") or ""),
            mode=str(data.get("connectionMode") or "ssh"),
            timeout=float(data.get("timeout") or 10),
        )


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """The last probe of one service behind the API."""

    service: str
    healthy: bool
    message: str | None = None
    path: str | None = None
    checked: datetime | None = None
    latency: float | None = None

    @classmethod
    def from_json(cls, data: Json) -> ServiceHealth:
        """Parse one entry of `servicesHealth`."""
        return cls(
            service=str(data.get("serviceType") or "unknown"),
            healthy=bool(data.get("healthy")),
            message=data.get("message"),
            path=data.get("path"),
            checked=_iso(data.get("lastChecked")),
            latency=data.get("latency"),
        )


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system that the API serves; paths outside of all of them are refused."""

    path: str
    default_work_dir: bool = False
    data_type: str | None = None

    @classmethod
    def from_json(cls, data: Json) -> FileSystem:
        """Parse one entry of `fileSystems`."""
        return cls(str(data["path"]), bool(data.get("defaultWorkDir")), data.get("dataType"))


@dataclass(frozen=True, slots=True)
class SSHTimeouts:
    """Seconds that the server allows its own SSH connection, login and command."""

    connection: float = 5.0
    login: float = 5.0
    command: float = 5.0

    @classmethod
    def from_json(cls, data: Json) -> SSHTimeouts:
        """Parse `ssh.timeout`."""
        return cls(
            float(data.get("connection") or 5), float(data.get("login") or 5), float(data.get("commandExecution") or 5)
        )

    @property
    def total(self) -> float:
        """Seconds after which a command that the server started has certainly ended or been given up."""
        return self.connection + self.login + self.command


@dataclass(frozen=True, slots=True)
class SystemInfo:
    """One cluster, as `/status/systems` describes it.

    `transfer` is the method for large files: "s3", "streamer", "wormhole" or None. `max_ops_file_size` is in bytes;
    `max_part_size` (bytes) is that of S3 multipart uploads.
    """

    name: str
    scheduler: Scheduler
    services: tuple[ServiceHealth, ...] = ()
    file_systems: tuple[FileSystem, ...] = ()
    transfer: str | None = None
    max_ops_file_size: int = MAX_OPS_FILE_SIZE
    max_part_size: int | None = None
    transfer_directives: tuple[str, ...] = ()
    ssh: SSHTimeouts = SSHTimeouts()
    ssh_host: str | None = None
    checked: datetime | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_json(cls, data: Json) -> SystemInfo:
        """Parse one entry of `systems`."""
        operation = data.get("dataOperation") or {}
        transfer = operation.get("data_transfer") or {}
        ssh = data.get("ssh") or {}
        return cls(
            name=str(data["name"]),
            scheduler=Scheduler.from_json(data.get("scheduler") or {}),
            services=tuple(map(ServiceHealth.from_json, _records(data.get("servicesHealth")))),
            file_systems=tuple(map(FileSystem.from_json, _records(data.get("fileSystems")))),
            transfer=transfer.get("serviceType"),
            max_ops_file_size=int(operation.get("max_ops_file_size") or MAX_OPS_FILE_SIZE),
            max_part_size=(transfer.get("multipart") or {}).get("max_part_size"),
            transfer_directives=tuple(operation.get("datatransfer_jobs_directives") or ()),
            ssh=SSHTimeouts.from_json(ssh.get("timeout") or {}),
            ssh_host=ssh.get("host"),
            checked=_iso(data.get("lastHealthCheck")),
            raw=data,
        )

    @property
    def healthy(self) -> bool:
        """Whether every probed service is up (True as long as nothing was probed)."""
        return all(service.healthy for service in self.services)

    @property
    def default_work_dir(self) -> str | None:
        """Path of the file system that holds the users' own directories, where the site names one."""
        return next((fs.path for fs in self.file_systems if fs.default_work_dir), None)

    @property
    def inbound_limit(self) -> int | None:
        """Most bytes that the site's streamer takes in one upload; None where it does not say."""
        transfer = (self.raw.get("dataOperation") or {}).get("data_transfer") or {}
        limit = transfer.get("inboundTransferLimit")
        return limit if isinstance(limit, int) else None

    def file_system_of(self, path: str) -> FileSystem | None:
        """The longest file system that holds `path`, or None when the API would refuse it."""
        inside = [fs for fs in self.file_systems if path == fs.path or path.startswith(fs.path.rstrip("/") + "/")]
        return max(inside, key=lambda fs: len(fs.path), default=None)


def _records(items: Any) -> list[Json]:
    return [item for item in items or () if isinstance(item, Mapping)]


@dataclass(frozen=True, slots=True)
class JobRow:
    """One row of a listing or of a by-id read. Not yet the truth: see `is_placeholder`.

    `state` is the scheduler's own word, raw (`CANCELLED by 2001`). Ids of array rows read `144_0` or `144_[2-4%2]`:
    `array_job_id` is then the part before the underscore, else None. `submitted` is None on servers up to 2.5, which
    do not say. Limits and elapsed are seconds.
    """

    job_id: str
    array_job_id: str | None
    name: str
    state: str
    reason: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    submitted: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    elapsed: int | None = None
    limit: int | None = None
    nodes: str | None = None
    node_count: int | None = None
    partition: str | None = None
    account: str | None = None
    user: str | None = None
    working_directory: str | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_json(cls, data: Json) -> JobRow:
        """Parse one entry of `jobs`."""
        status, time = data.get("status") or {}, data.get("time") or {}
        job_id, state = str(data["jobId"]), status.get("state") or ""
        nodes = data.get("nodes") or None
        return cls(
            job_id=job_id,
            array_job_id=job_id.partition("_")[0] if "_" in job_id else None,
            name=str(data.get("name") or ""),
            state=" ".join(state) if isinstance(state, list) else str(state),
            reason=_reason(status.get("stateReason")),
            exit_code=_code(status.get("exitCode")),
            signal=_code(status.get("interruptSignal")),
            submitted=_time(time.get("submit") or time.get("submission")),
            started=_time(time.get("start")),
            ended=_time(time.get("end")),
            elapsed=_duration(time.get("elapsed")),
            limit=_duration(time.get("limit")),
            nodes=None if nodes == "None assigned" else nodes,
            node_count=_code(data.get("allocationNodes")),
            partition=data.get("partition") or None,
            account=data.get("account") or None,
            user=data.get("user") or None,
            working_directory=data.get("workingDirectory") or None,
            raw=data,
        )

    @property
    def is_placeholder(self) -> bool:
        """Accounting's row of the first seconds: name `allocation`, and neither partition nor working directory."""
        return self.name == "allocation" and not self.partition and not self.working_directory


def _reason(text: Any) -> str | None:
    return str(text) if text and text != "None" else None


@dataclass(frozen=True, slots=True)
class JobMetadata:
    """Script and standard streams of a job, as the controller remembers them."""

    job_id: str
    script: str | None = field(default=None, repr=False)
    standard_input: str | None = None
    standard_output: str | None = None
    standard_error: str | None = None

    @classmethod
    def from_json(cls, data: Json) -> JobMetadata:
        """Parse one entry of `jobs` of the metadata answer."""
        return cls(
            str(data["jobId"]),
            data.get("script") or None,
            data.get("standardInput") or None,
            data.get("standardOutput") or None,
            data.get("standardError") or None,
        )


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One line of `ls`. `kind` is ls's letter: `-` file, `d` directory, `l` link, `b c p s` others; `size` in bytes.

    `modified` has one-second resolution and no time zone on the wire; it is read as UTC.
    """

    name: str
    kind: str
    size: int
    permissions: str
    user: str
    group: str
    modified: datetime | None
    link_target: str | None = None

    @classmethod
    def from_json(cls, data: Json) -> FileEntry:
        """Parse one entry of `output`."""
        size = str(data.get("size") or "0")
        return cls(
            name=str(data["name"]),
            kind=str(data.get("type") or "-"),
            size=int(size) if size.isdigit() else 0,  # devices print "major, minor"
            permissions=str(data.get("permissions") or ""),
            user=str(data.get("user") or ""),
            group=str(data.get("group") or ""),
            modified=_iso(data.get("lastModified")),
            link_target=data.get("linkTarget"),
        )

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory (a link to one is a link)."""
        return self.kind == "d"

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.kind == "-"

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return self.kind == "l"


@dataclass(frozen=True, slots=True)
class FileStat:
    """`stat` of a path; times are epoch seconds, `size` bytes."""

    mode: int
    size: int
    uid: int
    gid: int
    atime: int
    mtime: int
    ctime: int
    ino: int = 0
    dev: int = 0
    nlink: int = 1

    @classmethod
    def from_json(cls, data: Json) -> FileStat:
        """Parse `output` of `ops/stat`."""
        return cls(**{name: int(data.get(name) or 0) for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class FileContent:
    """A slice of a text file, from head or tail; `unit` is "lines" or "bytes"."""

    content: str
    unit: str
    start: int
    end: int

    @classmethod
    def from_json(cls, data: Json) -> FileContent:
        """Parse `output` of `ops/head` and `ops/tail`."""
        return cls(
            str(data.get("content") or ""),
            str(data.get("contentType") or "lines"),
            int(data.get("startPosition") or 0),
            int(data.get("endPosition") or 0),
        )


@dataclass(frozen=True, slots=True)
class TransferJob:
    """The job that the server made for a transfer, and its two log files."""

    job_id: str
    system: str
    working_directory: str
    output_log: str | None
    error_log: str | None

    @classmethod
    def from_json(cls, data: Json) -> TransferJob:
        """Parse `transferJob`."""
        logs = data.get("logs") or {}
        return cls(
            str(data["jobId"]),
            str(data.get("system") or ""),
            str(data.get("workingDirectory") or ""),
            logs.get("outputLog"),
            logs.get("errorLog"),
        )

    @property
    def logs(self) -> tuple[str, ...]:
        """Paths of the log files the server leaves behind."""
        return tuple(log for log in (self.output_log, self.error_log) if log)


class WithJob:
    """Directives that come with a job of the server's."""

    __slots__ = ()
    job: TransferJob

    @property
    def job_id(self) -> str:
        """Id of the server's job."""
        return self.job.job_id

    @property
    def logs(self) -> tuple[str, ...]:
        """Paths of the job's logs."""
        return self.job.logs


@dataclass(frozen=True, slots=True)
class S3Upload(WithJob):
    """Directives of a multipart upload. Presigned URLs carry their own authority, so they are secrets: use `.reveal()`.

    `part_size` is the largest size of a part in bytes; part n (from 1) goes to `part_urls[n - 1]`.
    """

    part_urls: tuple[Secret, ...]
    complete_url: Secret
    part_size: int
    job: TransferJob

    @classmethod
    def from_json(cls, data: Json) -> S3Upload:
        """Parse the answer of `transfer/upload` with method s3."""
        directives = data.get("transferDirectives") or {}
        return cls(
            part_urls=tuple(Secret(url, searchable=False) for url in directives.get("partsUploadUrls") or ()),
            complete_url=Secret(str(directives.get("completeUploadUrl") or ""), searchable=False),
            part_size=int(directives.get("maxPartSize") or 0),
            job=TransferJob.from_json(data["transferJob"]),
        )


@dataclass(frozen=True, slots=True)
class S3Download(WithJob):
    """Directives of a download: the URL answers once the egress job has ended well."""

    url: Secret
    job: TransferJob

    @classmethod
    def from_json(cls, data: Json) -> S3Download:
        """Parse the answer of `transfer/download` with method s3."""
        directives = data.get("transferDirectives") or {}
        url = Secret(str(directives.get("downloadUrl") or ""), searchable=False)
        return cls(url, TransferJob.from_json(data["transferJob"]))


@dataclass(frozen=True, slots=True)
class UserInfo:
    """Who the token is on this system. `accounts` is empty where the server does not say (before 2.6)."""

    name: str
    uid: int | None
    groups: tuple[str, ...]
    accounts: tuple[str, ...] = ()
    default_account: str | None = None

    @classmethod
    def from_json(cls, data: Json) -> UserInfo:
        """Parse `/status/{system}/userinfo`."""
        user, accounts = data.get("user") or {}, _records(data.get("accounts"))
        uid = str(user.get("id") or "")
        return cls(
            name=str(user.get("name") or ""),
            uid=int(uid) if uid.isdigit() else None,
            groups=tuple(str(group.get("name")) for group in _records(data.get("groups"))),
            accounts=tuple(str(account["name"]) for account in accounts),
            default_account=next((str(account["name"]) for account in accounts if account.get("default")), None),
        )
