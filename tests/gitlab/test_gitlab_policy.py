"""What a rule lets a project have, and what it makes of the variables of three other executors."""

from __future__ import annotations

import dataclasses
import json

import pytest

from hpcbridge_gitlab import contract, patterns, settings, verdicts, wishes
from hpcbridge_gitlab.agent import State
from hpcbridge_gitlab.settings import Rule
from hpcbridge_gitlab.verdicts import Cause, Stop
from support.gitlab_scripts import Recipe

RULE = Rule(
    projects=("climate/*",), account="c1", accounts=("c2",), partition="normal", partitions=("debug",), max_nodes=4
)


def job(tmp_path, environment=None, **recipe):
    path = tmp_path / "response.json"
    recipe.setdefault("project", "climate/model")
    response = Recipe(recipe.pop("script", ["true"]), **recipe).response(5, "token", "https://gitlab.example.org")
    path.write_text(json.dumps(response))
    return contract.read_job(path, environment or {})


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS": "12"}, "--account=c1 --nodes=3 --ntasks=12 --partition=normal"),
        ({"SCHEDULER_PARAMETERS": "-N2 --ntasks=4 -p debug"}, "--account=c1 --nodes=2 --ntasks=4 --partition=debug"),
        ({"CI_SLURM_NNODES": "2", "CI_SLURM_EXCLUSIVE": "yes"}, "--account=c1 --exclusive --nodes=2 --partition=normal"),  # noqa: E501
        ({"CI_SLURM_NNODES": "2", "LOCAL_CI_SLURM_NNODES": "1"}, "--account=c1 --nodes=1 --partition=normal"),
        ({"SCHEDULER_PARAMETERS": "-A c2 --exclusive -t 10"}, "--account=c2 --exclusive --partition=normal"),
        ({"SLURM_CONSTRAINT": "gpu mem"}, '--account=c1 --constraint="gpu mem" --partition=normal'),
    ],
)  # fmt: skip
def test_variables_of_cscs_jacamar_and_slurm_gitlab_executor(tmp_path, variables, expected):
    assert " ".join(wishes.of(job(tmp_path, variables=variables), RULE).directives) == expected


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"SLURM_ACCOUNT": "other"}, "SLURM_ACCOUNT: account 'other' is not allowed here"),
        ({"SLURM_PARTITION": "large"}, "SLURM_PARTITION: partition 'large'"),
        ({"SLURM_RESERVATION": "r"}, "SLURM_RESERVATION: reservation 'r'"),
        ({"SLURM_JOB_NUM_NODES": "5"}, "SLURM_JOB_NUM_NODES: nodes 5 is over the limit of 4"),
        ({"SLURM_JOB_NUM_NODES": "1-9"}, "nodes 1-9 is over the limit"),
        ({"SCHEDULER_PARAMETERS": "--wrap=evil"}, "--wrap is not allowed"),
        ({"SCHEDULER_PARAMETERS": "-o /etc/x"}, "'-o' is no option that is allowed here"),
        ({"SCHEDULER_PARAMETERS": "--output=/x --uid=0"}, "--output is not allowed"),
        ({"SCHEDULER_PARAMETERS": "'open"}, "SCHEDULER_PARAMETERS: No closing quotation"),
        ({"SLURM_CONSTRAINT": "a\n#SBATCH --account=x"}, "SLURM_CONSTRAINT: quotes, backslashes and control"),
    ],
)
def test_what_a_rule_does_not_allow_is_refused_by_name(tmp_path, variables, says):
    with pytest.raises(Stop) as refused:
        wishes.of(job(tmp_path, variables=variables), RULE)
    assert refused.value.cause is Cause.POLICY
    assert says in refused.value.message


