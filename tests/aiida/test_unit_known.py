"""What outlives a worker: for the same subject only, and never the reason of a failure."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from hpcbridge_aiida.known import ROOTS_KEPT, Known, subject_of


def token(subject: str, issuer: str = "https://issuer", **claims: str) -> str:
    """A JWT about `subject`; nobody looks at its signature."""
    payload = base64.urlsafe_b64encode(json.dumps({"iss": issuer, "sub": subject, **claims}).encode())
    return f"header.{payload.rstrip(b'=').decode()}.signature"


def test_the_name_counts_for_the_same_subject_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "known.json"
    Known(path).learn_user(token("1", jti="a"), "alice")
    later = Known(path)
    assert later.user(token("1", jti="b")) == "alice"
    others = (token("2"), token("1", "https://other"), token("1", preferred_username="al"), "opaque", "a.b.c", "")
    assert [later.user(each) for each in others] == [None] * len(others)


def test_an_opaque_token_is_never_told_a_name(tmp_path: Path) -> None:
    known = Known(tmp_path / "known.json")
    known.learn_user("opaque", "alice")
    assert known.user("opaque") is None
    assert subject_of("opaque") == ""


def test_another_subject_has_other_directories(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    known = Known(path)
    known.learn_user(token("1"), "alice")
    known.learn_root("/scratch/alice/aiida")
    assert Known(path).roots == ["/scratch/alice/aiida"]
    Known(path).learn_user(token("2"), "bob")
    assert (Known(path).roots, Known(path).user(token("2"))) == ([], "bob")


def test_it_does_not_grow(tmp_path: Path) -> None:
    known = Known(tmp_path / "known.json")
    for number in range(2 * ROOTS_KEPT):
        known.learn_root(f"/scratch/{number}")
    assert Known(tmp_path / "known.json").roots == [f"/scratch/{n}" for n in range(ROOTS_KEPT, 2 * ROOTS_KEPT)]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2, "roots": ["/x"]}', '{"format": 1}', '{"roots": 7}'])
def test_what_cannot_be_read_counts_as_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "known.json"
    path.write_text(text)
    known = Known(path)
    assert known.roots == []
    known.learn_root("/scratch/a")
    assert Known(path).roots == ["/scratch/a"]


def test_yesterdays_file_loads(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    digest = subject_of(token("1"))
    path.write_text(json.dumps({"format": 1, "subject": digest, "user": "alice", "roots": ["/scratch/alice/aiida"]}))
    known = Known(path)
    assert (known.user(token("1")), known.roots) == ("alice", ["/scratch/alice/aiida"])


def test_a_place_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    known = Known(tmp_path / "file" / "known.json")
    known.learn_root("/scratch/a")
    assert known.roots == ["/scratch/a"]
