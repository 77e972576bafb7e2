"""What Airflow sees of the provider without any server: description, form, connection, parsing, templates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from airflow.sdk import DAG, Connection

from hpcbridge.errors import ConfigurationError
from hpcbridge_airflow import attempts
from hpcbridge_airflow.hooks import FirecRESTHook, site_of
from hpcbridge_airflow.moving import Direction, Move
from hpcbridge_airflow.operators import FirecRESTSubmitOperator
from hpcbridge_airflow.provider import get_provider_info
from hpcbridge_airflow.triggers import FirecRESTJobTrigger, FirecRESTTransferTrigger
from support.sandbox import SandboxProcess
from support.scale import PROVE

EXAMPLES = Path(__file__).parents[2] / "examples" / "airflow"
SECRET = "a-very-secret-value"


def connection(**fields: object) -> Connection:
    given = {"host": "https://firecrest.example.org/v2/", "login": "me", "password": SECRET} | fields
    extra = given.pop("extra", {"token_url": "https://id.example.org/token", "system": "daint", "account": "g1"})
    return Connection(conn_id="c", conn_type="firecrest", extra=json.dumps(extra), **given)


def test_description_is_valid_and_complete() -> None:
    import airflow
    import jsonschema

    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_airflow_finds_connection_type_hook_and_form() -> None:
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert "hpcbridge" in manager.providers
    hook = manager.hooks["firecrest"]
    assert hook is not None
    assert hook.hook_class_name == "hpcbridge_airflow.hooks.FirecRESTHook"
    assert hook.hook_name == "FirecREST"
    assert "hpcbridge_airflow.links.FirecRESTJobLink" in manager.extra_links_class_names


def test_connection_becomes_a_site() -> None:
    site, _ = site_of(connection())
    assert site.url == "https://firecrest.example.org/v2"
    assert (site.token_url, site.client_id, site.system) == ("https://id.example.org/token", "me", "daint")
    assert site.account_for("daint") == "g1"
    assert SECRET not in repr(site)


def test_connection_from_a_uri() -> None:
    uri = "firecrest://me:pw-of-me@firecrest.example.org:8443/http?token_url=http%3A%2F%2Fid%2Ft"
    site, _ = site_of(Connection(conn_id="c", uri=uri))
    assert site.url == "http://firecrest.example.org:8443"


@pytest.mark.parametrize("missing", ["host", "login", "password", "extra"])
def test_an_incomplete_connection_says_what_is_missing(missing: str) -> None:
    with pytest.raises(ConfigurationError, match="the connection c has no"):
        site_of(connection(**{missing: {} if missing == "extra" else None}))


def test_test_connection_says_what_is_wrong_and_never_raises(
    monkeypatch: pytest.MonkeyPatch, local_queue: SandboxProcess
) -> None:
    env = local_queue.client_env("alice")
    here: dict[str, object] = {"host": env["FIRECREST_URL"], "extra": {"token_url": env["AUTH_TOKEN_URL"]}}
    right: dict[str, object] = {"login": "alice", "password": env["FIRECREST_CLIENT_SECRET"]}

    def test(fields: dict[str, object]) -> tuple[bool, str]:
        monkeypatch.setattr(FirecRESTHook, "get_connection", lambda *_: connection(**fields))
        return FirecRESTHook("c").test_connection()

    worked, message = test(here | right)
    assert worked
    assert env["FIRECREST_SYSTEM"] in message
    wrong = [here, here | right | {"host": None}]
    if PROVE:  # an outage is waited for, for a while
        wrong += [here | right | {"host": "http://127.0.0.1:9"}, right | {"extra": {"token_url": "no url"}}]
    for fields in wrong:
        worked, message = test(fields)
        assert not worked
        assert message
        assert SECRET not in message
        assert env["FIRECREST_CLIENT_SECRET"] not in message


def test_the_example_parses_without_connection_network_or_environment() -> None:
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('dag', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(sorted(module.dag.task_ids))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLES / "rock_salt.py")],
        env=keep,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "relax" in done.stdout


def test_script_file_and_fields_are_templates() -> None:
    with DAG("d", schedule=None, template_searchpath=str(EXAMPLES)):
        task = FirecRESTSubmitOperator(
            task_id="t", script="rock_salt.sbatch", workdir="runs/{{ ds }}", env={"A": "{{ ds }}"}, time="{{ ds }}"
        )
    task.resolve_template_files()
    assert task.script.startswith("#!/bin/bash")
    task.render_template_fields({"ds": "2026-01-01"})
    assert (task.workdir, task.env, task.time) == ("runs/2026-01-01", {"A": "2026-01-01"}, "2026-01-01")


def test_triggers_are_json_and_survive_a_newer_version() -> None:
    job = FirecRESTJobTrigger("c", "daint", "17", "n", log_files={"": "/a"}, deadline="2026-01-01T00:00:00+00:00")
    move = Move(Direction.UP, "/here", "there").to_json()
    for trigger in (job, FirecRESTTransferTrigger("c", move)):
        path, arguments = trigger.serialize()
        kind = type(trigger)
        assert path == f"{kind.__module__}.{kind.__name__}"
        stored = json.loads(json.dumps(arguments))
        assert stored["version"] == 1
        again = kind(**stored, a_field_of_version_2=1)
        assert again.serialize()[1] == arguments | {"a_field_of_version_2": 1}


def test_a_trigger_of_the_first_version_loads() -> None:
    stored = {
        "firecrest_conn_id": "firecrest_default",
        "system": "daint",
        "job_id": "17",
        "job_name": "d.t.hb1abcdefghijklmnop",
        "submitted_at": "2026-01-01T00:00:00+00:00",
        "array": None,
        "output": "/scratch/me/slurm-17.out",
        "log_files": {"": "/scratch/me/slurm-17.out"},
        "private": None,
        "deadline": None,
        "version": 1,
    }
    assert FirecRESTJobTrigger(**stored).serialize()[1] == stored


@pytest.mark.parametrize("kind", ["job", "transfer"])
async def test_a_trigger_does_not_fire_before_the_worker_is_seen_to_have_ended(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow's scheduler fails a task that is back sooner; what ends at once here is a connection that cannot be."""
    monkeypatch.setenv("AIRFLOW_CONN_C", json.dumps({"conn_type": "firecrest", "host": "no-url", "extra": {}}))
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "0.5")
    triggers = {
        "job": FirecRESTJobTrigger("c", "daint", "17"),
        "transfer": FirecRESTTransferTrigger("c", {}),
    }
    began = time.monotonic()
    (event,) = [event async for event in triggers[kind].run()]
    assert event.payload["outcome"] == "error"
    assert time.monotonic() - began >= 2.5


