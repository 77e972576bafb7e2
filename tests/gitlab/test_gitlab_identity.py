"""Rules by an ID token that GitLab has signed: what it takes to be somebody, and that no variable does."""

from __future__ import annotations

import base64
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcbridge_gitlab import contract, identity, settings
from hpcbridge_gitlab.contract import CiJob
from hpcbridge_gitlab.settings import IdToken, Rule, Settings
from hpcbridge_gitlab.verdicts import Cause, Stop
from support.gitlab_coordinator import Coordinator, Job, coordinator, new_key
from support.gitlab_scripts import Recipe

VARIABLE, AUDIENCE = "HPCBRIDGE_ID_TOKEN", "hpc.example.org"


@pytest.fixture
def gitlab(tmp_path: Path) -> Iterator[Coordinator]:
    (tmp_path / "repositories").mkdir()
    with coordinator(tmp_path / "repositories") as opened:
        yield opened


def given(gitlab: Coordinator, tmp_path: Path, token: Any = None, **recipe: Any) -> tuple[Job, CiJob]:
    """A job with a token: `token(job)` makes it. It comes as the runner hands it over: in the environment, too."""
    queued = gitlab.queue(Recipe(["true"], **recipe).response)
    text = token(queued) if token else gitlab.id_token(queued, AUDIENCE)
    path = tmp_path / f"response-{queued.id}.json"
    path.write_text(json.dumps(queued.response))
    return queued, contract.read_job(path, {f"CUSTOM_ENV_{VARIABLE}": text})


def wanted(gitlab: Coordinator) -> IdToken:
    return IdToken(gitlab.url, AUDIENCE)


async def test_a_good_token_says_what_no_variable_may(gitlab, tmp_path):
    forged = {"CI_COMMIT_REF_PROTECTED": "true", "GITLAB_USER_LOGIN": "root", "CI_PROJECT_PATH": "climate/model"}
    _, job = given(gitlab, tmp_path, lambda j: gitlab.id_token(j, AUDIENCE, ref_protected="false"), variables=forged)
    assert (job.protected, job.user) == (False, "")
    found = await identity.verified(wanted(gitlab), job)
    assert (found.project_path, found.protected, found.user) == ("group/project", False, "ada")
    _, job = given(gitlab, tmp_path)
    assert (await identity.verified(wanted(gitlab), job)).protected


def hs256(gitlab: Coordinator, job: Job) -> str:
    """Signed with the public key as if it were a shared secret."""
    import hashlib
    import hmac

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    claims = gitlab.id_token(job, AUDIENCE).split(".")[1]
    head = part(json.dumps({"alg": "HS256", "kid": gitlab.key.kid}).encode())
    seal = hmac.new(gitlab.key.as_pem(private=False), f"{head}.{claims}".encode(), hashlib.sha256).digest()
    return f"{head}.{claims}.{part(seal)}"


def unsigned(gitlab: Coordinator, job: Job) -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    return f"{head}.{gitlab.id_token(job, AUDIENCE).split('.')[1]}."


def other_jobs(gitlab: Coordinator, job: Job) -> str:
    """A good one of a job of the project that is allowed, in the hands of another."""
    other = gitlab.queue(Recipe(["true"], project="climate/model", project_id=3).response)
    return gitlab.id_token(other, AUDIENCE)


def changed(gitlab: Coordinator, job: Job) -> str:
    head, body, seal = gitlab.id_token(job, AUDIENCE).split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["project_path"] = "climate/model"
    return f"{head}.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.{seal}"


NOT_ACCEPTED = {
    "expired": (lambda g, j: g.id_token(j, AUDIENCE, exp=int(time.time()) - 60), "expired"),
    "without an end": (lambda g, j: g.id_token(j, AUDIENCE, exp=None), "exp"),
    "not yet": (lambda g, j: g.id_token(j, AUDIENCE, nbf=int(time.time()) + 600), "not yet valid"),
    "for another audience": (lambda g, j: g.id_token(j, "https://vault.example.org"), "aud"),
    "of another issuer": (lambda g, j: g.id_token(j, AUDIENCE, iss="https://gitlab.example.com"), "iss"),
    "of another job of the project": (lambda g, j: g.id_token(j, AUDIENCE, job_id=str(j.id + 1)), "job_id"),
    "of another project's job": (other_jobs, "project_id"),
    "of another project": (lambda g, j: g.id_token(j, AUDIENCE, project_id="8"), "project_id"),
    "without a project": (lambda g, j: g.id_token(j, AUDIENCE, project_path=None), "project_path"),
    "signed with a key of the same name": (lambda g, j: g.id_token(j, AUDIENCE, key=namesake(g)), "bad_signature"),
    "signed with an unknown key": (lambda g, j: g.id_token(j, AUDIENCE, key=new_key()), "No key for kid"),
    "signed with the public key": (hs256, "Algorithm"),
    "unsigned": (unsigned, "Algorithm"),
    "changed afterwards": (changed, "bad_signature"),
    "no token at all": (lambda g, j: "glpat-some-other-secret", "Invalid JSON Web Signature"),
    "nothing": (lambda g, j: "", "it is missing"),
}


