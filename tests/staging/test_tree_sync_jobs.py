"""The jobs of a sync as a node runs them: bash alone, no server. Trees of every kind, killed and competing jobs."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from hpcbridge.errors import AlreadyExists
from hpcbridge.staging.trees import jobscript
from hpcbridge.staging.trees import listing as listing_module
from hpcbridge.staging.trees.answers import Verdict
from hpcbridge.staging.trees.entries import Entry, Kind, Member
from hpcbridge.staging.trees.listing import entry_of, joined, listing, records, rows
from hpcbridge.staging.trees.patterns import Filter
from hpcbridge.staging.trees.scan import scan
from support import trees
from support.node import Node, node, refill, seen
from support.scale import PROVE

quick = settings(
    max_examples=300 if PROVE else 8,
    phases=tuple(Phase) if PROVE else (Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes time
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
patterns = st.lists(st.sampled_from(["*.txt", "a", "/b", "a/", "**/c", "[ab]*", "?", "with space", "n*/"]), max_size=2)


def without_times(root: Path) -> set[tuple[bytes, ...]]:
    return {(path, *map(repr, what)) for path, what in seen(root).items()}  # type: ignore[misc]


@quick
@given(trees.trees)
def test_a_listing_is_what_python_sees_and_reads_no_file_twice(tree: trees.Directory) -> None:
    with node() as one:
        trees.make(one.local, tree)
        here = rows(scan(one.local).manifest)
        (one.state / "want").write_bytes(joined(here))
        script = f"set -u -o pipefail; export LC_ALL=C; cd {one.state}\n{listing()}\n"
        step = "list ../../local; recognize cache; read_wanted want ../../local; manifest >actual; cat errors\n"
        assert one.script(script + step + "remember cache known hashed") == ""
        assert list(records((one.state / "actual").read_bytes())) == here
        entries = [replace(e, mtime=e.mtime if e.kind is Kind.FILE else 0) for e in scan(one.local).manifest]
        assert sorted(map(entry_of, here), key=lambda e: e.path) == entries
        one.script(script + step)
        assert list(records((one.state / "actual").read_bytes())) == here
        assert (one.state / "reading").read_bytes() == b""


@quick
@given(trees.trees, trees.trees, trees.trees, st.booleans())
def test_up_whatever_is_there_becomes_what_is_here(
    there: trees.Directory, first: trees.Directory, second: trees.Directory, delete: bool
) -> None:
    with node() as one:
        one.tree.mkdir()
        trees.make(one.tree, there)
        for tree in (first, second):
            refill(one.local, tree)
            before, here = seen(one.tree), seen(one.local)
            answer = one.up(delete=delete)
            after = seen(one.tree)
            if answer.verdict is Verdict.CONFLICT:
                assert not delete
                assert after == before
                return
            assert answer.verdict is Verdict.APPLIED, answer
            assert {path: after.get(path) for path in here} == here
            gone = before.keys() - after.keys()
            if delete:
                assert after == here
                assert gone <= set(answer.deleted) | {p for p in gone if below(p, here)}
                continue
            # Only what was in the way: below something that is no directory here, where everything was ours.
            assert all(below(path, here) for path in gone)
            kept = before.keys() - here.keys() - gone
            assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
        assert left_over(one) == set()


def left_over(one: Node) -> set[str]:
    """What no job should leave in the state directory."""
    passing = (".work", ".done", ".now", ".dead", ".archive", "f.000000", "lock")
    return {path.name for path in one.state.iterdir() if path.name.endswith(passing)}


def below(path: bytes, tree: dict[bytes, tuple[object, ...]]) -> bool:
    return any(path.startswith(each + b"/") and what[0] != "directory" for each, what in tree.items())


@quick
@given(trees.trees, trees.trees, trees.trees, st.booleans())
def test_down_whatever_is_here_becomes_what_is_there(
    here: trees.Directory, first: trees.Directory, second: trees.Directory, delete: bool
) -> None:
    with node() as one:
        one.tree.mkdir()
        trees.make(one.local, here)
        for tree in (first, second):
            refill(one.tree, tree)
            before, there = seen(one.local), seen(one.tree)
            try:
                arrival = one.down(delete=delete)
            except AlreadyExists:
                assert not delete
                assert seen(one.local) == before
                return
            assert arrival.skipped == []
            after = seen(one.local)
            assert {path: after.get(path) for path in there} == there
            if delete:
                assert after == there
        (one.state / "tick").unlink(missing_ok=True)
        assert left_over(one) == set()


@quick
@given(trees.trees, trees.trees, patterns, patterns)
def test_what_the_patterns_leave_out_is_neither_brought_nor_deleted(
    here: trees.Directory, there: trees.Directory, include: list[str], exclude: list[str]
) -> None:
    filter = Filter(tuple(include), tuple(exclude), max_file_size=1500)
    with node() as one:
        one.tree.mkdir()
        trees.make(one.local, here)
        trees.make(one.tree, there)
        before_here, before_there = seen(one.local), seen(one.tree)
        kept_here = {e.path for e in scan(one.local, filter).manifest}
        kept_there = {e.path for e in scan(one.tree, filter).manifest}
        # Which of two kinds has to go is another test's matter.
        assume(all(before_here[p][0] == before_there[p][0] for p in before_here.keys() & before_there.keys()))
        assert one.up(filter, delete=True).verdict is Verdict.APPLIED
        after = seen(one.tree)
        for path in before_there.keys() - kept_there:
            assert path in after or path in kept_here, path
            assert path in kept_here or after[path] == before_there[path]
        assert {e.path for e in scan(one.tree, filter).manifest if e.kind is not Kind.DIRECTORY} == {
            p for p in kept_here if before_here[p][0] != "directory"
        }
        refill(one.tree, there)
        one.down(filter, delete=True)
        after = seen(one.local)
        for path in before_here.keys() - kept_here - kept_there:
            assert after[path] == before_here[path], path
        assert {e.path for e in scan(one.local, filter).manifest if e.kind is not Kind.DIRECTORY} == {
            p for p in kept_there if before_there[p][0] != "directory"
        }


SOME = trees.Directory(
    {
        b"a": trees.Directory({b"x": trees.File((b"1" * 50,)), b"y": trees.File((b"2" * 50,))}),
        b"b": trees.File((b"3" * 50,), 0o600),
        b"l": trees.Link(b"a/x"),
        b"d": trees.Directory({b"e": trees.Directory({b"f": trees.File((b"4",))})}, 0o555),
    }
)
OTHER = trees.Directory(
    {
        b"a": trees.File((b"now a file",)),
        b"b": trees.Directory({b"z": trees.File((b"1" * 50,))}),
        b"l": trees.File((b"2" * 50,), 0o444),
        b"d": trees.Directory({b"e": trees.Directory({b"f": trees.File((b"44",)), b"g": trees.File((b"5",))})}, 0o755),
        b"n": trees.Directory({b"m": trees.File((b"3" * 50,))}),
    }
)
DYING = """
set -T
dying() { [ "$BASHPID" = "$$" ] || return 0; [ $((n += 1)) -ne %d ] || kill -9 $$; }
trap dying DEBUG
"""


BEHIND = """
set -T
behind() { [[ $BASH_COMMAND != %s* ]] || %s; }
trap behind DEBUG
"""


@pytest.fixture
def quick_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobscript, "BEAT", 0.2)
    monkeypatch.setattr(jobscript, "DEAD", 2)


def test_a_job_that_was_killed_anywhere_is_made_good_by_the_same_or_the_next(quick_turns: None) -> None:
    chance = random.Random(5)
    with node() as one:
        steps = 1500
        for number in range(60 if PROVE else 5):
            for tree in (SOME, OTHER):
                refill(one.local, tree)
                job = one.plan(payload=one.payload(), delete=True)
                one.script(job.script(), before=DYING % chance.randrange(1, steps), check=False)
                requeued = number % 2 == 0
                if not requeued:
                    # Another client, which knows nothing, waits for the dead one's lock.
                    job = one.plan(payload=one.payload(), delete=True)
                assert one.run(job).verdict is Verdict.APPLIED
                assert seen(one.tree) == seen(one.local)
                if not requeued:
                    assert one.up(delete=True).verdict is Verdict.APPLIED
                # What the dead one has left is for a later job; the lock is not.
                assert "lock" not in left_over(one)


def test_two_syncs_at_once_never_make_a_mixture() -> None:
    for number in range(6 if PROVE else 2):
        with node() as one:
            jobs, wanted = [], []
            for tree in (SOME, OTHER):
                refill(one.local, tree)
                jobs.append(one.plan(payload=one.payload(), delete=True))
                wanted.append(seen(one.local))
            running = [subprocess.Popen(["bash", "-c", job.script()]) for job in jobs]
            assert [each.wait(60) for each in running] == [0, 0]
            answers = [one.answer(job).verdict for job in jobs]
            # The later one supposed that nothing was there, and is told better.
            assert sorted(answers) == [Verdict.APPLIED, Verdict.BASE]
            assert seen(one.tree) == wanted[answers.index(Verdict.APPLIED)], number


def test_a_job_that_waits_too_long_for_its_turn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobscript, "TURN", 0)
    with node() as one:
        one.local.joinpath("a").write_text("a")
        (one.state / "lock").symlink_to("somebody")
        (one.state / "beat").touch()
        answer = one.run(one.plan(payload=one.payload()))
        assert (answer.verdict, answer.reason) == (Verdict.BUSY, "somebody")
        assert not one.tree.exists()
        old = time.time() - 3600
        os.utime(one.state / "beat", (old, old))
        os.utime(one.state / "lock", (old, old), follow_symlinks=False)
        assert one.up().verdict is Verdict.APPLIED
        assert not (one.state / "lock").is_symlink()


def change_back(path: Path, content: bytes) -> None:
    """Other content, with size, time, mode and inode as they were."""
    found = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_a_change_that_hides_its_time_is_found(tmp_path: Path) -> None:
    with node() as one:
        for number in range(6):
            (one.local / f"f{number}").write_bytes(b"right")
        assert one.up().verdict is Verdict.APPLIED
        for number in range(6):
            change_back(one.tree / f"f{number}", b"wrong")
            assert one.up().verdict is Verdict.APPLIED
            assert (one.tree / f"f{number}").read_bytes() == b"right"


@pytest.fixture
def coarse(tmp_path: Path) -> Iterator[Path]:
    """A file system whose clock ticks once a second: whatever happens within a second looks the same."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    image, place = tmp_path / "image", tmp_path / "mounted"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    # Inodes of 128 bytes have no room for fractions of a second.
    subprocess.run(["mkfs.ext4", "-q", "-F", "-I", "128", image], check=True, stderr=subprocess.DEVNULL)
    done = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # what gives signs of life may still be there


