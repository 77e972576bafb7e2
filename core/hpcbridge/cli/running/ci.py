"""Which CI service this is, and what tells one of its jobs from every other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Service(StrEnum):
    """A CI service whose log and files we know how to write; NONE is a terminal, a script, or another service."""

    GITHUB = "github"
    GITLAB = "gitlab"
    JENKINS = "jenkins"
    NONE = "none"


_SIGNS = {Service.GITHUB: "GITHUB_ACTIONS", Service.GITLAB: "GITLAB_CI", Service.JENKINS: "JENKINS_URL"}
"""The variable by which each one is recognised."""

_IDENTITY = {
    Service.GITHUB: (
        "GITHUB_SERVER_URL",
        "GITHUB_REPOSITORY",
        "GITHUB_RUN_ID",
        "GITHUB_RUN_ATTEMPT",
        "GITHUB_JOB",
        "GITHUB_ACTION",
        "RUNNER_TRACKING_ID",  # the one thing in the environment that differs between the jobs of a matrix
    ),
    Service.GITLAB: ("CI_SERVER_URL", "CI_JOB_ID"),
    Service.JENKINS: ("JENKINS_URL", "BUILD_TAG", "STAGE_NAME", "NODE_NAME", "EXECUTOR_NUMBER", "WORKSPACE"),
}
"""What names one execution of one job: a retry, another attempt and another job of the pipeline differ in it."""

_LABEL = {Service.GITHUB: "GITHUB_JOB", Service.GITLAB: "CI_JOB_NAME", Service.JENKINS: "JOB_BASE_NAME"}


@dataclass(frozen=True)
class Ci:
    """Where this process runs.

    Attributes:
        service: whose conventions hold.
        identity: what a second process has in common with this one if it repeats the same work.
        label: the CI job's own name, None where there is none.
    """

    service: Service
    identity: tuple[str, ...]
    label: str | None = None

    @property
    def is_service(self) -> bool:
        """Whether nobody sits in front of it, and its files are gone afterwards."""
        return self.service is not Service.NONE


def recognise(chosen: str | None = None, environ: Mapping[str, str] | None = None) -> Ci:
    """What the environment says, or the service `chosen` by name."""
    environ = os.environ if environ is None else environ
    found = next((service for service, sign in _SIGNS.items() if environ.get(sign)), Service.NONE)
    service = Service(chosen) if chosen else found
    values = [environ.get(name, "") for name in _IDENTITY.get(service, ())]
    # Without its ids (or outside of any service) a run is repeated where it was begun: in the same directory.
    identity = (service, *values) if any(values) else (service, os.uname().nodename, str(os.getuid()), os.getcwd())  # noqa: PTH109
    return Ci(service, identity, environ.get(_LABEL.get(service, ""), "") or None)
