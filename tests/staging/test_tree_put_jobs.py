"""The unpacking script, run by a real bash on real pieces: requeued, killed, refused, with things in its way."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hpcbridge.staging.joining import Answer, Verdict, parse_answer, parse_sums, piece_name
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.trees.archive import Archive
from hpcbridge.staging.trees.patterns import Filter
from hpcbridge.staging.trees.scan import scan
from hpcbridge.staging.trees.unpacking import Unpack
from support.trees import ODD_NAMES, Directory, File, Link, make, snapshot

SESSION = "0badcafe"
PIECE = 10_000
TREE = Directory(
    {
        b"a": Directory({b"x": File((b"1",), 0o600), b"deep": Directory({b"y": File((b"2",))}, 0o555)}, 0o750, 1000),
        b"empty": Directory({}, 0o700, 2000),
        b"link": Link(b"/etc/passwd"),
        b"to directory": Link(b"a"),
        b"\n": File((b"3" * 20_000,), 0o444),
    }
)


class Node:
    """A directory of the cluster's, where archives are staged and unpacked."""

    def __init__(self, root: Path) -> None:
        self.root = root / "cluster"
        self.root.mkdir()
        self.stage = self.root / ".hpcbridge-put-x"
        self.target = self.root / "tree"

    def deliver(self, tree: Directory, **about: object) -> Unpack:
        """Put the pieces of an archive of `tree` into the stage."""
        source = self.root.parent / f"source{time.monotonic_ns()}"
        source.mkdir()
        make(source, tree)
        archive = Archive(scan(source, Filter(), hashing=False).members)
        data = archive.read(0, archive.size)
        return self.stage_data(data, **about)

    def stage_data(self, data: bytes, **about: object) -> Unpack:
        self.stage.mkdir(exist_ok=True)
        count = -(-len(data) // PIECE)
        for i in range(count):
            (self.stage / piece_name(SESSION, i)).write_bytes(data[i * PIECE : (i + 1) * PIECE])
        digest = hashlib.sha256(data).hexdigest()
        plan = {"target": RemotePath(str(self.root), "tree"), "sha256": digest, "mode": 0o755} | about
        return Unpack(str(self.stage), SESSION, count=count, size=len(data), **plan)  # type: ignore[arg-type]

    def run(self, plan: Unpack) -> Answer:
        done = subprocess.run(["bash", "-s"], input=plan.script().encode(), capture_output=True, check=False)
        answer = parse_answer((self.stage / plan.answer_name).read_text())
        assert (done.returncode == 0) == (answer.verdict is Verdict.PUBLISHED), done.stderr
        assert [path.name for path in self.stage.iterdir() if path.name.endswith(".tree")] == []
        return answer


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def expected(tmp_path: Path, tree: Directory) -> dict[bytes, tuple[object, ...]]:
    where = tmp_path / f"expected{time.monotonic_ns()}"
    where.mkdir()
    make(where, tree)
    return snapshot(where)


def test_a_new_tree_keeps_all_that_is_promised(node: Node, tmp_path: Path) -> None:
    answer = node.run(node.deliver(TREE, mode=0o2750 & 0o777))
    assert answer.verdict is Verdict.PUBLISHED
    assert snapshot(node.target) == expected(tmp_path, TREE)
    assert node.target.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("mode", [0o500, 0o000, None])
def test_the_root_has_its_mode_last(node: Node, mode: int | None) -> None:
    assert node.run(node.deliver(TREE, mode=mode)).verdict is Verdict.PUBLISHED
    umask = os.umask(0)
    os.umask(umask)
    assert node.target.stat().st_mode & 0o777 == (0o777 & ~umask if mode is None else mode)


def test_a_tree_is_merged_into_what_is_there(node: Node, tmp_path: Path) -> None:
    old = Directory(
        {
            b"a": Directory({b"x": Link(b"/nowhere"), b"mine": File((b"m",)), b"deep": Directory({}, 0o700)}, 0o777),
            b"link": File((b"a file where a link goes",)),
            b"to directory": Link(b"empty elsewhere"),
            b"own": File((b"o",), 0o640),
        }
    )
    node.target.mkdir()
    make(node.target, old)
    assert node.run(node.deliver(TREE)).verdict is Verdict.PUBLISHED
    wanted = expected(tmp_path, TREE)
    found = snapshot(node.target)
    assert {path: found[path] for path in wanted} == wanted
    assert found.keys() - wanted.keys() == {b"a/mine", b"own"}
    assert (node.target / "own").stat().st_mode & 0o777 == 0o640


def test_odd_names_on_both_sides(node: Node, tmp_path: Path) -> None:
    tree = Directory(
        {name: Directory({inner: File((inner,)) for inner in ODD_NAMES}) for name in ODD_NAMES if len(name) < 200}
    )
    node.run(node.deliver(tree))
    assert node.run(node.deliver(tree, attempt=2)).verdict is Verdict.PUBLISHED
    assert snapshot(node.target) == expected(tmp_path, tree)


@pytest.mark.parametrize(
    ("there", "name"),
    [
        (Directory({b"a": File((b"a file",))}), b"a"),
        (Directory({b"a": Link(b"elsewhere")}), b"a"),
        (Directory({b"link": Directory({b"kept": File()})}), b"link"),
        (Directory({b"\n": Directory({})}), b"\\n"),
    ],
)
def test_what_is_in_the_way_is_said_and_nothing_is_changed(
    node: Node, tmp_path: Path, there: Directory, name: bytes
) -> None:
    node.target.mkdir()
    make(node.target, there)
    (node.root / "elsewhere").mkdir()
    before = snapshot(node.target)
    answer = node.run(node.deliver(TREE))
    assert answer.verdict is Verdict.FAILED
    assert answer.reason.startswith("in_the_way ")
    assert os.fsdecode(name) in answer.reason
    assert snapshot(node.target) == before
    assert list((node.root / "elsewhere").iterdir()) == []


def test_the_target_may_be_a_link_to_a_directory_and_no_file(node: Node, tmp_path: Path) -> None:
    real = node.root / "real"
    real.mkdir()
    node.target.symlink_to("real")
    assert node.run(node.deliver(TREE)).verdict is Verdict.PUBLISHED
    assert node.target.is_symlink()
    assert snapshot(real) == expected(tmp_path, TREE)
    for make_it in (lambda: node.target.symlink_to("nowhere"), lambda: node.target.write_text("x")):
        node.target.unlink()
        make_it()
        answer = node.run(node.deliver(TREE, attempt=9))
        assert answer.reason.startswith("target ")
        (node.stage / f"{SESSION}.answer-9").unlink()


def test_another_file_system_is_unpacked_into_there(node: Node, tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"hpcbridge-test-{os.getpid()}"
    if not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == node.root.stat().st_dev:
        pytest.skip("no second file system here")
    other.mkdir()
    try:
        node.target.symlink_to(other)
        assert node.run(node.deliver(TREE)).verdict is Verdict.PUBLISHED
        assert snapshot(other) == expected(tmp_path, TREE)
    finally:
        subprocess.run(["rm", "-rf", other], check=True)


def test_damaged_pieces_are_told_by_their_sums(node: Node) -> None:
    node.target.mkdir()
    plan = node.deliver(TREE)
    bad = node.stage / piece_name(SESSION, 1)
    data = bad.read_bytes()
    for spoilt in (bytes(len(data)), data[:-1], None):
        bad.unlink() if spoilt is None else bad.write_bytes(spoilt)
        assert node.run(plan).verdict is Verdict.MISMATCH
        sums = parse_sums((node.stage / f"{SESSION}.sums").read_text())
        good = {
            piece_name(SESSION, i)
            for i in range(plan.count)
            if sums.get(piece_name(SESSION, i)) == hashlib.sha256(data).hexdigest()
        }
        assert piece_name(SESSION, 1) not in good
        assert list(node.target.iterdir()) == []


def test_a_requeued_job_publishes_once_more_or_not_at_all(node: Node, tmp_path: Path) -> None:
    plan = node.deliver(TREE)
    node.run(plan)
    (node.target / "a" / "x").write_text("changed since")
    node.run(plan)
    assert (node.target / "a" / "x").read_text() == "changed since"
    # Killed between publication and answer: the same again does no harm.
    (node.stage / plan.answer_name).unlink()
    node.run(plan)
    assert snapshot(node.target) == expected(tmp_path, TREE)


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.05, 0.1, 0.15])
def test_a_job_killed_at_any_moment_can_run_again(node: Node, tmp_path: Path, moment: float) -> None:
    tree = Directory({b"d%d" % i: Directory({b"f%d" % j: File((b"x",)) for j in range(20)}, 0o555) for i in range(30)})
    node.target.mkdir()
    make(node.target, Directory({b"d1": Directory({b"f1": File((b"old",))}), b"own": File()}))
    plan = node.deliver(tree)
    job = subprocess.Popen(["bash", "-s"], stdin=subprocess.PIPE, start_new_session=True, stderr=subprocess.DEVNULL)
    assert job.stdin is not None
    job.stdin.write(plan.script().encode())
    job.stdin.close()
    time.sleep(moment)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert node.run(plan).verdict is Verdict.PUBLISHED
    found, wanted = snapshot(node.target), expected(tmp_path, tree)
    assert {path: found[path] for path in wanted} == wanted
    assert found.keys() - wanted.keys() == {b"own"}