@pytest.mark.needs("mkfs.ext4")
def test_a_change_in_the_second_of_the_sync_is_found(coarse: Path) -> None:
    with node(coarse) as one:
        (one.local / "f").write_bytes(b"right")
        for _ in range(2):
            assert one.up().verdict is Verdict.APPLIED
            change_back(one.tree / "f", b"wrong")
            assert one.up().verdict is Verdict.APPLIED
            assert (one.tree / "f").read_bytes() == b"right"


@pytest.mark.needs("mkfs.ext4")
def test_a_change_in_the_second_of_the_listing_is_found(coarse: Path) -> None:
    """A file was changed right before it was listed, and in the same second again after it was read."""
    with node(coarse) as one:
        (one.local / "f").write_bytes(b"right")
        assert one.up().verdict is Verdict.APPLIED
        when = int((one.local / "f").stat().st_mtime)
        file = one.tree / "f"
        before = f"""
set -T
behind() {{
  case $BASH_COMMAND in
    'find . -mindepth 1 '*prune*) printf right >{file}; touch -d @{when} {file} ;;
    settle*) printf wrong >{file}; touch -d @{when} {file} ;;
  esac
}}
trap behind DEBUG
"""
        assert one.run(one.plan(payload=one.payload(None, ())), before=before).verdict is Verdict.APPLIED
        assert file.read_bytes() == b"wrong"
        assert one.up().verdict is Verdict.APPLIED
        assert file.read_bytes() == b"right"