def test_a_variable_does_not_make_a_project_another(tmp_path):
    """GitLab's own fields decide, whatever a .gitlab-ci.yml or the environment says."""
    config = tmp_path / "gitlab.toml"
    config.write_text('[[rule]]\nprojects = ["climate/*"]\n[[rule]]\nproject_ids = [7]\nrefs = ["release/*"]\n')
    loaded = settings.load(str(config))
    forged = {
        "CUSTOM_ENV_CI_PROJECT_PATH": "climate/model",
        "CUSTOM_ENV_CI_PROJECT_ID": "7",
        "CUSTOM_ENV_CI_COMMIT_REF_NAME": "release/1",
    }
    with pytest.raises(Stop, match="no rule of this runner is for project evil/fork"):
        loaded.rule_for(job(tmp_path, forged, project="evil/fork", variables={"CI_PROJECT_PATH": "climate/model"}))
    assert loaded.rule_for(job(tmp_path))[0] == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[driver]\nlaese = 3\n', "unknown key 'laese' in [driver]"),
        ('[[rule]]\nprojects = "x"\n', "projects in [[rule]] 1 must be a list of strings"),
        ('[driver]\nisolate = "yes"\n', "isolate must be"),
        ("nonsense", "cannot read"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_named(tmp_path, text, says):
    config = tmp_path / "gitlab.toml"
    config.write_text(text)
    with pytest.raises(Stop) as refused:
        settings.load(str(config))
    assert refused.value.cause is Cause.CONFIGURATION
    assert says in refused.value.message
    assert str(config) in refused.value.message


@pytest.mark.parametrize(
    ("asked", "timeout", "most", "minutes"),
    [
        (None, 3600, "", 60),
        (None, 3601, "", 61),
        (None, 7200, "01:00:00", 60),
        ("00:30:00", 3600, "01:00:00", 30),
        ("90", 600, "", 90),
        ("1-00", 600, "2-00:00:00", 1440),
        (None, 5, "", 1),
    ],
)
def test_the_limit_comes_from_the_job_its_timeout_and_the_rule(tmp_path, asked, timeout, most, minutes):
    rule = dataclasses.replace(RULE, max_time=most)
    one = job(tmp_path, timeout=timeout, variables={"SLURM_TIMELIMIT": asked} if asked else {})
    assert wishes.time_limit(wishes.of(one, rule), rule, one.timeout)[0] == minutes


def test_more_time_than_the_rule_has_is_refused(tmp_path):
    rule = dataclasses.replace(RULE, max_time="01:00:00")
    one = job(tmp_path, variables={"SLURM_TIMELIMIT": "02:00:00"})
    with pytest.raises(Stop, match="SLURM_TIMELIMIT: 02:00:00 is over the limit of 01:00:00"):
        wishes.time_limit(wishes.of(one, rule), rule, one.timeout)


def test_no_secret_is_in_a_message_about_a_broken_job(tmp_path):
    path = tmp_path / "response.json"
    path.write_text('{"token": "very-secret", "job_info": {}}')
    with pytest.raises(Stop) as refused:
        contract.read_job(path, {})
    assert "very-secret" not in str(refused.value.lines())
    assert "very-secret" not in repr(job(tmp_path, secrets={"K": "very-secret"}))


@pytest.mark.parametrize(
    ("pattern", "matches", "not_"),
    [
        ("out", ["out", "out/a", "out/d/e"], ["outer", "x/out"]),
        ("out/", ["out/a"], ["outer"]),
        ("**/*.xml", ["a.xml", "d/e/a.xml"], ["a.xmlx"]),
        ("*.log", ["a.log"], ["d/a.log"]),
        ("{a,b}/c?", ["a/c1", "b/c2"], ["c/c1", "a/c"]),
        ("r[0-9].t", ["r1.t"], ["rx.t"]),
        ("./x/../y", ["y", "y/z"], ["x"]),
    ],
)
def test_patterns_are_those_of_the_uploader(pattern, matches, not_):
    wanted = patterns.Wanted.of(["artifacts-uploader", "--path", pattern, "--token", "t"], "/b/p")
    names = [name.encode() for name in [*matches, *not_]]
    assert [name.decode() for name in wanted.choose(names, frozenset())[0]] == matches


def test_a_path_that_leads_out_brings_nothing():
    wanted = patterns.Wanted.of(["cache-archiver", "--path=../../etc", "--path", "/etc/passwd"], "/b/p")
    assert wanted.paths == ()


def test_every_cause_is_of_its_own_and_says_whose_fault_it_is(monkeypatch, tmp_path):
    assert len(set(Cause)) == len(list(Cause.__members__))
    monkeypatch.setenv("BUILD_EXIT_CODE_FILE", str(tmp_path / "code"))
    assert verdicts.leave(Stop(Cause.SCRIPT, "x", code=42)) == 1
    assert (tmp_path / "code").read_text() == "42"
    assert verdicts.leave(Stop(Cause.NODE_FAIL, "x")) == 2


@pytest.mark.parametrize("cut", range(0, 120, 7))
def test_half_a_state_is_no_state(cut):
    whole = b"hpcbridge-agent 1\nseq 3\nstatus done\ncode 0\nreason none\nchunks 2\nbytes 10\nbeat 7\nnode n1\nend\n"
    assert State.parse(whole) == State(3, "done", 0, "none", 2, 10, 7, "n1")
    assert State.parse(whole[:cut][:-1]) is None
