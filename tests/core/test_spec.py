"""A job specification is checked before anything is sent, and never shows its secrets."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcbridge.errors import InvalidName, InvalidPath, InvalidSpec
from hpcbridge.jobs.spec import JobSpec, expand_indices

SCRIPT = "#!/bin/bash\ntrue\n"


def test_fields_are_as_sbatch_takes_them():
    spec = JobSpec(
        script=SCRIPT, workdir="/scratch/me", time=90, array="0-9:3%2", directives=["#SBATCH --gpus=1", "mem=1G"]
    )
    assert (spec.time, spec.directives, spec.array_indices) == ("90", ("--gpus=1", "--mem=1G"), (0, 3, 6, 9))


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({}, InvalidSpec, "either script or script_path"),
        ({"script": SCRIPT, "script_path": "/s.sh"}, InvalidSpec, "either script or script_path"),
        ({"script": "true\n"}, InvalidSpec, "#!"),
        ({"script": "#!/bin/bash\r\ntrue\r\n"}, InvalidSpec, "DOS line breaks"),
        ({"script": "#!/bin/bash\n" + "x" * 5_000_000}, InvalidSpec, "larger than"),
        ({"script": SCRIPT, "workdir": "run1"}, InvalidPath, "absolute"),
        ({"script": SCRIPT, "workdir": "/a/../b"}, InvalidPath, "absolute"),
        ({"script": SCRIPT, "workdir": "/it's"}, InvalidPath, "quotes"),
        ({"script": SCRIPT, "name": "a|b"}, InvalidName, "[A-Za-z][A-Za-z0-9_.-]*"),
        ({"script": SCRIPT, "name": "a,b"}, InvalidName, "40 characters"),
        ({"script": SCRIPT, "name": "x" * 41}, InvalidName, "40 characters"),
        ({"script": SCRIPT, "partition": "a'; rm -rf /"}, InvalidSpec, "quotes"),
        ({"script": SCRIPT, "time": "soon"}, InvalidSpec, "HH:MM:SS"),
        ({"script": SCRIPT, "array": "0-"}, InvalidSpec, "array"),
        ({"script": SCRIPT, "nodes": 0}, InvalidSpec, "nodes"),
        ({"script": SCRIPT, "directives": ["--a\n--b"]}, InvalidSpec, "one line"),
        ({"script": SCRIPT, "env": {"A-B": "x"}}, InvalidSpec, "not a variable name"),
        ({"script": SCRIPT, "memory": 1}, InvalidSpec, "memory"),
    ],
)
def test_what_cannot_work_is_refused_with_the_rule(fields, error, words):
    with pytest.raises(error, match=words.replace("[", r"\[").replace("*", r"\*")):
        JobSpec(**fields)


@pytest.mark.parametrize("value", ["s3cr3t\0", "s3cr3t" * 30_000, 53211])
def test_a_refused_environment_value_is_not_shown(value):
    with pytest.raises(InvalidSpec) as caught:
        JobSpec(script=SCRIPT, env={"TOKEN": value})
    assert "TOKEN" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    assert "53211" not in str(caught.value)


def test_environment_values_are_in_no_repr_and_no_fingerprint():
    spec = JobSpec(script=SCRIPT, env={"TOKEN": "s3cr3t"})
    assert "s3cr3t" not in repr(spec) + str(spec)
    assert spec.fingerprint() == spec.replace(env={"TOKEN": "renewed"}).fingerprint()
    assert spec.fingerprint() != spec.replace(env={"OTHER": "s3cr3t"}).fingerprint()


@pytest.mark.parametrize(
    "change", [{"script": SCRIPT + "#"}, {"nodes": 2}, {"directives": ("--exclusive",)}, {"array": "1"}]
)
def test_another_script_or_other_resources_have_another_fingerprint(change):
    spec = JobSpec(script=SCRIPT)
    assert spec.fingerprint() != spec.replace(**change).fingerprint()


def test_fingerprints_do_not_change_between_versions():
    assert JobSpec(script=SCRIPT, workdir="/w", time=5).fingerprint()[:16] == "07692b6bd1b3c767"


def test_specifications_travel_between_processes():
    spec = JobSpec(script=SCRIPT, env={"A": "\udcff"})
    assert pickle.loads(pickle.dumps(spec)) == spec


@given(st.sets(st.integers(0, 200), min_size=1))
def test_index_lists_are_read_as_slurm_writes_them(indices):
    assert expand_indices(",".join(map(str, sorted(indices)))) == tuple(sorted(indices))


def test_ranges_steps_limits_and_cut_lists():
    assert expand_indices("0-3,8-12:2%4") == (0, 1, 2, 3, 8, 10, 12)
    assert expand_indices("0-2,...") == (0, 1, 2)