def test_what_is_staged_and_not_what_the_manifest_says_is_not_published() -> None:
    with node() as one:
        (one.local / "f").write_bytes(b"right")
        (one.local / "g").write_bytes(b"right too")
        whole = joined(rows(scan(one.local).manifest))
        sent = {b"full": whole, b"tree/f": b"wrong", b"tree/g": b"right too"}
        members = [Member(Entry(name, Kind.FILE, 0o600, len(data)), data=data) for name, data in sent.items()]
        answer = one.run(one.plan(payload=one.payload(members=members)))
        assert (answer.verdict, answer.paths) == (Verdict.WANT, (b"f",))
        assert not one.tree.exists()
        assert one.up().verdict is Verdict.APPLIED
        (one.tree / "g").unlink()
        assert one.run(one.plan(payload=one.payload(members=members))).verdict is Verdict.APPLIED
        assert (one.tree / "f").read_bytes() == b"right"


def test_what_changes_while_it_is_packed_stays_as_it_was() -> None:
    with node() as one:
        one.tree.mkdir()
        (one.local / "log").write_text("old")
        (one.tree / "log").write_text("first")
        (one.tree / "steady").write_text("steady")
        arrival = one.down(before=BEHIND % ("pack", f"printf more >>{one.tree}/log"))
        assert arrival.skipped == [b"log"]
        assert (one.local / "log").read_text() == "old"
        assert (one.local / "steady").read_text() == "steady"
        assert one.down().skipped == []
        assert (one.local / "log").read_bytes() == (one.tree / "log").read_bytes()


