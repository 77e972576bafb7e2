"""`run --dry-run`: what would be sent, submitted and fetched. Only looks."""

from __future__ import annotations

from typing import Any

from hpcbridge.cli import output
from hpcbridge.cli.context import State, choose_system, connect
from hpcbridge.cli.exits import ExitCode
from hpcbridge.cli.running import moving
from hpcbridge.cli.running.plan import Plan, workdir_of
from hpcbridge.cli.running.telling import options_of


async def rehearse(state: State, plan: Plan, *, as_json: bool) -> int:
    """Print it."""
    from hpcbridge.jobs.spec import JobSpec

    spec = JobSpec(**plan.fields)
    async with connect(state) as hpc:
        system = choose_system(hpc, state, plan.where)
        await system.resolve()
        workdir = (await workdir_of(system, plan, "XXXXXXXX")).path
        options = plan.sync_options() | {"account": plan.account, "dry_run": True}
        done = await moving.push(system, plan.pushes, workdir, None, **options)
    changes = [line for each, result in done for line in moving.changes_of(each, result)]
    if as_json:
        facts: dict[str, Any] = {
            "dry_run": True,
            "system": system.name,
            "workdir": workdir,
            "key": plan.key,
            "name": spec.name,
            "script": spec.script or spec.script_path,
            "options": options_of(spec),
            "env": sorted(spec.env),
            "push": changes,
            "pull": list(plan.pulls),
        }
        output.print_json(facts)
        return ExitCode.OK
    for line in changes:
        output.print_line(f"would {line}")
    output.print_line(f"would submit {spec.name} on {system.name} in {workdir}")
    for line in (*options_of(spec), *(f"environment: {name}" for name in sorted(spec.env))):
        output.print_line(f"  {line}")
    for pattern in plan.pulls:
        output.print_line(f"would fetch {workdir}/{pattern} -> {plan.into}")
    return ExitCode.OK
