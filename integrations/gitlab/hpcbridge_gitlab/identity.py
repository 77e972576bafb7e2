"""Who a CI job is, by the ID token that GitLab has signed for it.

The token comes in a variable, which any `.gitlab-ci.yml` can set. That does no harm: it counts only with a signature
of the configured issuer, for the configured audience, and for this very job and project of JOB_RESPONSE_FILE. So
neither a forged token nor another job's, nor one made for another purpose, makes a project anything that it is not.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from hpcbridge_gitlab.verdicts import Cause, Stop

if TYPE_CHECKING:
    from hpcbridge_gitlab.contract import CiJob
    from hpcbridge_gitlab.settings import IdToken

ALGORITHMS = ("RS256",)
"""GitLab's."""

_SKEW = 10
"""Seconds by which clocks may differ."""

_PATIENCE = 20.0


async def verified(wanted: IdToken, job: CiJob) -> CiJob:
    """The job with the facts of its token.

    Raises Stop: POLICY where the token is missing or not good, UNAVAILABLE where GitLab's keys cannot be had.
    """
    text = job.wish(wanted.variable)
    if text is None:
        raise _refused(wanted, "it is missing")
    claims = _claims(text, await keys(wanted), wanted, job)
    return dataclasses.replace(
        job,
        project_path=str(claims["project_path"]),
        ref=str(claims.get("ref") or ""),
        ref_type=str(claims.get("ref_type") or ""),
        protected=str(claims.get("ref_protected")).lower() == "true",
        user=str(claims.get("user_login") or ""),
    )


def _claims(text: str, known: KeySet, wanted: IdToken, job: CiJob) -> dict[str, Any]:
    """What a good token says."""
    registry = jwt.JWTClaimsRegistry(
        leeway=_SKEW,
        iss={"essential": True, "value": wanted.issuer},
        aud={"essential": True, "value": wanted.audience},
        exp={"essential": True},
        job_id={"essential": True, "value": str(job.id)},
        project_id={"essential": True, "value": str(job.project_id)},
        project_path={"essential": True},
    )
    try:
        claims = jwt.decode(text, known, algorithms=list(ALGORITHMS)).claims
        # GitLab writes numbers as text; a later one need not.
        claims |= {name: str(claims[name]) for name in ("job_id", "project_id") if name in claims}
        registry.validate(claims)
    except (JoseError, ValueError) as error:
        # Its own words name the claim, and hold nothing of the token.
        reason = str(error) if isinstance(error, JoseError) else "it is no JSON web token"
        raise _refused(wanted, reason) from None
    return claims


def _refused(wanted: IdToken, reason: str) -> Stop:
    return Stop(
        Cause.POLICY,
        f"the ID token in {wanted.variable} is not accepted: {reason}",
        hint=f"The job needs `id_tokens: {{{wanted.variable}: {{aud: {wanted.audience}}}}}`, and must not set that "
        "variable itself",
    )


async def keys(wanted: IdToken) -> KeySet:
    """The issuer's keys of now, as its discovery document leads to them: a key that was withdrawn counts no more."""
    base = wanted.issuer.rstrip("/")
    try:
        async with httpx.AsyncClient(timeout=_PATIENCE, follow_redirects=False) as client:
            about = await _json(client, f"{base}/.well-known/openid-configuration")
            if about.get("issuer") != wanted.issuer:
                said = str(about.get("issuer"))[:200]
                raise Stop(Cause.CONFIGURATION, f"the issuer at {base} calls itself {said}; [id_token] says otherwise")
            place = str(about.get("jwks_uri"))
            if urlsplit(place)[:2] != urlsplit(base)[:2]:
                raise Stop(Cause.CONFIGURATION, f"the issuer at {base} keeps its keys elsewhere: {place[:200]}")
            return KeySet.import_key_set(await _json(client, place))  # type: ignore[arg-type]
    except (httpx.HTTPError, httpx.InvalidURL, JoseError, ValueError, TypeError, KeyError) as error:
        raise Stop(
            Cause.UNAVAILABLE, f"the keys of {base} cannot be had: {type(error).__name__}: {str(error)[:200]}"
        ) from None


async def _json(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    answer = await client.get(url)
    if answer.status_code != 200:
        raise httpx.HTTPError(f"{url} answers {answer.status_code}")
    found = json.loads(answer.content)
    if not isinstance(found, dict):
        raise TypeError("no JSON object")
    return found
