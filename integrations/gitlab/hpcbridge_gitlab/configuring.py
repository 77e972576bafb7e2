"""`config`: begins an attempt and tells the runner where builds are. Runs again for each attempt of prepare."""

from __future__ import annotations

import json
import secrets
import sys
from typing import TYPE_CHECKING, Any

import hpcbridge
from hpcbridge_gitlab.patience import outlast
from hpcbridge_gitlab.records import Records, write_json
from hpcbridge_gitlab.site import opened

if TYPE_CHECKING:
    from hpcbridge_gitlab.contract import CiJob
    from hpcbridge_gitlab.settings import Rule, Settings

FOLDER = "hpcbridge-ci"


async def identified(settings: Settings, job: CiJob) -> CiJob:
    """The job with the facts of its ID token, where the administrator asks for one. Raises Stop."""
    if settings.id_token is None:
        return job
    from hpcbridge_gitlab.identity import verified

    return await verified(settings.id_token, job)


async def config(settings: Settings, job: CiJob) -> int:
    """Print the runner's JSON."""
    records = Records(settings.state)
    job = await identified(settings, job)
    _, rule = settings.rule_for(job)
    attempt = records.begin(job)
    attempt.facts = job.facts
    where = await _place(settings, rule)
    attempt.site, attempt.system, attempt.user = where["site"], where["system"], where["user"]
    # Never used before: nothing of another job is in it, and as text it stands for nothing else (see hosting).
    attempt.home = f"{where['root']}/{job.id}-{attempt.number}-{secrets.token_hex(4)}"
    attempt.save()
    print(json.dumps(_answer(attempt.home, attempt.system)), file=sys.stdout)  # noqa: T201
    return 0


def _answer(home: str, system: str) -> dict[str, Any]:
    return {
        "driver": {"name": "hpcbridge", "version": hpcbridge.__version__},
        "hostname": system,
        "builds_dir": f"{home}/builds",
        "cache_dir": f"{home}/cache",
        "builds_dir_is_shared": False,
    }


async def _asked(settings: Settings, rule: Rule) -> dict[str, str]:
    async with opened(settings, rule.site, rule.system) as system:
        name, user = await system.resolve(), await system.user()
        root = rule.root.replace("{user}", user) if rule.root else f"{await system.home()}/{FOLDER}"
    return {"site": rule.site, "system": name, "user": user, "root": root.rstrip("/")}


async def _place(settings: Settings, rule: Rule) -> dict[str, str]:
    """Site, system, user and root directory of a rule; asked for once and kept, as it costs several requests."""
    cache = settings.state / "places.json"
    key = json.dumps([rule.site, rule.system, rule.root])
    try:
        known = json.loads(cache.read_bytes())
        if not isinstance(known, dict):
            known = {}
    except (OSError, ValueError):
        known = {}
    if key not in known or not rule.site:  # an environment may change
        known[key] = await outlast(lambda: _asked(settings, rule), settings.driver.patience)
        write_json(cache, known)
    return dict(known[key])
