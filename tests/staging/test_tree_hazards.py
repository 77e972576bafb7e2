"""What must not cost a file: links that appear in a tree while a job works on it, lists that a full disk cuts short."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hpcbridge.errors import InvalidPath
from hpcbridge.staging.names import parse_remote
from hpcbridge.staging.partfile import PartFile, Source, journal_path, part_path
from hpcbridge.staging.trees.answers import Answer, Verdict
from hpcbridge.staging.trees.comparing import Compare
from hpcbridge.staging.trees.jobscript import SyncJob
from hpcbridge.staging.trees.listing import identity, rows
from hpcbridge.staging.trees.scan import scan
from hpcbridge.staging.trees.sync_up import with_own
from hpcbridge.staging.trees.workplace import Workplace
from support.node import Node, node, seen

FILES = 300
FULL, ROOM = "trap '' XFSZ; ulimit -S -f 1\n", "\nulimit -S -f unlimited\n"


@pytest.fixture
def one() -> Iterator[Node]:
    with node() as made:
        yield made


def with_turn(one: Node, job: SyncJob, at: str, turn: str, *, after: str = "") -> Answer:
    """What a job answers when something happens before (and after) a line of its script."""
    script = job.script()
    assert script.count(at) == 1
    one.script(script.replace(at, f"{turn}{at}{after}"), check=False)
    return one.answer(job)


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_what_was_moved_away_for_a_link_is_not_deleted(one: Node, below: str) -> None:
    (one.tree / f"d{below}").mkdir(parents=True)
    (one.tree / f"d{below}" / "x").write_text("results")
    (one.tree / "a").write_text("gone")
    archive = one.tree.with_name("archive")
    turn = f"mv {one.tree}/d {archive}; ln -s {archive} {one.tree}/d\n"
    answer = with_turn(one, one.plan(payload=one.payload(), delete=True), "remove_extras 2>", turn)
    assert answer.verdict is Verdict.FAILED
    assert "a link leads elsewhere" in answer.reason
    assert (archive / f".{below}" / "x").read_text() == "results"


def test_nothing_is_moved_through_a_link_that_has_just_appeared(one: Node) -> None:
    (one.local / "d").mkdir()
    (one.local / "d" / "x").write_text("new")
    (one.tree / "d").mkdir(parents=True)
    outside = one.tree.with_name("outside")
    outside.mkdir()
    (outside / "x").write_text("precious")
    turn = f"[ -L {one.tree}/d ] || {{ rmdir {one.tree}/d; ln -s {outside} {one.tree}/d; }}\n"
    answer = with_turn(one, one.plan(payload=one.payload()), '  [ -z "${moved+x}" ]', turn)
    assert answer.verdict is Verdict.FAILED
    assert "a link leads elsewhere" in answer.reason
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"x": "precious"}


def test_nothing_is_cleared_away_through_a_link(one: Node) -> None:
    (one.local / "d" / "x").mkdir(parents=True)
    (one.local / "d" / "x" / "y").write_text("new")
    (one.tree / "d").mkdir(parents=True)
    (one.tree / "d" / "x").write_text("old")
    moved = one.tree.with_name("moved")
    turn = f"mv {one.tree}/d {moved}; ln -s {moved} {one.tree}/d\n"
    answer = with_turn(one, one.plan(payload=one.payload()), "clear_way 2>", turn)
    assert answer.verdict is Verdict.FAILED
    assert (moved / "x").read_text() == "old"


def test_a_job_that_waited_does_not_take_back_a_tree_that_was_taken_back_before(one: Node) -> None:
    def write(text: str) -> None:
        (one.local / "x").write_text(text)
        os.utime(one.local / "x", (0, 0))

    write("one")
    assert one.up(born=1).verdict is Verdict.APPLIED
    write("two")
    waits = one.plan(payload=one.payload(), born=2)
    write("one")
    assert one.up(born=3).verdict is Verdict.APPLIED
    answer = one.run(waits)
    assert (answer.verdict, answer.reason) == (Verdict.LATE, "3")
    assert (one.tree / "x").read_text() == "one"
    # What was sent is unpacked over there; the next job needs nothing more.
    assert one.run(replace(waits, attempt=2, born=4, payload=None)).verdict is Verdict.APPLIED
    assert (one.tree / "x").read_text() == "two"


@pytest.mark.parametrize("step", ["paths want want\n", "comm -z -23 want actual >need\n"])
def test_a_full_disk_neither_deletes_nor_passes_for_success(one: Node, step: str) -> None:
    for number in range(FILES):
        (one.local / f"file {number:03d}").write_text(str(number))
    assert one.up().verdict is Verdict.APPLIED
    for path in one.local.iterdir():
        path.write_text(f"changed {path.name}")
    before = seen(one.tree)
    answer = with_turn(one, one.plan(payload=one.payload(), delete=True), step, FULL, after=ROOM)
    assert answer.verdict is Verdict.FAILED
    assert "no space left" in answer.reason
    assert seen(one.tree) == before
    assert one.up(delete=True).verdict is Verdict.APPLIED
    assert seen(one.tree) == seen(one.local)


@pytest.mark.parametrize(
    ("begin", "end"), [("list ", "complain\n"), ("manifest >actual", "paths"), ("paths actual", "paths want")]
)
def test_a_list_that_was_cut_short_does_not_tell_what_is_missing(one: Node, begin: str, end: str) -> None:
    one.tree.mkdir()
    for number in range(FILES):
        (one.tree / f"file {number:03d}").write_text(str(number))
        (one.local / f"file {number:03d}").write_text(str(number))
    job = compare(one)
    head, work, rest = job.script().partition("\nlook_around() {")
    before, at, rest = rest.partition(f"  {begin}")
    between, after, rest = rest.partition(end)
    one.script(f"{head}{work}{before}{FULL}{at}{between}{ROOM}{after}{rest}", check=False)
    answer = one.answer(job)
    assert answer.verdict is Verdict.FAILED


def compare(one: Node) -> Compare:
    """The job of a sync the other way."""
    one.jobs += 1
    here = scan(one.local, with_own(None))
    target, goal = parse_remote(str(one.tree)), identity(rows(here.manifest))
    return Compare(str(one.state), f"{one.jobs:08d}", 1, target, goal, with_own(None), one.payload(None, ()))


def test_links_with_our_names_lead_to_no_file_of_the_users(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o755)
    (precious / "file").write_text("thesis")
    place = Workplace.of(tmp_path / "tree")
    place.staged.symlink_to(precious)
    assert place.fresh().is_dir()
    assert not place.staged.is_symlink()
    assert precious.stat().st_mode & 0o777 == 0o755
    source = Source("site", "system", "/x", 100, 0)
    part_path(tmp_path / "data").symlink_to(precious / "file")
    with pytest.raises(InvalidPath):
        PartFile.open(tmp_path / "data", source, 10)
    part = PartFile.open(tmp_path / "other", source, 10)
    journal = journal_path(tmp_path / "other")
    journal.with_name(f"{journal.name}.new").symlink_to(precious / "file")
    with pytest.raises(OSError, match="symbolic links"):
        part.note()
    part.close()
    assert (precious / "file").read_text() == "thesis"