def namesake(gitlab: Coordinator) -> Any:
    made = new_key()
    return type(made).import_key(made.as_dict(private=True) | {"kid": gitlab.key.kid})


@pytest.mark.parametrize("kind", NOT_ACCEPTED)
async def test_a_token_that_is_not_good_is_refused_by_its_reason(gitlab, tmp_path, kind):
    make, says = NOT_ACCEPTED[kind]
    queued, job = given(gitlab, tmp_path, lambda j: make(gitlab, j))
    with pytest.raises(Stop) as refused:
        await identity.verified(wanted(gitlab), job)
    assert refused.value.cause is Cause.POLICY
    assert says in refused.value.message
    shown = "\n".join(refused.value.lines())
    assert job.variables[VARIABLE] not in shown or kind == "nothing"
    assert queued.token not in shown


async def test_a_key_that_was_withdrawn_counts_no_more(gitlab, tmp_path):
    _, job = given(gitlab, tmp_path)
    await identity.verified(wanted(gitlab), job)
    gitlab.key = new_key()
    with pytest.raises(Stop, match="No key for kid"):
        await identity.verified(wanted(gitlab), job)
    _, job = given(gitlab, tmp_path)
    await identity.verified(wanted(gitlab), job)


async def test_a_gitlab_that_does_not_answer_is_no_fault_of_the_job(gitlab, tmp_path):
    _, job = given(gitlab, tmp_path)
    gitlab.close()
    with pytest.raises(Stop) as refused:
        await identity.verified(wanted(gitlab), job)
    assert refused.value.cause is Cause.UNAVAILABLE


async def test_an_issuer_that_is_another_is_the_administrators_matter(gitlab, tmp_path):
    _, job = given(gitlab, tmp_path)
    with pytest.raises(Stop, match="calls itself") as refused:
        await identity.verified(dataclasses.replace(wanted(gitlab), issuer=gitlab.url + "/"), job)
    assert refused.value.cause is Cause.CONFIGURATION


def test_rules_for_protected_refs_and_users(gitlab, tmp_path):
    _, job = given(gitlab, tmp_path)
    rules = (Rule(("group/*",), protected=True, users=("ada",), account="a"), Rule(("group/*",), account="b"))
    rule_of = Settings(Path("x"), settings.Driver(), rules).rule_for
    assert rule_of(job)[0] == 2
    assert rule_of(dataclasses.replace(job, protected=True))[0] == 2
    assert rule_of(dataclasses.replace(job, protected=True, user="eve"))[0] == 2
    assert rule_of(dataclasses.replace(job, protected=True, user="ada"))[0] == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[rule]]\nprojects = ["*"]\nprotected = true\n', "protected and users in [[rule]] 1 need [id_token]"),
        ('[id_token]\nissuer = "https://g.example.org"\n', "audience in [id_token] must not be empty"),
        ('[id_token]\nissuer = "http://g.example.org"\naudience = "a"\n', "issuer in [id_token] must be an https URL"),
        ('[id_token]\nissuer = "https://g"\naudience = "a"\nkeys = "x"\n', "unknown key 'keys' in [id_token]"),
    ],
)
def test_a_mistake_in_the_table_is_named(tmp_path, text, says):
    config = tmp_path / "gitlab.toml"
    config.write_text(text)
    with pytest.raises(Stop) as refused:
        settings.load(str(config))
    assert refused.value.cause is Cause.CONFIGURATION
    assert says in refused.value.message


@pytest.mark.timeout(1200)
def test_a_job_runs_by_its_token_and_not_by_its_yaml(host):
    table = f'[id_token]\nissuer = "{host.gitlab.url}"\naudience = "{AUDIENCE}"'
    config = host.config("protected = true", tables=table)
    good = host.runner(Recipe(["echo ran"], id_tokens={VARIABLE: AUDIENCE}), config=config).run()
    assert good.outcome == "success", good.log

    stolen = host.gitlab.id_token(host.job(good), AUDIENCE)
    for variables in ({}, {VARIABLE: stolen}, {VARIABLE: "x.y.z", "CI_COMMIT_REF_PROTECTED": "true"}):
        bad = host.runner(Recipe(["echo ran"], variables=variables), config=config).run()
        assert bad.outcome == "script_failure", bad.log
        assert bad.order == ["config", "cleanup"]
        assert "echo ran" not in bad.log
        assert not host.rows(bad)
        assert stolen not in bad.log
