"""What every scheduler of the sandbox offers, in FirecREST's own models.

Field names, optionality and defaults are those of ``JobDescriptionModel`` and its neighbours in the OpenAPI document
of FirecREST 2.5.7. Rows are plain dictionaries in the shape of ``JobModel``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from pydantic_core import PydanticSerializationError

from hpcbridge_sandbox.errors import ApiError, UnhandledError

if TYPE_CHECKING:
    from hpcbridge_sandbox.cluster import User

DEFAULT_ENV = {"F7T_version": "v2.0.0"}
"""What the server exports when a submit names no ``env``."""

WINDOWS: Mapping[str, int] = {"1h": 3600, "8h": 28800, "24h": 86400, "3d": 259200, "7d": 604800}
"""``time_window`` -> seconds a listing looks back for ended jobs (FirecREST 2.5.7)."""

LISTING_LIMIT = 5 * 1024 * 1024
"""Bytes of one command's output that the server reads before it gives up."""

ACCOUNTING_ROW_BYTES = 318
"""Bytes of ``sacct`` output per job, job line and batch step together (measured on a real server)."""

SCHEDULER_ERROR = "Error executing Slurm command."
"""The message that wraps every failed command of a listing, a by-id read or an account look-up."""


class JobsTimeWindow(StrEnum):
    """``time_window``: how far a listing looks back for ended jobs."""

    LAST_HOUR = "1h"
    LAST_8_HOURS = "8h"
    LAST_24_HOURS = "24h"
    LAST_3_DAYS = "3d"
    LAST_7_DAYS = "7d"


class JobSubmission(BaseModel):
    """The ``job`` of a submit's body (``JobDescriptionModel``)."""

    model_config = ConfigDict(populate_by_name=True)

    name: str | None = None
    account: str | None = None
    reservation: str | None = None
    partition: str | None = None
    working_directory: str = Field(
        validation_alias=AliasChoices("workingDirectory", "working_directory"), description="Job working directory"
    )
    standard_input: str | None = Field(default=None, validation_alias=AliasChoices("standardInput", "standard_input"))
    standard_output: str | None = Field(
        default=None, validation_alias=AliasChoices("standardOutput", "standard_output")
    )
    standard_error: str | None = Field(default=None, validation_alias=AliasChoices("standardError", "standard_error"))
    env: dict[str, str] | list[str] = Field(default_factory=lambda: dict(DEFAULT_ENV))
    constraints: str | None = None
    script: str = ""
    script_path: str = Field(default="", validation_alias=AliasChoices("scriptPath", "script_path"))


class Scheduler(Protocol):
    """A scheduler as the routers see it. Its methods raise `ApiError` in the real server's words."""

    kind: str
    version: str

    async def start(self) -> None:
        """Bring the scheduler up; return when it takes jobs."""

    async def stop(self) -> None:
        """End the scheduler and everything it runs."""

    async def submit(self, user: User, request: JobSubmission) -> str:
        """Queue a job and return its id."""

    async def jobs(
        self,
        user: User,
        *,
        ids: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        all_users: bool = False,
        account: str | None = None,
        window: str | None = None,
    ) -> list[dict[str, Any]]:
        """Rows of the given ids (whoever owns them), or the listing. `window` is a key of `WINDOWS`."""

    async def listing(
        self,
        user: User,
        *,
        names: Sequence[str] | None = None,
        all_users: bool = False,
        account: str | None = None,
        window: str | None = None,
    ) -> bytes:
        """Return the listing as the JSON body of the answer; cheap for many jobs."""

    async def metadata(self, user: User, job_id: str) -> list[dict[str, Any]] | None:
        """Script and log paths of a job, or None when the controller does not know it."""

    async def cancel(self, user: User, job_id: str) -> None:
        """Cancel a job."""

    async def attach(self, user: User, job_id: str, command: str) -> None:
        """Run a command inside a job's allocation; its output is dropped."""

    async def nodes(self, user: User) -> list[dict[str, Any]]:
        """Rows in the shape of ``NodeModel``."""

    async def partitions(self, user: User, *, show_hidden: bool) -> list[dict[str, Any]]:
        """Rows in the shape of ``PartitionModel``."""

    async def reservations(self, user: User) -> list[dict[str, Any]]:
        """Rows in the shape of ``ReservationModel``."""

    async def reserve(self, name: str, start: float, duration: float) -> None:
        """Make a reservation; `start` is Unix time, `duration` seconds."""

    async def accounts(self, user: User) -> list[dict[str, Any]]:
        """The user's accounts: ``{"name": str, "default": bool}``."""


def command_error(exit_status: int, stderr: str) -> str:
    """Return the server's words for a Slurm command that failed."""
    return f"Unexpected Slurm command response. exit_status:{exit_status} std_err:{stderr}"


def refused(exit_status: int, stderr: str) -> ApiError:
    """Return the error of a submit, cancel or attach whose command failed: 500, or 403 over an account's limit."""
    if "violates accounting/QOS policy" in stderr:
        words = f"Job submission rejected: accounting/QOS policy limit exceeded. {stderr.strip()}"
        return ApiError(403, words)
    return ApiError(500, command_error(exit_status, stderr))


def wrapped(cause: str | None) -> ApiError:
    """Return the error of a read whose command failed: 500 with the cause in ``causedBy``."""
    return ApiError(500, SCHEDULER_ERROR, caused_by=[cause] if cause else None)


def check_encodable(job: JobSubmission) -> None:
    """Raise what a submit with half a surrogate pair ends in: JSON carries it, the connection's UTF-8 does not."""
    try:
        job.model_dump_json()
    except PydanticSerializationError as error:
        raise UnhandledError(f"('{error}',)") from error


def no_script() -> ApiError:
    """Return what a submit without any script ends in: ``sbatch`` waits for its input until the SSH limit of 5 s."""
    return ApiError(408, "Command execution timeout limit exceeded.")


def listing_body(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return the JSON body of rows."""
    return json.dumps({"jobs": list(rows)}, separators=(",", ":"), ensure_ascii=False).encode()
