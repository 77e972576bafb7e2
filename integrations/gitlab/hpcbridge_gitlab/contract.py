"""What the runner hands over: the environment of each call, and the file with the whole CI job.

Variables (`CUSTOM_ENV_*`) are the job's wishes: a .gitlab-ci.yml can set any of them, CI_PROJECT_PATH included. What
decides about access comes from fields of JOB_RESPONSE_FILE that GitLab itself fills in, or from a signed token (see
identity).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hpcbridge_gitlab.verdicts import Cause, Stop

PREFIX = "CUSTOM_ENV_"

HOST_STAGES = frozenset(
    {
        "get_sources",
        "clear_worktree",
        "restore_cache",
        "download_artifacts",
        "archive_cache",
        "archive_cache_on_failure",
        "upload_artifacts_on_success",
        "upload_artifacts_on_failure",
        "cleanup_file_variables",
    }
)
"""Stages that need git, a network or the gitlab-runner program; they run on the runner's host."""

BEFORE_SOURCES = "prepare_script"
"""It runs in the allocation, and shows its node's name, before there are sources."""


def is_main(stage: str) -> bool:
    """Whether it is the user's own script (`step_script`, called build_script before, or one of several steps)."""
    return stage == "build_script" or stage.startswith("step_")


@dataclass(frozen=True, slots=True)
class CiJob:
    """One CI job. `timeout` in seconds; `host` is GitLab's; `variables` are wishes, the other fields are facts.

    `protected` (whether GitLab protects the ref) and `user` (who started the job) are known from an ID token only.
    """

    id: int
    name: str
    host: str
    project_id: int
    project_path: str
    ref: str
    ref_type: str
    timeout: int
    services: tuple[str, ...]
    image: str
    hooks: tuple[str, ...]
    variables: Mapping[str, str] = field(repr=False)
    protected: bool = False
    user: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """What rules ask for, to be kept with the attempt: a token lives no longer than its job's time-out."""
        return {name: getattr(self, name) for name in ("project_path", "ref", "ref_type", "protected", "user")}

    @property
    def label(self) -> str:
        """A name for directories: GitLab's host and the job's id."""
        return f"{re.sub(r'[^A-Za-z0-9.-]', '-', self.host)}-{self.id}"

    def wish(self, name: str) -> str | None:
        """A variable's value; None when it is unset or empty."""
        return self.variables.get(name) or None

    def wants(self, name: str) -> bool:
        """Whether a variable says yes."""
        return (self.wish(name) or "").lower() in ("1", "true", "yes", "on")


def read_job(path: str | Path | None = None, environment: Mapping[str, str] = os.environ) -> CiJob:
    """The CI job of this call. Raises Stop (CONFIGURATION) when the runner is too old or the file is not what it says.

    No value of the file goes into a message: it holds the job's token.
    """
    where = path or environment.get("JOB_RESPONSE_FILE")
    if not where:
        raise Stop(
            Cause.CONFIGURATION,
            "the runner names no JOB_RESPONSE_FILE",
            hint="This is called by gitlab-runner 14.1 or newer; `hpcbridge-gitlab doctor` prints its config.toml",
        )
    try:
        data = json.loads(Path(where).read_bytes())
        return _job(data, environment)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Stop(Cause.CONFIGURATION, f"cannot use JOB_RESPONSE_FILE: {type(error).__name__}") from None


def _job(data: Mapping[str, Any], environment: Mapping[str, str]) -> CiJob:
    info, git = data["job_info"], data["git_info"]
    url = urlsplit(git["repo_url"])
    variables = {item["key"]: str(item.get("value") or "") for item in data.get("variables") or ()}
    # What the runner has expanded wins: values in the file may refer to each other.
    variables |= {name[len(PREFIX) :]: text for name, text in environment.items() if name.startswith(PREFIX)}
    return CiJob(
        id=int(data["id"]),
        name=str(info.get("name") or ""),
        host=url.hostname or "gitlab",
        project_id=int(info["project_id"]),
        project_path=url.path.strip("/").removesuffix(".git"),
        ref=str(git.get("ref") or ""),
        ref_type=str(git.get("ref_type") or ""),
        timeout=int((data.get("runner_info") or {}).get("timeout") or 3600),
        services=tuple(str(item.get("name") or "?") for item in data.get("services") or ()),
        image=str((data.get("image") or {}).get("name") or ""),
        hooks=tuple(str(item.get("name") or "?") for item in data.get("hooks") or ()),
        variables=variables,
    )
