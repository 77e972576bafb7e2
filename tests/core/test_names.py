"""Names make a submit findable, and break no listing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcbridge.errors import InvalidName
from hpcbridge.jobs.names import is_ours, job_name, label_of

WHERE = {
    "site": "https://f7t.example.org",
    "system": "daint",
    "user": "alice",
    "workdir": "/scratch/alice",
    "key": "fig3-17",
}


def test_the_name_of_a_submit_never_changes():
    assert job_name("relax", **WHERE) == "relax.hb1j23qxp23o5wc63o4"


def test_the_name_says_what_and_that_it_is_ours():
    name = job_name("relax", **WHERE)
    assert re.fullmatch(r"relax\.hb1[a-z2-7]{16}", name)
    assert (label_of(name), is_ours(name), is_ours("relax"), label_of("relax")) == ("relax", True, False, None)


@pytest.mark.parametrize("part", list(WHERE))
def test_every_part_of_a_submits_identity_counts(part):
    assert job_name("relax", **WHERE) != job_name("relax", **(WHERE | {part: WHERE[part] + "x"}))


def test_a_trailing_slash_is_the_same_directory():
    assert job_name("a", **WHERE) == job_name("a", **(WHERE | {"workdir": "/scratch//alice/"}))


def test_the_parts_cannot_be_confused():
    assert job_name("a", **(WHERE | {"user": "ab", "system": "c"})) != job_name(
        "a", **(WHERE | {"user": "b", "system": "ca"})
    )


@given(st.text(max_size=60))
def test_any_key_gives_a_name_that_scheduler_and_server_carry(key):
    name = job_name("x" * 40, **(WHERE | {"key": key}))
    assert len(name) <= 61
    assert not set(name) & set("|,'\" \n\\")


@pytest.mark.parametrize("label", ["", "1st", "a b", "a|b", "a,b", "é", "x" * 41, "a\n"])
def test_other_labels_are_refused_with_the_rule(label):
    with pytest.raises(InvalidName, match=r"\[A-Za-z\]\[A-Za-z0-9_.-\]\*"):
        job_name(label, **WHERE)


def test_the_server_takes_system_names_in_any_case_and_a_key_is_one_job_in_all_of_them():
    assert job_name("a", **WHERE) == job_name("a", **(WHERE | {"system": "Daint"}))


def test_a_dot_on_the_way_is_the_same_directory():
    for other in ("/scratch/./alice", "/./scratch/././alice/.", "/scratch/alice/./"):
        assert job_name("a", **WHERE) == job_name("a", **(WHERE | {"workdir": other}))