def test_a_full_disk_is_said_and_nothing_is_published(node: Node) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    small = node.root / "small"
    small.mkdir()
    mount = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    plan = node.deliver(Directory({b"f": File((b"x" * 300_000,))}), target=RemotePath(str(small), "tree"))
    # Target on the small one, through a directory that is there.
    command = f'mount -t tmpfs -o size=100k none "{small}" && mkdir "{small}/tree" && bash -s; ls -A "{small}/tree"'
    done = subprocess.run([*mount, command], input=plan.script().encode(), capture_output=True, check=False)
    answer = parse_answer((node.stage / plan.answer_name).read_text())
    assert answer.verdict is Verdict.FAILED
    assert answer.reason.startswith("unpacking ")
    assert "No space left" in answer.reason
    assert done.stdout == b""


def test_hostile_members_stay_in_the_tree(node: Node, tmp_path: Path) -> None:
    """The archive is our own client's; all the same nothing in it leads outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    where = tmp_path / "hostile"
    (where / "a").mkdir(parents=True)
    (where / "a" / "x").write_text("x")
    data = b""
    for transform in (f"s,^a/x,{outside}/absolute,", "s,^a/x,../../climbed,"):
        tar = ["tar", "-c", "-P", "-f", "-", f"--transform={transform}", "-C", str(where), "a/x"]
        data = subprocess.run(tar, capture_output=True, check=True).stdout
        (node.stage / f"{SESSION}.answer-1").unlink(missing_ok=True)
        plan = node.stage_data(data)
        node.run(plan)
        assert list(outside.iterdir()) == []
        assert not (node.root.parent / "climbed").exists()
        subprocess.run(["rm", "-rf", node.target], check=True)


def test_what_is_new_belongs_to_the_group_of_its_directory(node: Node) -> None:
    groups = [each for each in os.getgroups() if each != os.getegid()] if os.geteuid() else [4321]
    if not groups:
        pytest.skip("this user has one group only")
    node.target.mkdir()
    os.chown(node.target, -1, groups[0])
    node.target.chmod(0o2775)
    assert node.run(node.deliver(TREE)).verdict is Verdict.PUBLISHED
    new = [node.target / "empty", node.target / "a" / "deep", node.target / "a" / "x", node.target / "a" / "deep" / "y"]
    assert {path.stat().st_gid for path in new} == {groups[0]}
    assert [path.stat().st_mode & 0o7777 for path in new] == [0o2700, 0o2555, 0o600, 0o644]
