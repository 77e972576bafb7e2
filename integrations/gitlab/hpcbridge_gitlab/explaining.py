"""`explain`: what the rules make of a CI job, and what became of one that was here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpcbridge_gitlab import wishes
from hpcbridge_gitlab.configuring import identified
from hpcbridge_gitlab.contract import PREFIX, read_job
from hpcbridge_gitlab.records import Records
from hpcbridge_gitlab.verdicts import Cause, Stop

if TYPE_CHECKING:
    from hpcbridge_gitlab.settings import Settings


async def explain(settings: Settings, job_id: str | None, response: str | None, variables: Sequence[str]) -> int:
    """Print it. With a job response what would happen, else what has happened to job `job_id`. Raises Stop."""
    if job_id is None and response is not None:
        return await _judge(settings, response, variables)
    attempts = [item for item in Records(settings.state).all() if job_id is None or str(item.ci_job) == job_id]
    if not attempts:
        raise Stop(
            Cause.CONFIGURATION, f"no record of CI job {job_id}" if job_id else "no CI job is on record", hint=""
        )
    for item in attempts:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.queued)) if item.queued else "never"
        _show(f"CI job {item.ci_job}, attempt {item.number}", item.project)
        _show("  submitted", began)
        _show("  job", f"{item.job_id or 'unknown'} ({item.name or 'no name'}) on {item.system}")
        _show("  directory there", item.home)
        _show("  directory here", item.slot or "none")
        _show("  node", item.node or "not started")
        _show("  stages handed over", str(item.seq))
        _show("  state", "over" if item.stopped else f"in use; last sign {item.age:.0f} s ago")
    return 0


async def _judge(settings: Settings, response: str, variables: Sequence[str]) -> int:
    environment = {PREFIX + name: value for name, _, value in (item.partition("=") for item in variables)}
    job = await identified(settings, read_job(response, environment))
    _show("project", f"{job.project_path} (id {job.project_id}), {job.ref_type or 'ref'} {job.ref}")
    if settings.id_token is not None:
        _show(
            "signed", f"{'a protected' if job.protected else 'an unprotected'} ref, started by {job.user or 'nobody'}"
        )
    number, rule = settings.rule_for(job)
    _show("rule", f"{number} of {settings.path}")
    _show("site", rule.site or "the environment's, or the default one")
    _show("system", rule.system or "the site's default")
    wanted = wishes.of(job, rule)
    minutes, source = wishes.time_limit(wanted, rule, job.timeout)
    _show("--time", f"{minutes} min, from {source}")
    for option, value in sorted(wanted.options.items()):
        if option != "time":
            _show(f"--{option}", f"{value or 'set'}, from {wanted.sources[option]}")
    for option in rule.options:
        _show("always", option)
    _show("script", "once per task (USE_MPI)" if wanted.wide else "once, on the first node")
    if job.services:
        raise Stop(Cause.SERVICES, f"`services:` ({', '.join(job.services)}) cannot be run on an HPC node")
    return 0


def _show(what: str, value: str) -> None:
    print(f"{what + ':':24}{value}")  # noqa: T201