def test_an_attempt_of_the_first_version_loads() -> None:
    stored = {
        "version": 1,
        "number": 2,
        "clear_number": 1,
        "spec_hash": "ab",
        "key": "airflow/d/r//t/-1/1/2",
        "system": "daint",
        "since": "2026-01-01T00:00:00+00:00",
        "name": "d.t.hb1abcdefghijklmnop",
        "job_id": "17",
        "refused": False,
    }
    assert attempts.Attempt.from_json({**stored, "of_version_2": 1}).to_json() == stored


@pytest.mark.parametrize(
    ("dag", "task"),
    [("d", "t"), ("1st", "t"), ("a" * 60, "t"), ("grüße", "t,|'\""), ("x" * 38, "..y"), ("d", "1" * 60)],
)
def test_labels_are_accepted_by_the_scheduler(dag: str, task: str) -> None:
    from hpcbridge.jobs.names import check_label

    assert check_label(attempts.label_of(dag, task))


@pytest.mark.parametrize(
    ("change", "same"),
    [({}, True), ({"clear_number": 1}, False), ({"spec_hash": "cd"}, False), ({"system": "other"}, False)],
)
def test_only_the_same_intent_is_attached_to(change: dict[str, object], same: bool) -> None:
    wanted: dict[str, object] = {"clear_number": 0, "spec_hash": "ab", "system": "daint"}
    recorded = attempts.Attempt(number=1, key="k", **wanted)  # type: ignore[arg-type]
    assert recorded.stands_for(**(wanted | change)) is same  # type: ignore[arg-type]
