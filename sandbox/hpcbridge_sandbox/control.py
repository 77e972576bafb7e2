"""The control URL: faults, outages, tokens and counts, for tests. Its path holds an unguessable token."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from hpcbridge_sandbox.app import on_api_error
from hpcbridge_sandbox.context import Sandbox
from hpcbridge_sandbox.errors import ApiError
from hpcbridge_sandbox.faults import Outage, Rule
from hpcbridge_sandbox.scheduling.control import router as scheduling_router

if TYPE_CHECKING:
    from hpcbridge_sandbox.server import Listener


class TokenRule(BaseModel):
    """How long the next access tokens live, in seconds."""

    lifetime: float


class MintRequest(BaseModel):
    """An access token to order: ``claims`` override the usual ones, null removes one."""

    user: str
    lifetime: float | None = None
    claims: dict[str, Any] = Field(default_factory=dict)


class Condition(BaseModel):
    """A system's health; see `context.SystemCondition`."""

    model_config = ConfigDict(extra="forbid")
    unhealthy: list[str] | None = None
    ssh: str | None = None


class Sessions(BaseModel):
    """Concurrent commands per user; null for no limit."""

    max: int | None = None


def create_control(sandbox: Sandbox, listener: Listener, token: str) -> FastAPI:
    """Return the control application for a sandbox and the listener of its REST interface."""
    control = FastAPI(openapi_url=None)
    app = FastAPI(title="hpcbridge sandbox control")
    app.state.sandbox = sandbox
    app.include_router(scheduling_router)
    app.add_exception_handler(ApiError, on_api_error)
    control.mount(f"/_sandbox/{token}", app)
    _add_faults(app, sandbox, listener)
    _add_tokens(app, sandbox)
    _add_cluster(app, sandbox)
    return control


def _add_faults(app: FastAPI, sandbox: Sandbox, listener: Listener) -> None:
    @app.post("/faults")
    async def set_faults(rules: list[Rule]) -> dict[str, int]:
        """Replace the fault rules."""
        sandbox.faults.rules = rules
        return {"rules": len(rules)}

    @app.get("/faults")
    async def get_faults() -> list[Rule]:
        """The rules in force, with what is left of their counts."""
        return sandbox.faults.rules

    @app.delete("/faults")
    async def clear_faults() -> dict[str, int]:
        """Drop every rule."""
        sandbox.faults.rules = []
        return {"rules": 0}

    @app.post("/outage")
    async def outage(wanted: Outage) -> dict[str, float]:
        """Begin an outage of the whole REST server."""
        sandbox.faults.begin(wanted)
        if wanted.kind == "refused":
            await listener.close()
            asyncio.get_running_loop().call_later(wanted.seconds, listener.reopen)
        return {"seconds": wanted.seconds}

    @app.delete("/outage")
    async def end_outage() -> dict[str, bool]:
        """End an outage early."""
        sandbox.faults.end()
        listener.reopen()
        return {"outage": False}

    @app.get("/requests")
    async def counts() -> dict[str, Any]:
        """How many requests arrived at each endpoint, and how many commands ran on the "login node"."""
        return {"counts": dict(sandbox.faults.counts), "commands": sandbox.cluster.commands}

    @app.delete("/requests")
    async def reset_counts() -> dict[str, int]:
        """Begin to count anew."""
        sandbox.faults.counts.clear()
        sandbox.cluster.commands = 0
        return {"commands": 0}

    @app.post("/latency")
    async def latency(wanted: dict[str, float]) -> dict[str, float]:
        """Seconds added before every REST answer: ``{"seconds": s}``."""
        sandbox.faults.latency = wanted["seconds"]
        return wanted


def _add_tokens(app: FastAPI, sandbox: Sandbox) -> None:
    @app.post("/token")
    async def token_lifetime(rule: TokenRule) -> dict[str, float]:
        """Set the life of the next access tokens."""
        sandbox.issuer.lifetime = rule.lifetime
        return {"lifetime": rule.lifetime}

    @app.post("/expire-tokens")
    async def expire_tokens() -> dict[str, bool]:
        """Refuse, from now on, every access token given out so far."""
        sandbox.issuer.withdraw_tokens()
        return {"expired": True}

    @app.post("/mint")
    async def mint(wanted: MintRequest) -> dict[str, str]:
        """Make an access token to order, for tests of refusals."""
        issuer = sandbox.issuer
        usual = issuer.lifetime
        if wanted.lifetime is not None:
            issuer.lifetime = wanted.lifetime
        try:
            return {"access_token": issuer.access_token(wanted.user, **wanted.claims)}
        finally:
            issuer.lifetime = usual


def _add_cluster(app: FastAPI, sandbox: Sandbox) -> None:
    @app.get("/users")
    async def users() -> dict[str, str]:
        """Every user's client secret, for tests that act for several."""
        return {entry.name: entry.secret for entry in sandbox.settings.users}

    @app.post("/sessions")
    async def sessions(wanted: Sessions) -> Sessions:
        """Limit concurrent commands per user (OpenSSH's MaxSessions)."""
        sandbox.cluster.max_sessions = wanted.max
        return wanted

    @app.post("/systems/{name}")
    async def condition(name: str, wanted: Condition) -> dict[str, Any]:
        """Mark services of a system unhealthy, or its login node unreachable."""
        system = sandbox.systems.get(name)
        if system is None:
            raise HTTPException(404, f"no system {name}")
        if wanted.unhealthy is not None:
            system.unhealthy = set(wanted.unhealthy)
        if wanted.ssh is not None:
            system.ssh = wanted.ssh
        return {"name": name, "unhealthy": sorted(system.unhealthy), "ssh": system.ssh}

    @app.post("/s3-faults")
    async def s3_faults(rules: dict[str, Any]) -> dict[str, Any]:
        """Failing, slow and corrupted parts; see `hpcbridge_sandbox.s3.rules`."""
        try:
            await sandbox.s3.inject(rules)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        return rules

    @app.post("/streamer-faults")
    async def streamer_faults(rules: dict[str, Any]) -> dict[str, Any]:
        """Transfers by streamer that fail; see `hpcbridge_sandbox.streamer.rules`."""
        try:
            sandbox.streamer_faults.replace(rules)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        return rules

    @app.delete("/streamer-faults")
    async def no_streamer_faults() -> dict[str, Any]:
        """Sound streamers again."""
        sandbox.streamer_faults.replace({})
        return {}

    @app.delete("/s3-faults")
    async def no_s3_faults() -> dict[str, Any]:
        """A sound object store again."""
        await sandbox.s3.inject({})
        return {}

    @app.get("/s3-requests")
    async def s3_requests() -> list[dict[str, Any]]:
        """What the object store was asked for; see `hpcbridge_sandbox.s3.seen`."""
        seen: list[dict[str, Any]] = sandbox.s3.seen()
        return seen

    @app.delete("/s3-requests")
    async def forget_s3_requests() -> list[dict[str, Any]]:
        """Begin to note the object store's requests anew."""
        sandbox.s3.forget_seen()
        return []