def test_a_link_in_the_tree_leads_nobody_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("mine")
    with node() as one:
        one.tree.mkdir()
        (one.tree / "d").symlink_to(outside)
        (one.tree / "f").symlink_to(outside / "keep")
        (one.tree / "gone").symlink_to(outside)
        (one.local / "d").mkdir()
        (one.local / "d" / "keep").write_text("new")
        (one.local / "f").write_text("new")
        assert one.up(delete=True).verdict is Verdict.APPLIED
        assert (outside / "keep").read_text() == "mine"
        assert seen(one.tree) == seen(one.local)
        shutil.rmtree(one.local / "d")
        (one.local / "d").symlink_to(outside)
        (one.local / "f").unlink()
        (one.local / "f").symlink_to(outside / "keep")
        one.down(delete=True)
        assert (outside / "keep").read_text() == "mine"
        assert seen(one.tree) == seen(one.local)


def test_what_was_not_sent_from_here_does_not_make_way_for_a_file() -> None:
    with node() as one:
        (one.local / "d").mkdir()
        (one.local / "d" / "ours").write_text("a")
        assert one.up().verdict is Verdict.APPLIED
        (one.tree / "d" / "output").write_text("of a job")
        shutil.rmtree(one.local / "d")
        (one.local / "d").write_text("now a file")
        answer = one.up()
        assert (answer.verdict, answer.paths) == (Verdict.CONFLICT, (b"d/output",))
        assert (one.tree / "d" / "ours").exists()
        assert one.up(Filter(exclude=("output",)), delete=True).verdict is Verdict.CONFLICT
        (one.tree / "d" / "output").unlink()
        assert one.up().verdict is Verdict.APPLIED
        assert (one.tree / "d").read_text() == "now a file"


def test_a_job_that_waited_too_long_does_not_take_the_tree_back() -> None:
    with node() as one:
        refill(one.local, SOME)
        late = one.plan(payload=one.payload(), delete=True)
        refill(one.local, OTHER)
        assert one.up(delete=True).verdict is Verdict.APPLIED
        answer = one.run(late)
        assert (answer.verdict, answer.reason) == (Verdict.BASE, one.base())
        assert seen(one.tree) == seen(one.local)


def test_content_that_is_there_is_not_asked_for() -> None:
    with node() as one:
        refill(one.local, SOME)
        assert one.up().verdict is Verdict.APPLIED
        (one.local / "a").rename(one.local / "moved")
        shutil.copyfile(one.local / "b", one.local / "copy of b")
        answer = one.run(one.plan(payload=one.payload(None, ()), delete=True))
        assert answer.verdict is Verdict.APPLIED
        assert seen(one.tree) == seen(one.local)


@pytest.mark.needs("strace")
def test_no_process_per_file() -> None:
    """Hundreds of files cost as many processes as ten."""
    counts = []
    for files in (10, 400):
        with node() as one:
            (one.local / "d").mkdir()
            for number in range(files):
                (one.local / "d" / f"f {number}").write_text(str(number))
            job = one.plan(payload=one.payload())
            trace = ["strace", "-f", "-qq", "-e", "trace=execve"]
            done = subprocess.run([*trace, "bash", "-c", job.script()], capture_output=True, check=False)
            counts.append(done.stderr.count(b"execve("))
            assert one.answer(job).verdict is Verdict.APPLIED
    assert counts[1] < counts[0] + 20, counts


def test_what_was_read_is_remembered_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is killed while it reads a large tree has not read in vain."""
    monkeypatch.setattr(listing_module, "BATCH", 100)
    with node() as one:
        refill(one.local, SOME)
        shutil.copytree(one.local, one.tree, symlinks=True)
        job = one.plan(payload=one.payload(None, ()))
        one.script(job.script(), before=BEHIND % ("check_staged", "kill -9 $$"), check=False)
        assert 0 < (one.state / "cache").read_bytes().count(b"\0") < 5
        assert one.run(job).verdict is Verdict.APPLIED
        assert seen(one.tree) == seen(one.local)


def test_where_renames_do_not_reach_the_work_is_done_in_the_tree() -> None:
    with node() as one, tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        one.tree = Path(elsewhere) / "tree"
        one.tree.mkdir()
        if one.tree.stat().st_dev == one.state.stat().st_dev:
            pytest.skip("/dev/shm is on the same file system")
        for tree in (SOME, OTHER, SOME):
            refill(one.local, tree)
            assert one.up(delete=True).verdict is Verdict.APPLIED
            assert trees.snapshot(one.tree).keys() == trees.snapshot(one.local).keys()
            assert seen(one.tree) == seen(one.local)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another group")
def test_what_is_new_belongs_to_the_group_of_its_directory() -> None:
    with node() as one:
        one.tree.mkdir()
        os.chown(one.tree, -1, 12345)
        one.tree.chmod(0o2775)
        refill(one.local, SOME)
        assert one.up().verdict is Verdict.APPLIED
        (one.local / "a" / "new").mkdir()
        (one.local / "a" / "new" / "file").write_text("x")
        assert one.up().verdict is Verdict.APPLIED
        for path in (one.tree, *one.tree.rglob("*")):
            assert path.lstat().st_gid == 12345, path
            assert not path.is_dir() or path.is_symlink() or path.stat().st_mode & 0o2000, path
        assert one.run(one.plan()).changed == ()


def test_states_of_trees_that_are_gone_are_removed() -> None:
    with node() as one:
        refill(one.local, SOME)
        assert one.up().verdict is Verdict.APPLIED
        old = time.time() - 30 * 86400
        for name, tree in ((".hpcbridge-sync-gone", "nowhere"), (".hpcbridge-sync-here", one.tree)):
            (one.state.parent / name).mkdir()
            (one.state.parent / name / "tree").write_text(str(tree))
            os.utime(one.state.parent / name, (old, old))
        assert one.up().verdict is Verdict.APPLIED
        assert sorted(p.name for p in one.state.parent.glob(".hpc*")) == [".hpcbridge-sync-here"]


def test_clocks_may_differ() -> None:
    """Times on the node are compared with each other alone."""
    with node() as one:
        refill(one.local, SOME)
        assert one.up().verdict is Verdict.APPLIED
        for shift in (-86400, 86400):
            now = time.time() + shift
            for path in (one.state / "beat", one.state / "cache", one.state / "manifest"):
                os.utime(path, (now, now))
            refill(one.local, OTHER if shift < 0 else SOME)
            assert one.up(delete=True).verdict is Verdict.APPLIED
            assert seen(one.tree) == seen(one.local)
